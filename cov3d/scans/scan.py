"""A scan in canonical orientation, its slices decoded one at a time, and the boundary where readers' errors end."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cov3d.errors import ScanError

FORMS = "folders of 0.jpg, 1.jpg, … or .png; .nii; .nii.gz"
# A scan fails when more than this share of its slices cannot be read.
UNREADABLE_SHARE = 0.1
# Larger slices or scans are refused before they are decoded: no chest CT is, and a few bytes can promise any size.
LARGEST_SIDE = 4096
MOST_SLICES = 4096


class SliceError(Exception):
    """One slice that cannot be decoded."""

    def __init__(self, index: int, cause: str):
        super().__init__(cause)
        self.index = index
        self.cause = cause


@dataclass(frozen=True)
class Scan:
    """A chest CT scan.

    Array axes point to Inferior, Posterior and Left: slice 0 at the head, rows front to back, columns patient right to
    left, the radiological view. ``slices`` is a sequence of ``(H, W)`` arrays, decoded when asked for;
    :attr:`voxels` is all of them.
    """

    source: Path
    slices: Sequence[np.ndarray]
    unit: Literal["HU", "grey"]  # grey levels are 0…255, already windowed
    spacing: tuple[float, float, float] | None = None  # mm along D, H, W
    warnings: tuple[str, ...] = ()
    positions: np.ndarray = field(default_factory=lambda: np.empty(0))  # (n,) along D, any unit, increasing
    listed: int = 0  # slices the source lists, unreadable ones among them

    def __post_init__(self) -> None:
        if not len(self.slices):
            raise ScanError(self.source, "has no slice that can be read")
        if not len(self.positions):
            object.__setattr__(self, "positions", np.arange(len(self.slices), dtype=float))
        if not self.listed:
            object.__setattr__(self, "listed", len(self.slices))

    @property
    def voxels(self) -> np.ndarray:
        """The whole volume ``(D, H, W)``, in :attr:`unit`."""
        try:
            return np.stack(list(self.slices))
        except SliceError:
            return np.stack(list(without_unreadable(self).slices))


def without_unreadable(scan: Scan) -> Scan:
    """The same scan without the slices that cannot be decoded, the others staying at their places along the body.

    Raises:
        ScanError: more than a tenth of the slices cannot be read.
    """
    causes = {}
    for index in range(len(scan.slices)):
        try:
            scan.slices[index]
        except SliceError as error:
            causes[index] = error.cause
    kept = [index for index in range(len(scan.slices)) if index not in causes]
    check_loss(scan.source, scan.listed - len(kept), scan.listed, next(iter(causes.values()), ""))
    warning = f"{len(causes)} of {scan.listed} slices unreadable and left out ({next(iter(causes.values()))})"
    return replace(
        scan,
        slices=Selection(scan.slices, kept),
        positions=scan.positions[kept],
        warnings=(*scan.warnings, warning),
    )


def check_loss(source: Path, lost: int, listed: int, cause: str) -> None:
    """Raise a ScanError if too many slices of a scan are lost."""
    if lost > UNREADABLE_SHARE * listed:
        raise ScanError(source, f"{lost} of {listed} slices cannot be read ({cause}); copy the scan again")


class Selection(Sequence):
    """Some of a sequence's items, taken when asked for."""

    def __init__(self, items: Sequence, indices: Sequence[int]):
        self.items = items
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        return self.items[self.indices[index]]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """The boundary of every reader: whatever goes wrong inside leaves as a ScanError that names file and cause.

    Only a library's type of error is passed on, never its text: that may hold what stands in a patient's header.
    """
    try:
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


def check_regular(path: Path) -> None:
    """Raise a ScanError unless ``path`` is an ordinary file; a pipe or a device would block for ever or never end."""
    if not stat.S_ISREG(path.stat().st_mode):
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
