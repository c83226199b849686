"""What a scan's values are: HU, or grey levels that somebody has windowed already. Told from the values themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cov3d.config import Reading

# A chest in HU has air below the one and bone or blood above the other.
AIR_BELOW, TISSUE_ABOVE = -500, 0
# Soft tissue lies here, and is more than a hundredth of any chest.
SOFT_TISSUE = (-150, 200)
LEAST_SOFT_TISSUE = 0.01


@dataclass(frozen=True)
class Values:
    """What was seen of a scan's values: their ends, how many are no numbers, how many are soft tissue if they are HU."""

    low: float
    high: float
    not_finite: int
    count: int
    soft_tissue: int
    whole: bool  # all are whole numbers

    def __str__(self) -> str:
        return f"{self.low:g}…{self.high:g}"


@dataclass(frozen=True)
class Unit:
    """How values are meant; ``factor`` brings grey levels to 0…255."""

    name: Literal["HU", "grey"]
    factor: float = 1.0
    warnings: tuple[str, ...] = ()


def measure(slices: Iterable[np.ndarray]) -> Values:
    """Look at every value of some slices ``(H, W)``."""
    low, high, not_finite, count, soft_tissue, whole = np.inf, -np.inf, 0, 0, 0, True
    for pixels in slices:
        count += pixels.size
        if pixels.dtype.kind == "f":
            finite = np.isfinite(pixels)
            if not finite.all():
                not_finite += pixels.size - int(np.count_nonzero(finite))
                pixels = pixels[finite]
            whole = whole and bool((pixels == np.rint(pixels)).all())
        if pixels.size:
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
        soft_tissue += int(np.count_nonzero((pixels > SOFT_TISSUE[0]) & (pixels < SOFT_TISSUE[1])))
    return Values(low, high, not_finite, count, soft_tissue, whole)


def unit_of(values: Values, reading: Reading) -> Unit:
    """What the values are: as ``--range`` says, or as they look, with a warning where that is not sure."""
    if reading.range == "hu":
        return Unit("HU")
    share = values.low >= 0 and values.high <= 1 and not values.whole  # of white
    if reading.range == "grey":
        beyond = values.low < 0 or values.high > 255
        return Unit("grey", 255.0 if share else 1.0, (f"grey levels {values} cut to 0…255",) if beyond else ())
    if values.low <= AIR_BELOW and values.high >= TISSUE_ABOVE:
        lacking = values.soft_tissue < LEAST_SOFT_TISSUE * values.count
        return Unit("HU", 1.0, ("no soft tissue near 0 HU; are the values shifted?",) if lacking else ())
    if values.low >= 0 and (share or 64 < values.high <= 255):
        warning = f"values {values} taken as grey levels, already windowed; say --range hu if they are HU"
        return Unit("grey", 255.0 if share else 1.0, (warning,))
    advice = "; do they lack an offset of -1024?" if values.low >= 0 and values.high > 1000 else ""
    return Unit("HU", 1.0, (f"values {values} do not look like HU of a chest{advice}",))
