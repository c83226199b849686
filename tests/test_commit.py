"""Whole-file writes: what a killed process leaves, what a disk refuses, and who may write at the same time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from faults import Disk

from cov3d import commit as module
from cov3d.commit import TEMPORARY_PREFIX, commit, commit_json, commit_text, sweep
from cov3d.errors import Cov3dError
from cov3d.locks import locked

fcntl = pytest.importorskip("fcntl")


def leftover(folder: Path, name: str = "left", age: float = 0) -> Path:
    """A temporary file that nobody writes, so many seconds old."""
    file = folder / f"{TEMPORARY_PREFIX}{name}"
    file.write_bytes(b"half")
    then = time.time() - age
    os.utime(file, (then, then))
    return file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What a killed process leaves


HALF = """
import sys, time
from cov3d.commit import commit

def write(file):
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    time.sleep(60)

commit(sys.argv[1], write)
"""


@pytest.fixture
def writer(tmp_path: Path):
    """Another process, in the middle of writing a file."""
    process = subprocess.Popen([sys.executable, "-c", HALF, tmp_path / "file"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_living_writers_file_stays_and_a_killed_ones_goes_at_once(tmp_path: Path, writer: subprocess.Popen):
    (half,) = tmp_path.iterdir()
    os.utime(half, (1, 1))  # its age says nothing
    sweep(tmp_path)
    assert names(tmp_path) == [half.name]
    writer.kill()
    writer.wait()
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_a_file_that_is_being_written_here_survives_a_sweep(tmp_path: Path):
    def write(file) -> None:
        file.write(b"one")
        sweep(tmp_path)
        file.write(b"two")

    assert commit(tmp_path / "file", write).read_bytes() == b"onetwo"
    assert names(tmp_path) == ["file"]


def test_a_sweep_takes_temporary_files_only(tmp_path: Path):
    commit_text(tmp_path / "file", "whole")
    (tmp_path / f"{TEMPORARY_PREFIX}folder").mkdir()
    leftover(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == [f"{TEMPORARY_PREFIX}folder", "file"]
    sweep(tmp_path / "nowhere")


@pytest.mark.parametrize("late", ["before it is locked", "all the while"])
def test_a_file_swept_while_it_is_written_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str):
    """A sweep may come between creation and lock, or from a machine that does not see this one's locks."""
    taken = []

    def take() -> None:
        if len(taken) < 2:
            taken.extend(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))
            taken[-1].unlink()

    def write(file) -> None:
        file.write(b"content")
        if late == "all the while":
            take()

    if late == "before it is locked":
        monkeypatch.setattr(module, "take", lambda *_, **__: take())
    assert commit(tmp_path / "file", write).read_bytes() == b"content"
    assert len(taken) == 2 and names(tmp_path) == ["file"]


def test_a_file_that_was_given_its_name_while_a_sweep_looked_at_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = leftover(tmp_path)
    lock = fcntl.flock

    def renamed_just_before(*arguments) -> None:
        file.replace(tmp_path / "file")
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", renamed_just_before)
    sweep(tmp_path)
    assert names(tmp_path) == ["file"]


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("without", ["a drive", "a system"])
def test_where_there_are_no_locks_age_decides_and_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
):
    if without == "a drive":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    else:
        monkeypatch.setattr("cov3d.locks.fcntl", None)
    leftover(tmp_path, "old", age=3700)
    leftover(tmp_path, "young", age=3500)
    sweep(tmp_path)
    assert names(tmp_path) == [f"{TEMPORARY_PREFIX}young"]
    commit_text(tmp_path / "file", "whole")
    with locked(tmp_path / "file"):
        commit_text(tmp_path / "file", "whole again")
    assert (tmp_path / "file").read_text() == "whole again"


def test_who_removes_every_temporary_file_is_complained_of_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "take", lambda *_, **__: [file.unlink() for file in tmp_path.iterdir()])
    with pytest.raises(Cov3dError, match="file: somebody removes temporary files"):
        commit_text(tmp_path / "file", "x")


# Taking turns


def test_what_is_done_under_a_lock_is_done_by_one_at_a_time(tmp_path: Path):
    file = commit_json(tmp_path / "file", 0)

    def add() -> None:
        for _ in range(20):
            with locked(file):
                before = int(shown.read_text())
                time.sleep(0.001)
                commit_json(shown, before + 1)

    shown = commit_json(tmp_path / "count", 0)
    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown.read_text() == "80\n"
    assert names(tmp_path) == ["count", "file"]


# What a disk refuses


REFUSALS = {
    errno.ENOSPC: "No space left on device; the disk is full: free some space and run the same command again",
    errno.EDQUOT: "your share of the disk is used up: free some space and run the same command again",
    errno.EROFS: "Read-only file system; nothing can be written to this drive; choose another folder",
    errno.ESTALE: "the drive does not answer: when it is there again, run the same command again",
    errno.EIO: "Input/output error; the drive does not answer: when it is there again, run the same command again",
    errno.ENOTCONN: "the drive does not answer",
    errno.EHOSTDOWN: "the drive does not answer",
    errno.EACCES: "Permission denied; choose a folder you may write to",
    errno.EMFILE: "raise the limit",
}


def save(file) -> None:
    torch.save(torch.ones(10**5), file)


def write(file) -> None:
    file.write(b"x" * 10**5)


@pytest.mark.parametrize("code", REFUSALS, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("how, raised", [(write, OSError), (save, RuntimeError)], ids=["written", "saved by torch"])
def test_each_refusal_has_its_own_advice_also_where_torch_hides_it(tmp_path: Path, code: int, how, raised: type):
    path = commit_text(tmp_path / "file", "old")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cov3dError) as caught:
        Disk(patch, first=4, code=code, lasting=False)  # before it the folder is made, and the file in two calls
        commit(path, how)
    assert isinstance(caught.value.__cause__, raised)
    assert str(caught.value).startswith(f"cannot write {path}: {os.strerror(code)}; ")
    assert REFUSALS[code] in str(caught.value)
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError("500 requested and 0 written"), RuntimeError("unexpected pos 64 vs 0")])
def test_where_a_library_only_counts_bytes_the_disk_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(file) -> None:
        raise error

    if isinstance(error, RuntimeError):  # which is no disk's, as long as that has room
        with pytest.raises(RuntimeError):
            commit(tmp_path / "file", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda _: FullDisk)
    with pytest.raises(Cov3dError, match=r"file: the disk is full: free some space"):
        commit(tmp_path / "file", fail)
    assert names(tmp_path) == []


class FullDisk:
    """What the system tells of it."""

    free = 4096


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=lambda code: errno.errorcode[code])
def test_whichever_call_fails_the_file_is_the_old_or_the_new_one(tmp_path: Path, code: int, lasting: bool):
    """The n-th call fails, for every n."""
    old, new = b"o" * 300_000, b"n" * 300_000
    refused = 0
    for n in range(1, 100):
        path = commit(tmp_path / "file", lambda file: file.write(old))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, n, code, lasting)
            try:
                commit(path, lambda file: [file.write(new[i : i + 1000]) for i in range(0, len(new), 1000)])
            except Cov3dError as error:
                refused += 1
                assert str(error).startswith(f"cannot write {path}: ")
        assert path.read_bytes() in (old, new)
        assert names(tmp_path) == ["file"]
        if disk.calls < n:
            break
    assert refused > 20 and path.read_bytes() == new
