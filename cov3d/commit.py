"""Files appear whole or not at all: the one function through which every output is written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cov3d.errors import Cov3dError
from cov3d.locks import take

TEMPORARY_PREFIX = ".tmp-cov3d-"  # nobody else's, since what a killed run left is removed
TRIES = 3
UMASK = threading.Lock()  # is read by being changed
OLD = 3600.0  # seconds after which a temporary file is nobody's, where locks cannot tell
ALMOST_NOTHING = 2**20  # bytes free on a disk that is full

AGAIN = "run the same command again, with --resume where there is that"
FULL = f"the disk is full: free some space and {AGAIN}"
OTHERWISE = "choose a folder you may write to"
GONE = f"the drive does not answer: when it is there again, {AGAIN}"
ADVICE = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: f"your share of the disk is used up: free some space and {AGAIN}",
    errno.EROFS: "nothing can be written to this drive; choose another folder",
    errno.EMFILE: f"too many files are open: raise the limit ('ulimit -n 4096') and {AGAIN}",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT), GONE),
}


def commit(path: str | Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Write a file whole or not at all.

    ``write`` gets a binary file object. The bytes go to a temporary file in the same folder, are flushed to the disk
    and only then take the name ``path``; whoever reads it sees the old file or the new one, never a part. Until then the
    temporary file is locked, so that :func:`sweep` can tell it from what a killed process left.

    Raises:
        Cov3dError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    with advice_on_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            if _written(path, write):
                _sync_folder(path.parent)
                return path
        raise FileNotFoundError(errno.ENOENT, "somebody removes temporary files")


def commit_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8, in the form of :func:`as_written`."""
    data = as_written(text).encode()
    return commit(path, lambda file: file.write(data))


def as_written(text: str) -> str:
    """Text as it is read again: bytes of file names that are no UTF-8 become ``\\udcff``, since a name never loses a file."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def commit_json(path: str | Path, content: Any) -> Path:
    """Write ``content`` as readable JSON."""
    return commit_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sweep(folder: str | Path) -> None:
    """Remove what killed processes left half-written in a folder; what a living one writes is locked and stays."""
    for leftover in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):  # what cannot be removed is in nobody's way
            _remove_if_dead(leftover)


@contextmanager
def advice_on_disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``path`` into sentences."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal = _refusal(error, path.parent)
        if refusal is None:
            raise
        raise Cov3dError(f"cannot write {path}: {refusal}") from error


def check_writable(folder: str | Path) -> Path:
    """Make ``folder`` and write a probe into it, so that a refusal comes before hours of work and not after."""
    folder = Path(folder)
    probe = folder / f"{TEMPORARY_PREFIX}probe-{os.getpid()}"
    try:
        commit(probe, lambda file: file.write(b"\0"))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return folder


def _written(path: Path, write: Callable[[BinaryIO], Any]) -> bool:
    """Write a file by way of a temporary one; False if somebody's sweep took that.

    It may come before the lock, or from another machine where a drive does not carry locks from one to the other.
    """
    descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with contextlib.suppress(OSError):  # not every network drive knows locks
                take(descriptor)
            write(file)
            file.flush()
            os.fsync(descriptor)
            if os.name == "nt":  # Windows renames no open file
                file.close()
            try:
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            except FileNotFoundError:
                return False
    except BaseException:
        with contextlib.suppress(OSError):  # of a drive that is gone; what happened before is to be told
            temporary.unlink(missing_ok=True)
        raise
    return True


def _remove_if_dead(leftover: Path) -> None:
    """Remove a temporary file that nobody holds a lock on; judged by its age where locks are not supported."""
    descriptor = os.open(leftover, os.O_RDWR)
    try:
        dead = take(descriptor, wait=False)  # whoever wrote it is gone, so that nobody can give it a name any more
    except BlockingIOError:
        return
    except OSError:
        dead = False
    finally:
        os.close(descriptor)
    if dead or time.time() - leftover.stat().st_mtime > OLD:
        leftover.unlink(missing_ok=True)


def _refusal(error: BaseException, folder: Path) -> str | None:
    """What the operating system refuses and what to do about it; None if it is not the system that complains."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(
        cause, OSError
    ):  # torch.save hides a full disk in a RuntimeError's context
        cause = cause.__cause__ or cause.__context__
    if cause is not None and cause.errno is not None:
        return f"{cause.strerror}; {ADVICE.get(cause.errno, OTHERWISE)}"
    if _is_full(folder):  # some libraries only count the bytes that were taken
        return FULL
    return None if cause is None else f"{cause}; {OTHERWISE}"


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < ALMOST_NOTHING
    except OSError:
        return False


def _umask() -> int:
    with UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse; the rename has happened all the same
        pass
    finally:
        os.close(descriptor)
