"""A folder that cov3d is to write to: room, speed, locks, and files that take another's place whole.

All probes lie in one temporary folder inside it, which is removed, and so is the folder itself if it was not there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cov3d.checkup.findings import Finding, size
from cov3d.commit import TEMPORARY_PREFIX, commit
from cov3d.console import plural
from cov3d.errors import Cov3dError

WIDTH = 320  # the published one
SCAN = WIDTH // 2 * WIDTH * WIDTH  # bytes of a cached scan, (160, 320, 320) uint8
BLOCK = 2**20
PROBE = 64 * BLOCK
SYNCED = 8 * BLOCK  # so often the disk is waited for, that a slow one is noticed
PATIENCE = 3.0  # seconds of writing
LEAST_ROOM = 1e9
ENOUGH_SCANS = 2500  # of the published study's size, with its test scans in part
ENOUGH_ROOM = 5e9  # a few runs; each takes up to 2 GB while its state is written
ENOUGH_FILES = 10_000
SLOW = 50.0  # MB/s


@dataclass(frozen=True)
class Speed:
    """MB/s of writing, to the disk and not to memory, and of reading; whether what was read is what was written."""

    write: float
    read: float
    cold: bool
    equal: bool


def look_at_cache(folder: Path) -> Iterator[Finding]:
    """The folder of tensors: room for scans, speed, locks."""
    yield from _look(folder, "cache", thorough=True)


def look_at_outputs(folder: Path) -> Iterator[Finding]:
    """The folder of runs: room, and whether it can be written."""
    yield from _look(folder, "outputs", thorough=False)


def _look(folder: Path, name: str, thorough: bool) -> Iterator[Finding]:
    try:
        with probing(folder) as probe:
            room = os.statvfs(probe) if hasattr(os, "statvfs") else None
            files = room.f_favail if room and room.f_files else None  # some systems do not count them
            free = shutil.disk_usage(probe).free
            yield judge_room(name, str(folder), _kind(probe), free, files)
            if free < 2 * PROBE:
                return
            if thorough:
                yield judge_speed(measure_speed(probe))
            yield judge_files(name, replaces_whole(probe), locks(probe))
    except (Cov3dError, OSError) as error:
        refusal = error.__cause__ if isinstance(error, Cov3dError) else error
        reason = refusal.strerror if isinstance(refusal, OSError) and refusal.strerror else str(error)
        yield Finding(f"{name} folder", f"{folder} cannot be written: {reason}", "bad", _elsewhere(name))


@contextmanager
def probing(folder: Path) -> Iterator[Path]:
    """A temporary folder inside ``folder``; afterwards neither it is there nor what had to be made for it."""
    missing = [it for it in (folder, *folder.parents) if not it.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}doctor-", dir=folder) as probe:
            yield Path(probe)
    finally:
        for made in missing:  # the deepest first; one that somebody has used meanwhile stays
            with suppress(OSError):
                made.rmdir()


# Room


def judge_room(name: str, folder: str, kind: str, free: int, files: int | None) -> Finding:
    """Free bytes, and how many files there may still be; ``kind`` is the file system's."""
    fit = f"; {plural(free // SCAN, 'scan')} of width {WIDTH} fit" if name == "cache" else ""
    found = f"{folder}: {size(free)} free{f', {kind}' if kind else ''}{fit}"
    look = f"{name} folder"
    if free < LEAST_ROOM:
        return Finding(look, found, "bad", f"make room, or {_elsewhere(name)}")
    if files is not None and files < ENOUGH_FILES:
        return Finding(
            look,
            f"{found}, {plural(files, 'file')} more may be made",
            "note",
            "a cached scan is two files; ask for more",
        )
    if name == "cache" and free < ENOUGH_SCANS * SCAN:
        advice = f"a scan of width {WIDTH} takes {size(SCAN)}, of width 128 {size(64 * 128 * 128)}; {_elsewhere(name)}"
        return Finding(look, found, "note", advice)
    if name == "outputs" and free < ENOUGH_ROOM:
        return Finding(look, found, "note", f"a run takes up to 2 GB while its state is written; {_elsewhere(name)}")
    return Finding(look, found)


def _elsewhere(name: str) -> str:
    return f"choose another folder with {'--cache' if name == 'cache' else '--output-dir'}"


def _kind(folder: Path) -> str:
    """The kind of file system a folder lies on, as ``ext4`` or ``nfs4``."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    here, best = folder.resolve(), ("", "")
    for _, mounted, kind, *_ in (line.split(" ") for line in lines):
        point = mounted.replace("\\040", " ")
        if here.is_relative_to(point) and len(point) >= len(best[0]):
            best = point, kind
    return best[1]


# Speed


def measure_speed(folder: Path) -> Speed:
    """Write a file whole, as everything is written here, and read it again from the disk, where that can be had."""
    block = os.urandom(BLOCK)
    path, begin = folder / "speed", time.perf_counter()
    commit(path, lambda file: _fill(file, block, begin))
    written = time.perf_counter()
    cold = _forget(path)
    read = time.perf_counter()
    equal, count = True, 0
    with path.open("rb", buffering=0) as file:
        while got := file.read(BLOCK):
            equal, count = equal and got == block, count + len(got)
    now = time.perf_counter()
    return Speed(count / 1e6 / (written - begin), count / 1e6 / (now - read), cold, equal)


def _fill(file: BinaryIO, block: bytes, begin: float) -> None:
    for count in range(BLOCK, PROBE + 1, BLOCK):
        file.write(block)
        if count % SYNCED == 0:
            file.flush()
            os.fsync(file.fileno())
            if time.perf_counter() - begin > PATIENCE:
                return


def _forget(path: Path) -> bool:
    """Ask the system to keep nothing of a file in memory; whether one can."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def judge_speed(speed: Speed) -> Finding:
    """MB/s, and how many scans of the published width a second that is."""
    how = "" if speed.cold else " (perhaps from memory)"
    scans = speed.read * 1e6 / SCAN
    found = f"writes {speed.write:.0f} MB/s, reads {speed.read:.0f} MB/s{how}: {scans:.3g} scans/s of width {WIDTH}"
    if not speed.equal:
        advice = "what was read is not what was written; keep nothing on this disk, and have it and the memory tested"
        return Finding("cache speed", found, "bad", advice)
    if min(speed.read, speed.write) < SLOW:
        advice = "training may wait for the disk; put the cache on a local one: --cache /scratch/…"
        return Finding("cache speed", found, "note", advice)
    return Finding("cache speed", found)


# Names and locks


def replaces_whole(folder: Path) -> bool:
    """Whether a file takes another's place whole, and who has the old one open still reads that."""
    path = commit(folder / "replaced", lambda file: file.write(b"old"))
    if os.name == "nt":  # no open file is replaced there
        return commit(path, lambda file: file.write(b"new")).read_bytes() == b"new"
    with path.open("rb") as reader:
        commit(path, lambda file: file.write(b"new"))
        return path.read_bytes() == b"new" and reader.read() == b"old"


def locks(folder: Path) -> bool | None:
    """Whether a locked file is locked to others on this machine; None where the system has no ``flock``."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    path = commit(folder / "locked", lambda file: file.write(b"\0"))
    one, other = (os.open(path, os.O_RDWR) for _ in range(2))
    try:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    finally:
        os.close(one)
        os.close(other)


def judge_files(name: str, whole: bool, locked: bool | None) -> Finding:
    """Whether files are renamed whole and can be locked, here and by one machine: what others see cannot be told."""
    look, found = f"{name} files", "are replaced whole" if whole else "are not replaced whole"
    if locked is not None:
        found += " and can be locked" if locked else " and cannot be locked"
    if not whole:
        return Finding(look, found, "bad", f"a run that is killed may leave half a file; {_elsewhere(name)}")
    if locked is False:
        return Finding(
            look, found, "note", "let no two runs fill this cache at the same time, or choose another --cache"
        )
    return Finding(look, found)
