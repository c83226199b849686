"""Whatever fails on the way to a table ends in one sentence, keeps all rows before it, and is gone on with."""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import deadly
import pytest
import torch

from cov3d import Inference, Machine, infer
from cov3d.errors import Cov3dError
from cov3d.results.ensemble import Ensemble

ROOM = importlib.import_module("cov3d.results.infer")


@pytest.fixture
def undisturbed(run: Callable, tmp_path: Path, timeless: Callable) -> list[list[str]]:
    run(tmp_path / "whole.csv")
    return timeless(tmp_path / "whole.csv")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "p.csv"


def check_gone_on_with(output: Path, run: Callable, timeless: Callable, undisturbed: list[list[str]]) -> None:
    """Rows that are there are whole and stay; the rest follows, and nothing else is left."""
    before = output.read_text().splitlines(keepends=True) if output.exists() else []
    assert all(line.endswith("\n") for line in before)
    run(output, resume=True)
    assert set(before) <= set(output.read_text().splitlines(keepends=True))
    assert timeless(output) == undisturbed
    assert sorted(path.name for path in output.parent.iterdir()) == ["p.csv", "p.csv.json"]


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int, code: int) -> None:
    """Make the ``number``-th call of a function of the system, and all after it, fail."""
    owner = {"mkstemp": tempfile, "replace": Path}.get(name, os)
    function, calls = getattr(owner, name), []

    def fail(*arguments, **options):
        calls.append(name)
        if len(calls) >= number:
            if name == "write":
                function(arguments[0], arguments[1][: len(arguments[1]) // 2])  # as a disk does that becomes full
            raise OSError(code, os.strerror(code))
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, fail)


# How often a run of five scans calls each: tables and provenance are written through temporary files, rows directly.
CALLS = {"fsync": 3 * 2 + 5, "replace": 3, "mkstemp": 3, "write": 5}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=["full", "lost", "quota"])
@pytest.mark.parametrize(("name", "number"), [(name, n) for name, most in CALLS.items() for n in range(1, most + 1)])
def test_a_disk_that_fails_at_any_call_costs_nothing_that_was_written(
    name: str,
    number: int,
    code: int,
    output: Path,
    run: Callable,
    timeless: Callable,
    undisturbed: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    with monkeypatch.context() as patch:
        failing(patch, name, number, code)
        try:
            run(output)
        except Cov3dError as error:
            assert "cannot write" in str(error)
            assert "p.csv" in str(error)
            assert os.strerror(code) in str(error)
        else:
            assert (name, number) == ("fsync", CALLS["fsync"])  # of the folder, with all in it; not every drive can
    check_gone_on_with(output, run, timeless, undisturbed)


def test_the_calls_that_fail_are_all_that_there_are(output: Path, run: Callable, monkeypatch: pytest.MonkeyPatch):
    for name, most in CALLS.items():
        with monkeypatch.context() as patch:
            failing(patch, name, most + 1, errno.ENOSPC)
            run(output, overwrite=True)


@pytest.mark.parametrize("call", ["mkstemp", "replace", "fsync"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_run_that_begins_again_over_another_models_answers_never_takes_them_for_its_own(
    call: str,
    number: int,
    output: Path,
    run: Callable,
    timeless: Callable,
    undisturbed: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run(output, inference=Inference(tta=False))
    with monkeypatch.context() as patch:
        failing(patch, call, number, errno.ENOSPC)
        with pytest.raises(Cov3dError):
            run(output, overwrite=True)
    try:
        run(output, resume=True)
    except Cov3dError as error:  # the old table is whole, and says whose it is
        assert "made with other models or settings" in str(error)
        assert {row[-3] for row in timeless(output)[1:]} == {"1"}
    else:
        assert timeless(output) == undisturbed


def test_a_drive_that_is_lost_ends_the_run_and_not_its_scans_rows(
    output: Path,
    run: Callable,
    timeless: Callable,
    undisturbed: list[list[str]],
    five: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    answer = Ensemble.answer

    def lose(self, path, *rest):
        row = answer(self, path, *rest)
        if path.name == "ct_9":
            five.rename(five.with_name("away"))
            five.mkdir()  # what a drive was mounted on
        return row

    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "answer", lose)
        with pytest.raises(
            Cov3dError, match=r"ct_10: none of the 5 scans on its drive can be reached any more.*say --resume"
        ):
            run(output)
    assert [row[0] for row in timeless(output)] == ["scan", "ct_1", "ct_2", "ct_9"]
    five.rmdir()
    run(output, scans=[five], resume=True)  # the scheduler's next try comes while it is still away
    assert [row[0] for row in timeless(output)] == ["scan", "scans", "ct_1", "ct_2", "ct_9"]
    five.with_name("away").rename(five)
    run(output, resume=True)
    assert timeless(output) == undisturbed


def test_a_scan_that_is_removed_costs_its_row_only(
    output: Path, run: Callable, timeless: Callable, five: Path, monkeypatch: pytest.MonkeyPatch
):
    answer = Ensemble.answer

    def remove(self, path, *rest):
        if path.name == "ct_1":
            (five / "ct_9").rename(five.with_name("away"))
        return answer(self, path, *rest)

    monkeypatch.setattr(Ensemble, "answer", remove)
    assert {row.scan: bool(row.error) for row in run(output)} == {
        **dict.fromkeys(("ct_1", "ct_2", "ct_10", "ct_100"), False),
        "ct_9": True,
    }


def test_a_worker_that_dies_of_memory_costs_its_scan_only_and_resume_tries_it_again(
    output: Path,
    network: Path,
    five: Path,
    timeless: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    one = Machine(workers=1, device="cpu")
    infer([five], [network], output.with_name("whole.csv"), machine=one)
    (five / "ct_9" / deadly.DEADLY).touch()
    with monkeypatch.context() as patch:
        patch.setattr("cov3d.scans.tensors.make_tensors", deadly.read_or_die)
        rows = infer([five], [network], output, machine=one)
    failed = {row.scan: row.error for row in rows if row.error}
    assert failed.keys() == {"ct_9"}
    assert "SIGKILL" in failed["ct_9"]
    assert "memory" in failed["ct_9"]
    (five / "ct_9" / deadly.DEADLY).unlink()
    infer([five], [network], output, machine=one, resume=True)
    assert timeless(output) == timeless(output.with_name("whole.csv"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU's memory is full"),
        (MemoryError(), "this machine's memory is full"),
    ],
)
def test_a_network_without_memory_ends_in_a_sentence_and_keeps_the_rows(
    error: Exception,
    said: str,
    output: Path,
    run: Callable,
    timeless: Callable,
    undisturbed: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
):
    answer = Ensemble.answer

    def fill(self, path, *rest):
        if path.name == "ct_9":
            raise error
        return answer(self, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "answer", fill)
        with pytest.raises(Cov3dError, match=f"{said}.*--resume"):
            run(output)
    assert len(timeless(output)) == 3
    check_gone_on_with(output, run, timeless, undisturbed)


@pytest.mark.parametrize("lines", [0, 1], ids=["claim", "header"])
def test_a_run_that_was_killed_before_it_said_who_it_is_is_gone_on_with(
    lines: int, output: Path, run: Callable, timeless: Callable, undisturbed: list[list[str]]
):
    run(output)
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:lines]))
    output.with_name("p.csv.json").unlink()
    check_gone_on_with(output, run, timeless, undisturbed)


def test_what_a_killed_run_was_writing_is_cleaned_up(
    output: Path, run: Callable, timeless: Callable, undisturbed: list[list[str]]
):
    output.parent.mkdir()
    descriptor, _ = tempfile.mkstemp(prefix=".tmp-cov3d-", dir=output.parent)
    os.close(descriptor)
    check_gone_on_with(output, run, timeless, undisturbed)
