"""A scan in canonical orientation, its slices decoded one at a time, and what is forgiven in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np

from cov3d.config import Reading
from cov3d.errors import ScanError

SUPPORTED = "folders of 0.jpg, 1.jpg, … or .png; folders or .zip of DICOM; .nii, .nii.gz, .mha, .mhd, .nrrd"
# A scan fails when more than this share of its slices cannot be read.
UNREADABLE_SHARE = 0.1
# Larger slices or scans are refused before they are decoded: no chest CT is, and a few bytes can promise any size.
LARGEST_SIDE = 4096
MOST_SLICES = 4096

# Kinds of flaws: slices left out or odd, which only --strict refuses; geometry that is uneven, which --allow-gaps lets in.
LOSS: Final = "loss"
GAP: Final = "gap"


class Flaw(NamedTuple):
    """Something wrong with a scan that can be forgiven, by its kind."""

    kind: Literal["loss", "gap"]
    text: str

    def forgiven(self, reading: Reading) -> bool:
        """Whether a scan with this flaw is read."""
        return reading.allow_gaps if self.kind == GAP else not reading.strict

    def refusal(self, reading: Reading) -> str:
        """Why it is not read, and what to do."""
        if self.kind == LOSS:
            return f"{self.text}; --strict refuses that"
        return f"{self.text}; say --allow-gaps{' instead of --strict' if reading.strict else ''} to read it as it is"


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
    :attr:`voxels` is all of them. ``affine`` ``(4, 4)`` takes the indices (i, j, k) of the voxels as they are stored to
    mm Right, Anterior, Superior; :func:`cov3d.scans.volume.canonical_turn` turns those voxels to these axes. Pictures have
    none.
    """

    source: Path
    slices: Sequence[np.ndarray]
    unit: Literal["HU", "grey"]  # grey levels are 0…255, already windowed
    spacing: tuple[float, float, float] | None = None  # mm along D, H, W
    warnings: tuple[str, ...] = ()
    flaws: tuple[Flaw, ...] = ()  # all of them forgiven by ``reading``
    reading: Reading = field(default_factory=Reading)
    positions: np.ndarray = field(default_factory=lambda: np.empty(0))  # (n,) along D, any unit, increasing
    listed: int = 0  # slices the source lists, unreadable ones among them
    affine: np.ndarray | None = None

    def __post_init__(self) -> None:
        for flaw in self.flaws:
            if not flaw.forgiven(self.reading):
                raise ScanError(self.source, flaw.refusal(self.reading))
        if not len(self.slices):
            raise ScanError(self.source, "has no slice that can be read")
        if not len(self.positions):
            object.__setattr__(self, "positions", np.arange(len(self.slices), dtype=float))
        if not self.listed:
            object.__setattr__(self, "listed", len(self.slices))

    @property
    def remarks(self) -> tuple[str, ...]:
        """Everything that there is to say about the scan: forgiven flaws, then warnings."""
        return (*(flaw.text for flaw in self.flaws), *self.warnings)

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
        ScanError: more than a tenth of the slices cannot be read, or one if the scan is read strictly.
    """
    causes = {}
    for index in range(len(scan.slices)):
        try:
            scan.slices[index]
        except SliceError as error:
            causes[index] = error.cause
    kept = [index for index in range(len(scan.slices)) if index not in causes]
    check_loss(scan.source, scan.listed - len(kept), scan.listed, next(iter(causes.values()), ""))
    text = f"{len(causes)} of {scan.listed} slices unreadable and left out ({next(iter(causes.values()))})"
    return replace(
        scan,
        slices=Selection(scan.slices, kept),
        positions=scan.positions[kept],
        flaws=(*scan.flaws, Flaw(LOSS, text)),
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
