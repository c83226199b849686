"""From a scan to a tensor: window, bicubic resize in plane, cubic spline along depth, eight bits.

As Cov3d does (Turnbull, arXiv 2207.12218, section 3.1), but streaming: slices are decoded, shrunk and dropped one by
one, so that memory does not grow with the number of slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from cov3d.config import Preprocessing
from cov3d.console import few, plural
from cov3d.scans.continuity import ODD, REPEATED, odd_slices, probe, repeated_slices
from cov3d.scans.crop import LOOKED_AT, NO_LUNGS, crop_to_lungs, window_of
from cov3d.scans.lungs import cut_off, glance_at_lungs
from cov3d.scans.scan import Scan, SliceError, without_unreadable
from cov3d.scans.spline import add_band, spline_matrix

WHITE = 255.0
BLANK = "blank"
SLICES_AT_ONCE = 16
BANDS = 4  # of a CMYK picture
# A scan whose grey levels differ by less than this shows nothing.
STRUCTURE = 4
# In tensors narrower than this nobody can tell lungs from other darkness.
LEAST_WIDTH = 48


def preprocess(scan: Scan, settings: Preprocessing) -> np.ndarray:
    """The scan as uint8 ``(1, D, H, W)``, 0 black and 255 white of the window.

    Slices that turn out to be unreadable are left out.

    Raises:
        ScanError: more than a tenth of the slices cannot be read.
    """
    return prepare(scan, settings)[0]


def prepare(scan: Scan, settings: Preprocessing) -> tuple[np.ndarray, Scan]:
    """The same, and the scan with everything that was found out on the way among its remarks."""
    try:
        return _prepare(scan, settings)
    except SliceError:
        return _prepare(without_unreadable(scan), settings)


def _prepare(scan: Scan, settings: Preprocessing) -> tuple[np.ndarray, Scan]:
    window = window_of(scan, settings)
    if settings.crop == "lungs":
        depth, _, width = LOOKED_AT
        small, _ = _stream(scan, replace(settings, depth=depth, width=width))
        scan = crop_to_lungs(scan, small[0], window)
    tensor, probes = _stream(scan, settings)
    return tensor, replace(scan, warnings=(*scan.warnings, *_remarks(tensor[0], probes, window, settings)))


def _remarks(volume: np.ndarray, probes: np.ndarray, window: tuple[float, float], settings: Preprocessing) -> list[str]:
    """What a tensor ``(D, H, W)``, and a few pixels of each slice, show of the scan."""
    if int(volume.max()) - int(volume.min()) < STRUCTURE:
        return [f"{BLANK}: the scan shows no structure"]
    remarks = []
    if settings.crop == "none" and settings.width >= LEAST_WIDTH:
        lungs = glance_at_lungs(volume, window)
        remarks += cut_off(lungs) if lungs is not None else [f"{NO_LUNGS}: is this a chest CT?"]
    for places, said, why in (
        (odd_slices(probes), ODD, "damaged"),
        (repeated_slices(probes, STRUCTURE), REPEATED, "copied twice"),
    ):
        if len(places):
            remarks.append(
                f"{plural(len(places), 'slice')} {said} (from the head: {few([str(k) for k in places])}); {why}?"
            )
    return remarks


def _stream(scan: Scan, settings: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """The tensor, and a few pixels of each slice."""
    depth, height, width = settings.shape
    matrix = spline_matrix(scan.positions, depth)
    volume = np.zeros((depth, height * width), np.float32)
    shrunk = np.empty((SLICES_AT_ONCE, height * width), np.float32)
    probes = []
    count = len(scan.slices)
    for first in range(0, count, SLICES_AT_ONCE):
        last = min(first + SLICES_AT_ONCE, count)
        for begin in range(first, last, BANDS):
            end = min(begin + BANDS, last)
            slices = [to_grey(scan, index, settings) for index in range(begin, end)]
            shrunk[begin - first : end - first] = shrink(slices, width, height)
        add_band(volume, matrix[:, first:last], shrunk[: last - first])
        probes.append(probe(shrunk[: last - first]))
    np.clip(volume, 0, WHITE, out=volume)
    np.rint(volume, out=volume)
    return volume.astype(np.uint8).reshape(1, depth, height, width), np.concatenate(probes)


def to_grey(scan: Scan, index: int, settings: Preprocessing) -> np.ndarray:
    """Slice ``index`` in grey levels 0…255 ``(H, W)``: uint8 as stored, or float32 HU through the window."""
    pixels = scan.slices[index]
    if pixels.dtype == np.uint8:
        return pixels
    low, high = (0.0, WHITE) if scan.unit == "grey" else (settings.window_low, settings.window_high)
    pixels = np.nan_to_num(pixels, copy=False, nan=low, posinf=low, neginf=low)
    np.clip(pixels, low, high, out=pixels)
    pixels -= low
    pixels *= WHITE / (high - low)
    return pixels


def shrink(slices: Sequence[np.ndarray], width: int, height: int) -> np.ndarray:
    """Up to four slices ``(H, W)`` resized by Pillow's bicubic, which low-passes when it shrinks: ``(k, height * width)``.

    8-bit slices are resized as the bands of one picture: the same arithmetic for each, in two thirds of the time. (CMYK,
    because Pillow would multiply the bands of RGBA with the fourth.)
    """
    pictures = [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in slices]
    if pictures[0].mode == "L":
        bands = pictures + pictures[-1:] * (BANDS - len(pictures))
        resized = np.asarray(_resize(Image.merge("CMYK", bands), width, height))
        return resized.reshape(-1, BANDS)[:, : len(pictures)].T
    resized = np.stack([np.asarray(_resize(picture, width, height)) for picture in pictures])
    # 8-bit resizing ends in 0…255 by itself; so that HU volumes and slices agree, float overshoot is cut as well.
    return np.clip(resized, 0, WHITE).reshape(len(pictures), -1)


def _resize(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.BICUBIC)
