"""A cache is filled: in shares, by several runs at once, verified, and on disks that fail."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from caches import differences, faults
from conftest import smooth_volume, write_slices
from faults import Disk
from typer.testing import CliRunner, Result

from cov3d import Machine, Preprocessing, fill_cache, read_study
from cov3d.cli import app
from cov3d.errors import Cov3dError
from cov3d.scans.cache import Cache
from cov3d.scans.workers import Outcome, _answer
from cov3d.shards import Shard

SETTINGS = Preprocessing(width=32)
TWO = Machine(workers=2)


def fill(study: Path, cache: Path, **how) -> Cache:
    return fill_cache(read_study(study).rows, SETTINGS, cache, TWO, **how)


def failed(cache: Cache) -> list[str]:
    with (cache.folder / "failures.csv").open(newline="") as file:
        return [row["scan"] for row in csv.DictReader(file)]


def break_scan(scan: Path) -> None:
    for file in scan.iterdir():
        file.write_bytes(b"")


def mend_scan(scan: Path) -> None:
    write_slices(scan, smooth_volume(12, 32))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans are read here, where faults can be put in their way."""

    def each(task, jobs, machine):
        for index, job in enumerate(jobs):
            message, parts = _answer(task, job)
            if message["fatal"]:
                raise Cov3dError(message["fatal"])
            yield Outcome(index, message["answer"], tuple(parts), message["error"])

    monkeypatch.setattr("cov3d.scans.filling.each", each)


# Shares


def test_shares_are_disjoint_and_together_make_the_cache_of_one_run(study: Path, tmp_path: Path):
    whole = fill(study, tmp_path / "whole")
    shares = [fill(study, tmp_path / "shared", shard=Shard(number, 3)) for number in (2, 0, 1)]
    assert [share.made for share in shares] == [5, 6, 5]
    assert sorted(scan for share in shares for scan in share.entries) == sorted(whole.entries)
    assert differences(shares[0].folder, whole.folder) == []
    assert fill(study, tmp_path / "shared").made == 0


def test_a_share_of_nothing_is_done(study: Path, tmp_path: Path):
    share = fill(study, tmp_path / "cache", shard=Shard(40, 50))
    assert (share.made, share.entries, share.jobs) == (0, {}, {})


def test_what_failed_in_other_shares_stays_listed_until_it_is_made(study: Path, tmp_path: Path, in_process: None):
    rows = read_study(study).rows
    bad = [rows[k] for k in (0, 2, 3)]  # of shares 0, 0 and 1
    for row in bad:
        break_scan(row.path)

    def run(number: int) -> list[str]:
        return failed(fill(study, tmp_path / "cache", shard=Shard(number, 2)))

    assert run(0) == [row.scan for row in bad[:2]]
    assert run(1) == [row.scan for row in bad]
    mend_scan(bad[0].path)
    assert run(1) == [row.scan for row in bad]  # nobody has tried it again
    assert run(0) == [row.scan for row in bad[1:]]
    mend_scan(bad[2].path)
    assert failed(fill(study, tmp_path / "cache")) == [bad[1].scan]
    fewer = [row for row in rows if row != bad[1]]
    assert failed(fill_cache(fewer, SETTINGS, tmp_path / "cache", TWO, shard=Shard(1, 2))) == []  # nobody asks for it


def test_a_list_of_failures_that_somebody_spoilt_is_begun_anew(study: Path, tmp_path: Path, in_process: None):
    row = read_study(study).rows[1]
    break_scan(row.path)
    cache = fill(study, tmp_path / "cache")
    for content in ("", "scan;message\nx;y\n", "\0", "scan,stage,file\na,b,c\n"):
        (cache.folder / "failures.csv").write_text(content)
        assert failed(fill(study, tmp_path / "cache", shard=Shard(1, 2))) == [row.scan]


# Several runs at once


def test_runs_on_one_cache_at_the_same_time_do_no_harm(study: Path, tmp_path: Path):
    """Two do all of it, two a share each; what fails in one share is in the list, whoever ends last."""
    bad = read_study(study).rows[4]
    break_scan(bad.path)
    alone = fill(study, tmp_path / "alone")
    done: list[Cache] = []
    runs = [
        threading.Thread(target=lambda how=how: done.append(fill(study, tmp_path / "cache", **how)))
        for how in ({}, {}, {"shard": Shard(0, 2)}, {"shard": Shard(1, 2)})
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(done) == 4
    assert differences(done[0].folder, alone.folder) == []
    assert failed(done[0]) == [bad.scan]


# Verified


def zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :]


DAMAGE = {
    "changed": lambda file: file.write_bytes(zeroed(file.read_bytes())),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "gone": lambda file: file.unlink(),
    "no tensor": lambda file: file.write_bytes(b"junk"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verifying_reads_every_tensor_and_makes_damaged_ones_again(
    study: Path, tmp_path: Path, in_process: None, damage: str, capsys: pytest.CaptureFixture
):
    cache, whole = fill(study, tmp_path / "cache"), fill(study, tmp_path / "whole")
    scans = list(cache.entries)[2:4]
    for scan in scans:
        DAMAGE[damage](cache.folder / cache.entries[scan]["file"])
    capsys.readouterr()
    again = fill(study, tmp_path / "cache", verify=True)
    assert (again.made, len(again.entries)) == (2, 16)
    said = capsys.readouterr().err
    assert f"2 tensors gone, cut or changed since made; they are made again: {', '.join(scans)}" in said
    assert differences(cache.folder, whole.folder) == []
    assert fill(study, tmp_path / "cache", verify=True).made == 0
    assert "tensors" not in capsys.readouterr().err


def test_without_verifying_a_change_within_a_tensor_is_left_to_who_reads_it(
    study: Path, tmp_path: Path, in_process: None
):
    cache = fill(study, tmp_path / "cache")
    scan = next(iter(cache.entries))
    DAMAGE["changed"](cache.folder / cache.entries[scan]["file"])
    assert fill(study, tmp_path / "cache").made == 0


def test_an_entry_that_vouches_for_something_else_than_a_tensor_is_made_again(
    study: Path, tmp_path: Path, in_process: None
):
    """Its file is whole and of the SHA-256 that its entry says."""
    import hashlib

    cache, whole = fill(study, tmp_path / "cache"), fill(study, tmp_path / "whole")
    entry = next(iter(cache.entries.values()))
    (cache.folder / entry["file"]).write_bytes(b"junk")
    forged = {**entry, "sha256": hashlib.sha256(b"junk").hexdigest(), "bytes": 4}
    (cache.folder / entry["file"]).with_suffix(".json").write_text(json.dumps(forged))
    assert fill(study, tmp_path / "cache", verify=True).made == 1
    assert differences(cache.folder, whole.folder) == []


def test_only_the_share_is_verified(study: Path, tmp_path: Path, in_process: None):
    cache = fill(study, tmp_path / "cache")
    for scan in list(cache.entries)[:3]:
        DAMAGE["changed"](cache.folder / cache.entries[scan]["file"])
    assert fill(study, tmp_path / "cache", verify=True, shard=Shard(1, 2)).made == 1
    assert fill(study, tmp_path / "cache", verify=True).made == 2


def test_a_damaged_tensor_whose_scan_is_gone_is_a_failure(study: Path, tmp_path: Path, in_process: None):
    rows = read_study(study).rows
    cache = fill(study, tmp_path / "cache")
    DAMAGE["changed"](cache.folder / cache.entries[rows[0].scan]["file"])
    shutil.rmtree(rows[0].path)
    again = fill_cache(rows, SETTINGS, tmp_path / "cache", TWO, verify=True)
    assert again.failures == {rows[0].scan: "is not there"}
    assert rows[0].scan not in again.entries


# Disks that fail


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A study of three scans, one of which cannot be read."""
    for number in range(3):
        write_slices(tmp_path / "three" / f"scan{number}", smooth_volume(3, 32, seed=number))
    break_scan(tmp_path / "three" / "scan1")
    return tmp_path / "three"


@pytest.mark.parametrize("lasting", [True, False], ids=["from then on", "once"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=lambda code: errno.errorcode[code])
def test_whichever_call_fails_nothing_is_half_written_and_the_next_run_goes_on(
    three: Path, tmp_path: Path, in_process: None, code: int, lasting: bool
):
    """The n-th of all calls that write fails, for every n."""
    whole = fill(three, tmp_path / "whole")
    assert (whole.made, len(whole.failures)) == (2, 1)
    for n in range(1, 1000):
        root = tmp_path / f"cache{n}"
        stopped = ""
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, n, code, lasting)
            try:
                fill(three, root)
            except Cov3dError as error:
                stopped = str(error)
        assert not stopped or stopped.startswith(f"cannot write {root}/")
        assert not stopped or "run the same command again" in stopped
        assert faults(root) == [] and not list(root.rglob(".tmp-*"))
        again = fill(three, root)
        assert (len(again.entries), len(again.failures)) == (2, 1)
        assert differences(again.folder, whole.folder) == []
        shutil.rmtree(root)
        if disk.calls < n:
            break
    assert 60 < n < 999


def test_what_is_made_before_the_disk_is_full_is_kept(three: Path, tmp_path: Path, in_process: None):
    kept = []
    for n in range(1, 1000):
        root = tmp_path / f"cache{n}"
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, n, errno.ENOSPC)
            with contextlib.suppress(Cov3dError):
                fill(three, root)
        kept.append(2 - fill(three, root).made)
        if disk.calls < n:
            break
    assert kept == sorted(kept) and set(kept) == {0, 1, 2}


def test_a_stopped_workers_leftover_is_gone_when_the_run_ends(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As when one of several workers meets a full disk, or the user says Ctrl-C, and the others are ended."""
    cache = fill(study, tmp_path / "cache")
    shutil.rmtree(cache.folder)

    def each(*_):
        (cache.folder / ".tmp-cov3d-left").write_bytes(np.zeros(10))
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("cov3d.scans.filling.each", each)
    with pytest.raises(KeyboardInterrupt):
        fill(study, tmp_path / "cache")
    assert sorted(path.name for path in cache.folder.iterdir()) == ["failures.csv", "manifest.csv", "settings.json"]


# The command


def preprocess(study: Path, *options: str) -> Result:
    return CliRunner().invoke(
        app, ["preprocess", str(study), "--cache", str(study.parent / "cache"), "--width", "32", *options]
    )


ARRAY = {
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "3",
    "SLURM_ARRAY_TASK_COUNT": "3",
}


def test_the_command_takes_a_share_that_is_said_or_found(
    study: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
):
    assert "8 made, 0 kept, 0 failed, 8 asked" in preprocess(study, "--shard", "0/2").stdout
    for name, value in ARRAY.items():
        monkeypatch.setenv(name, value)
    found = preprocess(study)
    assert "note: share 2/3, found in the environment of a Slurm array; say --shard 0/1 for all" in found.stderr
    assert "2 made, 3 kept, 0 failed, 5 asked" in found.stdout
    whole = preprocess(study, "--shard", "0/1")
    assert "note" not in whole.stderr and "6 made, 10 kept, 0 failed, 16 asked" in whole.stdout


def test_the_command_says_how_many_tensors_were_sound(study: Path, in_process: None):
    preprocess(study)
    DAMAGE["changed"](next(study.parent.glob("cache/*/*.pt")))
    assert "0 made, 16 kept, 0 failed" in preprocess(study).stdout
    run = preprocess(study, "--verify")
    assert run.exit_code == 0 and "1 made, 15 sound, 0 failed, 16 asked" in run.stdout


def test_a_failed_scan_ends_its_own_share_only(study: Path, in_process: None, monkeypatch: pytest.MonkeyPatch):
    """torchrun would end the others."""
    break_scan(study / "train" / "covid" / "ct_scan_1")
    assert [preprocess(study, "--shard", f"{k}/2").exit_code for k in (0, 1)] == [0, 3]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = preprocess(study)
    assert run.exit_code == 0 and "train/covid/ct_scan_1: 12 of 12 slices" in run.stderr
