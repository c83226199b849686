"""The command line as a user meets it: speed, exit codes, one sentence for every error, the whole way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from conftest import make_study, smooth_volume, write_slices
from typer.testing import CliRunner

from cov3d.cli import _guarded, app

COMMANDS = [name for name, command in typer.main.get_group(app).commands.items() if not command.hidden]
TINY = (
    *("--width", 32, "--base-width", 4, "--penultimate", 8),
    *("--epochs", 1, "--batch-size", 4, "--workers", 1, "--device", "cpu"),
)
LONG = "x" * 300


def cov3d(*arguments, cwd: Path | None = None, check: int | None = 0) -> subprocess.CompletedProcess:
    """Run cov3d as a process of its own; no library's warning may reach its user."""
    run = subprocess.run(
        [sys.executable, "-m", "cov3d", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100"},
    )
    assert "Warning" not in run.stderr
    assert check is None or run.returncode == check, run.stderr
    return run


def sentence(run: subprocess.CompletedProcess) -> str:
    """The one line of an error."""
    assert "Traceback" not in run.stderr
    return run.stderr.strip().splitlines()[-1]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['cov3d', '--help']\n"
        "from cov3d.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'fastai', 'numpy', 'scipy', 'pandas', 'nibabel', 'sklearn', 'PIL', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself(command: str, flag: str):
    assert f"cov3d {command}" in cov3d(command, flag).stdout


def test_the_version_is_told():
    assert re.fullmatch(r"cov3d \d+\.\d+\.\d+\n", cov3d("-v").stdout)


def test_the_three_commands_as_they_stand_in_the_readme(tmp_path: Path):
    """In a study's folder: preprocess, train, infer, evaluate, each finding what the one before left."""
    study = make_study(tmp_path / "study")
    done = cov3d("preprocess", "--width", 32, cwd=study)
    assert re.search(r"cache/16x32x32-\w+: 16 made, 0 kept, 0 failed, 16 asked", done.stdout)
    again = cov3d("preprocess", "--width", 32, cwd=study)
    assert "0 made, 16 kept" in again.stdout
    cov3d("train", "--task", "severity", *TINY, cwd=study)
    assert (study / "outputs" / "severity" / "severity.safetensors").exists()
    answered = cov3d("infer", "validation/", "--output", "predictions.csv", cwd=study)
    assert "8 answered, 0 failed, 8 asked" in answered.stdout
    assert "not a medical device" in answered.stderr
    scored = cov3d("evaluate", "predictions.csv", cwd=study)
    assert "macro F1" in scored.stdout
    assert "some of these are validation scans" in scored.stdout
    assert (study / "predictions-metrics.json").exists()
    assert cov3d("validate", "predictions.csv", cwd=study).stdout == scored.stdout


def test_some_failed_scans_are_exit_3_and_named(tmp_path: Path):
    study = make_study(tmp_path / "study")
    for file in (study / "train" / "covid" / "ct_scan_1").iterdir():
        file.write_bytes(b"")
    run = cov3d("preprocess", "--width", 32, cwd=study, check=3)
    assert "15 made, 0 kept, 1 failed, 16 asked" in run.stdout
    assert sentence(run).startswith("train/covid/ct_scan_1: 12 of 12 slices cannot be read")


@pytest.mark.parametrize(
    "arguments, code, cause",
    [
        (["preprocess", "empty"], 1, "no scans found"),
        (["preprocess", "nowhere"], 1, "there is no such study"),
        (["preprocess", ".", "--width", 33], 2, "is odd"),
        (["preprocess", ".", "--width", 0], 2, "16"),
        (["preprocess", ".", "--windw-low", 0], 2, "No such option"),
        (["preprocess", ".", "--window-low", 400], 2, "is empty"),
        (["preprocess", ".", "--cache", "file/cache"], 1, "cannot write"),
        (["infer", "scan"], 1, "there is no trained model"),
        (["infer", "scan", "--model", "file"], 1, "file"),
        (["infer", "empty"], 1, "no scans found"),
        (["infer"], 2, "name the scans"),
        (["infer", "scan", "--device", "gpu"], 2, "is not one of auto, cpu, cuda"),
        (["infer", "scan", "--output", "exists.csv"], 2, "say --resume"),
        (["evaluate", "exists.csv"], 1, "exists.csv"),
        (["train", ".", "--weights", "kinetics", "--base-width", 8], 2, "Kinetics weights fit --base-width 64"),
        (["train", ".", "--task", "cure"], 2, "cure"),
        (["train", "."], 1, "cannot be trained: no training scan has a known presence"),
        (["phantom", "scan"], 2, "not empty"),
    ],
)
def test_an_error_is_one_sentence_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list, code: int, cause: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "exists.csv").touch()
    write_slices(tmp_path / "scan", smooth_volume(3, 32))
    run = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert run.exit_code == code, run.output
    words = re.sub(r"[\s│]+", " ", run.stderr)
    assert cause in words
    assert "Traceback" not in words
    assert "error: " in words.lower() or "Usage: " in words
    assert run.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["preprocess", LONG], ["infer", "scan", "--output", LONG], ["check", LONG]],
    ids=["study", "output", "checked"],
)
def test_what_the_operating_system_refuses_is_a_sentence_with_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
):
    monkeypatch.chdir(tmp_path)
    write_slices(tmp_path / "scan", smooth_volume(3, 32))
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 1
    assert run.stderr == f"error: {LONG[:120]}…: File name too long\n"


def fail(error: Exception) -> None:
    """Run a command that meets an error that nobody raised on purpose."""

    def command(**values: object) -> int:
        raise error

    with pytest.raises(typer.Exit) as ended:
        _guarded(command, "")(quiet=False, debug=False)
    assert ended.value.exit_code == 1


@pytest.mark.parametrize(
    "error, said",
    [
        (PermissionError(13, "Permission denied", "scan\x1b/1.dcm"), "scan\\x1b/1.dcm: Permission denied"),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "a: b: Invalid cross-device link"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("words"), "unexpected OSError: words; run again with --debug and report it"),
        (ValueError("x" * 300), f"unexpected ValueError: {'x' * 120}…; run again with --debug and report it"),
    ],
)
def test_only_a_fault_of_ours_is_to_be_reported(error: Exception, said: str, capsys: pytest.CaptureFixture):
    fail(error)
    assert capsys.readouterr().err == f"error: {said}\n"


def test_debug_shows_the_traceback_and_quiet_says_nothing(tmp_path: Path):
    assert "Traceback" in cov3d("preprocess", tmp_path, "--debug", check=None).stderr
    study = make_study(tmp_path / "study")
    assert cov3d("preprocess", study, "--width", 32, "--quiet", cwd=tmp_path).stderr == ""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_preprocess_says_so_in_a_sentence_and_goes_on_when_run_again(tmp_path: Path, stop: signal.Signals):
    study = make_study(tmp_path / "study", per_class=40)
    command = [sys.executable, "-m", "cov3d", "preprocess", "--width", "64"]
    pipe = subprocess.PIPE

    def listen() -> None:
        signal.signal(stop, signal.SIG_DFL)  # of a shell's job in the background, children do not hear SIGINT

    process = subprocess.Popen(
        command, cwd=study, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=listen
    )
    while not list(study.glob("cache/*/settings.json")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, stop)  # as a terminal or a scheduler does: to all of its processes, while they start
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors == f"stopped by {stop.name}; run the same command again: what is made is kept\n"
    assert "160 asked" in cov3d("preprocess", "--width", 64, cwd=study).stdout


def test_when_every_scan_fails_the_command_fails(tmp_path: Path):
    write_slices(tmp_path / "scan", smooth_volume(3, 32))
    for file in (tmp_path / "scan").iterdir():
        file.write_bytes(b"")
    cov3d("preprocess", "--width", 32, cwd=tmp_path, check=1)


def test_the_old_spellings_still_work(tmp_path: Path):
    run = cov3d("infer", "--scan-dir", tmp_path, "--output-csv", tmp_path / "p.csv", cwd=tmp_path, check=1)
    assert "no scans found" in sentence(run)
