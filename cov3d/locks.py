"""The system's locks on files and folders, which go with the process, however that ends.

Not every drive knows locks, and Windows has no such ones; there nobody is kept out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cov3d.errors import Cov3dError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def take(descriptor: int, wait: bool = True, shared: bool = False) -> bool:
    """Take the lock on an open file, alone or ``shared``, until that is closed; whether there are locks at all.

    Raises:
        BlockingIOError: somebody else has it, and nobody waits.
        OSError: the drive does not know locks.
    """
    if fcntl is not None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    return fcntl is not None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process that does something about an existing file; where there are no locks, just do it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)  # network drives lock only what may be written
            stack.callback(os.close, descriptor)
            take(descriptor)
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only run that writes a folder.

    Raises:
        Cov3dError: another run writes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            take(descriptor, wait=False)
        except BlockingIOError:
            raise Cov3dError(
                f"{folder}: another run writes it at this moment; wait for its end, or name another"
            ) from None
        except OSError:  # Windows opens no folder
            pass
        yield
