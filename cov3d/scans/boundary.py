"""Where readers touch the disk, and the boundary at which whatever they raise becomes a ScanError."""

from __future__ import annotations

import errno
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cov3d.errors import ScanError

T = TypeVar("T")

# What a network drive says when it hiccups; the same read often succeeds a moment later.
PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT}
PAUSES = (0.1, 0.5, 2.0)  # seconds


@contextmanager
def boundary(path: Path) -> Iterator[None]:
    """The boundary of every reader: whatever goes wrong inside leaves as a ScanError that names file and cause.

    Only a library's type of error is passed on, never its text: that may hold what stands in a patient's header.
    """
    try:
        with unheard():
            yield
    except ScanError:
        raise
    except FileNotFoundError:
        raise ScanError(path, "is not there") from None
    except PermissionError:
        raise ScanError(path, "permission denied; ask its owner for the right to read it") from None
    except (MemoryError, RecursionError) as error:
        raise ScanError(path, f"cannot be held in memory ({type(error).__name__}); is the file damaged?") from error
    except OSError as error:
        raise ScanError(path, f"cannot be read: {error.strerror or type(error).__name__}") from error
    except Exception as error:  # libraries raise almost anything on a damaged file; what it is, is always the same
        raise ScanError(path, f"is damaged or not what its name says ({type(error).__name__})") from error


@contextmanager
def unheard() -> Iterator[None]:
    """Libraries' warnings are not shown: they may quote a patient's header, and what concerns the scan is said by readers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def patiently(action: Callable[[], T]) -> T:
    """What ``action`` returns, tried again a few times if the drive it reads from hiccups."""
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            time.sleep(pause)
    return action()


def check_regular(path: Path) -> None:
    """Raise a ScanError unless ``path`` is an ordinary file; a pipe or a device would block for ever or never end."""
    if not stat.S_ISREG(patiently(path.stat).st_mode):
        raise ScanError(path, "is not an ordinary file")


def look_of(first_bytes: bytes) -> str:
    """What a file that is not a scan seems to be, for the error; from its first bytes."""
    if not first_bytes:
        return "is empty (zero bytes); copy it again"
    if not any(first_bytes):
        return "holds only zeros, as after a power failure; copy it again"
    if first_bytes.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; run 'git lfs pull'"
    if first_bytes.lstrip()[:1] == b"<":
        return "is a web page or XML, not a scan; download it again"
    return "is not what its name says"
