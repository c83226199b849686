"""What a scan's values are: HU, or grey levels that somebody has windowed already. Told from the values themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cov3d.config import Reading

# A chest in HU has air below the one and bone or blood above the other.
AIR_BELOW, TISSUE_ABOVE = -500, 0
# In HU, air and lung lie here, and soft tissue here; each is more than a hundredth of any chest.
AIR, SOFT_TISSUE = (-1150, -500), (-150, 200)
LEAST = 0.01
# The most frequent value of TISSUE is fat or muscle: -115…65 in 18 real scans and slices, 35…45 in 300 drawn chests. Shifted
# by 250 HU it is at least 135, by -250 at most -185; MARKED of TISSUE lies within 25 HU of it, unless noise is that wide.
TISSUE, LIKELY = (-250, 400), (-170, 120)
MARKED = 0.22
COUNTED, STEP = (-1150, 400), 10  # HU of the histogram, and of one bin
SMOOTHED = 5  # bins; scans are noisy, and some have gaps between values
SAMPLED = 64  # pixels along the shorter side of a slice, about


@dataclass(frozen=True)
class Values:
    """What was seen of a scan's values: their ends, how many are no numbers; of a sample, a histogram over ``COUNTED``."""

    low: float
    high: float
    not_finite: int
    count: int
    whole: bool  # all are whole numbers
    sampled: int
    histogram: np.ndarray

    def share(self, ends: tuple[int, int]) -> float:
        """How much of the sample lies between two values."""
        return float(self.histogram[_bins(ends)].sum()) / max(self.sampled, 1)

    def peak(self, ends: tuple[int, int]) -> tuple[int, float]:
        """The most frequent value between two, and how much of what lies between them is near it."""
        part = self.histogram[_bins(ends)]
        smooth = np.convolve(part, np.ones(SMOOTHED), "same")
        place = int(smooth.argmax())
        return ends[0] + STEP * place + STEP // 2, float(smooth[place]) / max(int(part.sum()), 1)

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
    low, high, not_finite, count, whole = np.inf, -np.inf, 0, 0, True
    sampled, histogram = 0, np.zeros((COUNTED[1] - COUNTED[0]) // STEP, int)
    for pixels in slices:
        count += pixels.size
        step = max(1, min(pixels.shape) // SAMPLED)
        sample = pixels[::step, ::step]
        sampled += sample.size
        histogram += np.histogram(sample, len(histogram), COUNTED)[0]
        if pixels.dtype.kind == "f":
            finite = np.isfinite(pixels)
            if not finite.all():
                not_finite += pixels.size - int(np.count_nonzero(finite))
                pixels = pixels[finite]
            whole = whole and bool((pixels == np.rint(pixels)).all())
        if pixels.size:
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
    return Values(low, high, not_finite, count, whole, sampled, histogram)


def unit_of(values: Values, reading: Reading) -> Unit:
    """What the values are: as ``--range`` says, or as they look, with a warning where that is not sure."""
    if reading.range == "hu":
        return Unit("HU")
    share = values.low >= 0 and values.high <= 1 and not values.whole  # of white
    if reading.range == "grey":
        beyond = values.low < 0 or values.high > 255
        return Unit("grey", 255.0 if share else 1.0, (f"grey levels {values} cut to 0…255",) if beyond else ())
    if values.low <= AIR_BELOW and values.high >= TISSUE_ABOVE:
        return Unit("HU", 1.0, _doubts(values))
    if values.low >= 0 and (share or 64 < values.high <= 255):
        warning = f"values {values} taken as grey levels, already windowed; say --range hu if they are HU"
        return Unit("grey", 255.0 if share else 1.0, (warning,))
    advice = "; do they lack an offset of -1024?" if values.low >= 0 and values.high > 1000 else ""
    return Unit("HU", 1.0, (f"values {values} do not look like HU of a chest{advice}",))


def _doubts(values: Values) -> tuple[str, ...]:
    """What speaks against HU in values that have the ends of HU."""
    if values.share(SOFT_TISSUE) < LEAST:
        return ("no soft tissue near 0 HU; are the values shifted?",)
    airless = values.share(AIR) < LEAST
    tissue, share = values.peak(TISSUE)
    if not airless and (LIKELY[0] <= tissue <= LIKELY[1] or share < MARKED):
        return ()
    air = "no air" if airless else f"air at {values.peak(AIR)[0]}"
    return (f"values are unlikely for HU: {air}, soft tissue at {tissue}; is the rescale missing?",)


def _bins(ends: tuple[int, int]) -> slice:
    first, last = ((end - COUNTED[0]) // STEP for end in ends)
    return slice(first, last)
