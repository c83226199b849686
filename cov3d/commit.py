"""Files appear whole or not at all: the one function through which every output is written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cov3d.errors import Cov3dError

TEMPORARY_PREFIX = ".tmp-"


def commit(path: str | Path, write: Callable[[BinaryIO], Any]) -> Path:
    """Write a file whole or not at all.

    ``write`` gets a binary file object. The bytes go to a temporary file in the same folder, are flushed to the disk
    and only then take the name ``path``; whoever reads it sees the old file or the new one, never a part.

    Raises:
        Cov3dError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    with advice_on_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return path


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


@contextmanager
def advice_on_disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``path`` into sentences."""
    try:
        yield
    except OSError as error:
        raise Cov3dError(f"cannot write {path}: {error.strerror or error}; choose a folder you may write to") from error
    except RuntimeError as error:  # torch.save hides a full disk as the context of a RuntimeError
        if isinstance(error.__context__, OSError):
            raise Cov3dError(f"cannot write {path}: {error.__context__.strerror}") from error
        raise


def check_writable(folder: str | Path) -> Path:
    """Make ``folder`` and write a probe into it, so that a refusal comes before hours of work and not after."""
    folder = Path(folder)
    probe = folder / f"{TEMPORARY_PREFIX}probe-{os.getpid()}"
    commit(probe, lambda file: file.write(b"\0"))
    probe.unlink(missing_ok=True)
    return folder


def _umask() -> int:
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
