"""Several processes that train one network take the steps of one that has their batches together."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import make_study

from cov3d import Inference, infer
from cov3d.errors import Cov3dError, SettingError
from cov3d.predictions import read_predictions
from cov3d.tables import read_table
from cov3d.training.order import Order
from cov3d.training.ranks import Ranks, _leaves, joined

COMMON = ["train", "study", "--width", "32", "--depth", "32", "--base-width", "4", "--device", "cpu", "--workers", "1"]
COMMON += ["--epochs", "3", "--dropout", "0", "--learning-rate", "1e-3", "--random-crop", "0", "--noise", ".5"]
CONVNEXT = [*COMMON, "--architecture", "convnext-micro", "--drop-path", "0", "--ema", ".5"]
RESNET = [*COMMON, "--penultimate", "8", "--sync-batchnorm", "--rotate", ".5", "--flip-width", ".5"]
RESNET += ["--learning-rate", "1e-4"]  # at 1e-3 so small a network makes much of rounding


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    make_study(root / "study", per_class=5)
    return root


TORCHRUN = {"RANK": "{k}", "LOCAL_RANK": "{k}", "WORLD_SIZE": "{n}", "LOCAL_WORLD_SIZE": "{n}"}
SRUN = {
    "SLURM_PROCID": "{k}",
    "SLURM_LOCALID": "{k}",
    "SLURM_STEP_NUM_TASKS": "{n}",
    "SLURM_JOB_ID": str(os.getpid()),
}


def free_port() -> int:
    """A port that nobody has, that the system gives to nobody by itself, and that no other process of the tests looks at."""
    for k in range(100):
        port = 10_000 + (100 * os.getpid() + k) % 20_000
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("", port))
            return port
    raise OSError("no port is free")


def begin(
    command: list[str], cwd: Path, processes: int = 2, launcher: dict[str, str] = TORCHRUN
) -> list[subprocess.Popen]:
    """What torchrun and srun do: a command in several processes that find each other; ``{k}`` in it is which."""
    where = launcher if launcher is SRUN else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **launcher}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "cov3d", *(word.format(k=k) for word in command)],
            cwd=cwd,
            env={**os.environ, **{name: said.format(k=k, n=processes) for name, said in where.items()}},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(processes)
    ]


def run(
    command: list[str], cwd: Path, processes: int = 2, launcher: dict[str, str] = TORCHRUN
) -> list[tuple[int, str, str]]:
    """Exit code, results and messages of each process."""
    begun = begin(command, cwd, processes, launcher)
    said = [process.communicate(timeout=120) for process in begun]
    return [(process.returncode, *texts) for process, texts in zip(begun, said, strict=True)]


@pytest.mark.parametrize(
    ("command", "near", "launcher"),
    [(CONVNEXT, 2e-6, TORCHRUN), (RESNET, 2e-5, SRUN)],
    ids=["convnext by torchrun", "resnet with synchronised BatchNorm by srun"],
)
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(
    root: Path, tmp_path: Path, command: list[str], near: float, launcher: dict[str, str]
):
    for processes, batch in ((1, 4), (2, 2)):
        folder = tmp_path / str(processes)
        done = run([*command, "--batch-size", str(batch), "--output-dir", str(folder)], root, processes, launcher)
        assert [code for code, _, _ in done] == [0] * processes, done
        assert [results for _, results, _ in done] == [f"{folder}\n", ""][:processes]  # one speaks
    one, two = (safetensors.torch.load_file(tmp_path / n / "last.safetensors") for n in ("1", "2"))
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, atol=near, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    answers = [read_predictions(tmp_path / n / "predictions.csv") for n in ("1", "2")]
    assert [row.scan for row in answers[0]] == [row.scan for row in answers[1]]
    for a, b in zip(*answers, strict=True):
        assert a.covid == pytest.approx(b.covid, abs=2e-5) and a.severity == pytest.approx(b.severity, abs=2e-5)


@pytest.mark.parametrize(("count", "batch", "processes"), [(10, 2, 2), (9, 2, 2), (7, 3, 4), (1, 2, 3), (16, 4, 2)])
def test_every_row_is_seen_once_an_epoch(count: int, batch: int, processes: int):
    orders = [Order(count, batch, 3, ranks=Ranks(rank, processes)) for rank in range(processes)]
    for epoch in range(2):
        for order in orders:
            order.epoch = epoch
        seen = [row for order in orders for number in range(len(order)) for row in order.share(number)]
        assert sorted(seen) == list(range(count))
        assert len({len(list(order)) for order in orders}) == 1  # no process waits for another's batch
    alone = Order(count, batch * processes, 3)
    alone.epoch = 1
    assert [alone.whole(k) for k in range(len(alone))] == [orders[0].whole(k) for k in range(len(alone))]


def wait_for(text: str, process: subprocess.Popen) -> str:
    """Read a process' messages until one of them matches."""
    said = ""
    while not re.search(text, said):
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


LONG = [*CONVNEXT, "--batch-size", "2", "--epochs", "2000"]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_a_sentence(root: Path, tmp_path: Path, killed: int):
    processes = begin([*LONG, "--output-dir", str(tmp_path / "run")], root)
    wait_for(r"\n +2 ", processes[0])
    processes[killed].kill()
    begin_waiting = time.monotonic()
    _, said = processes[1 - killed].communicate(timeout=60)
    assert time.monotonic() - begin_waiting < 30
    assert processes[1 - killed].returncode == 1
    assert "error: another process of this training has ended, so this one does, too" in said
    assert "Traceback" not in said


def test_a_signal_to_one_stops_all_and_they_go_on_together(root: Path, tmp_path: Path):
    command = [*LONG, "--output-dir", str(tmp_path / "run")]
    processes = begin(command, root)
    wait_for(r"\n +2 ", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75]
    assert "stopped by another process after batch" in said[0] and said[1] == ""
    processes = begin([*command, "--resume"], root)
    assert "going on after" in wait_for(r"going on.*\n(.*\n)* +\d+ ", processes[0])
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [75, 75]


def test_runs_of_several_processes_go_on_as_if_they_had_not_been_stopped(root: Path, tmp_path: Path):
    """To rounding: each has batch statistics of its own, whose mean is saved. Scores are of the network that is kept."""
    alone = [word for word in RESNET if word != "--sync-batchnorm"]
    command = [*alone, "--batch-size", "2", "--ema", ".9", "--learning-rate", "1e-5", "--epochs", "2"]
    whole, again = str(tmp_path / "whole"), str(tmp_path / "again")
    assert [code for code, _, _ in run([*command, "--output-dir", whole], root)] == [0, 0]
    again_in = [*command, "--output-dir", again]
    stopped = run([*again_in, "--max-hours", "0"], root)  # after the first of three batches
    assert [code for code, _, _ in stopped] == [75, 75]
    assert [code for code, _, _ in run([*again_in, "--resume"], root)] == [0, 0]
    one, two = (safetensors.torch.load_file(Path(folder) / "last.safetensors") for folder in (whole, again))
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    histories = [read_table(Path(folder) / "history.csv")[1] for folder in (whole, again)]
    for a, b in zip(*histories, strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), abs=1e-5)
    kept = {row.scan: row.covid for row in read_predictions(Path(whole) / "predictions.csv")}
    folder = root / "study" / "validation"
    for row in infer([folder], [Path(whole) / "presence.safetensors"], tmp_path / "p.csv", Inference(tta=False)):
        scan = Path(row.path).relative_to(folder)
        assert row.covid == pytest.approx(kept[f"validation/{scan}"], abs=2e-6)


def test_one_process_does_not_go_on_with_what_two_began(root: Path, tmp_path: Path):
    command = [*CONVNEXT, "--batch-size", "2", "--output-dir", str(tmp_path / "run"), "--max-hours", "0"]
    assert [code for code, _, _ in run(command, root)] == [75, 75]
    [(code, _, said)] = run([*command, "--resume"], root, 1)
    assert code == 2 and "other settings, scans, masks or processes" in said


def test_processes_that_were_asked_for_different_things_are_refused_at_once(root: Path, tmp_path: Path):
    """A sweep in one srun, whose tasks were meant to train one by one."""
    command = [*CONVNEXT, "--output-dir", str(tmp_path / "run{k}"), "--seed", "{k}"]
    for code, _, said in run(command, root, launcher=SRUN):
        assert code == 2
        assert "2 processes that train together differ in output-dir, seed; give all of them the same command" in said
        assert "SLURM_STEP_NUM_TASKS=1 cov3d" in said
    assert not list(tmp_path.iterdir())


class Told(Ranks):
    """Two processes, of which this one was asked to train, without any other."""

    def gather(self, content):
        """What both say."""
        return [content, list(_leaves(TRAIN))]


TRAIN = {"command": "train", "settings": {"rate": math.nan, "sizes": (1, 2)}, "all_data": False}


@pytest.mark.parametrize(
    ("asked", "differing"),
    [
        ({"command": "segmentation", "settings": {"rate": math.nan, "sizes": (1, 2)}}, "command, all-data"),
        ({**TRAIN, "settings": {"rate": 1.0, "sizes": (1, 2)}}, "rate"),
        ({**TRAIN, "settings": {"rate": math.nan, "sizes": (1, 3), "more": None}}, "sizes, more"),
    ],
)
def test_what_processes_were_asked_for_is_compared_value_by_value(asked: dict, differing: str):
    Told(0, 2).agree(**TRAIN)
    with pytest.raises(SettingError, match=f"2 processes that train together differ in {differing}; give all"):
        Told(0, 2).agree(**asked)


@pytest.mark.parametrize(
    ("launcher", "advice"),
    [
        (SRUN, "do not meet at localhost, port [0-9]+; .*MASTER_ADDR"),
        (TORCHRUN, "do not find each other; start them by"),
    ],
    ids=["srun", "torchrun"],
)
def test_a_process_whose_others_do_not_come_ends_with_advice(
    launcher: dict[str, str], advice: str, monkeypatch: pytest.MonkeyPatch
):
    for name, said in (launcher | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, said.format(k=0, n=2))
    monkeypatch.setattr("cov3d.training.ranks.TO_MEET", timedelta(seconds=1))
    with pytest.raises(Cov3dError, match=advice), joined(torch.device("cpu")):
        pass
