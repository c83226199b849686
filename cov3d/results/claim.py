"""A file that one run at a time may write: the system's lock, which goes with the process, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cov3d.commit import advice_on_disk_errors
from cov3d.errors import Cov3dError
from cov3d.locks import take

NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # else who opens a pipe waits for ever


class Claim:
    """An output that is this run's alone, until :meth:`release` or the end of the process.

    What is locked is the file, not its name. So whoever puts another file in its place says :meth:`renew`, and keeps the old
    one until then. Where a drive knows no locks there is no protection, and no error either.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: int | None = None
        self.renew()

    def renew(self) -> None:
        """Hold the file that has the name now; an empty one, if there was none.

        Raises:
            Cov3dError: another run holds it, or it cannot be written.
        """
        with advice_on_disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(self.path, os.O_RDWR | os.O_CREAT)
        self.release()
        self._descriptor = descriptor

    def release(self) -> None:
        """Let other runs write it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def claimed(path: Path) -> Iterator[Claim]:
    """A claim for as long as the block lasts."""
    claim = Claim(path)
    try:
        yield claim
    finally:
        claim.release()


@contextmanager
def unclaimed(path: Path) -> Iterator[None]:
    """A file that no run writes while the block lasts; others may read it, too.

    Raises:
        Cov3dError: a run is writing it.
    """
    descriptor = None
    with contextlib.suppress(OSError):  # not there, or not ours to open: reading it will say so
        descriptor = _lock(path, os.O_RDONLY | NO_WAIT, shared=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path, flags: int, shared: bool = False) -> int | None:
    """A descriptor of the file that has the name, locked; if the file was replaced meanwhile, of the one that is there then.

    None where the system has no locks, which is one that replaces no open files.

    Raises:
        Cov3dError: another run has locked it.
        OSError: it cannot be opened.
    """
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            if not take(descriptor, wait=False, shared=shared):
                os.close(descriptor)
                return None
        except BlockingIOError:
            os.close(descriptor)
            raise Cov3dError(
                f"{path}: another run is writing it at this moment; wait for its end, or name another --output"
            ) from None
        except OSError:  # this drive knows no locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
