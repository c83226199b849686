"""The pixels of DICOM images, as HU: decoded when asked for, padding made air, the rescale of each image applied once."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, UID_dictionary

from cov3d.scans.boundary import unheard
from cov3d.scans.dicom_files import Part
from cov3d.scans.scan import SliceError

AIR_HU = -3024.0  # what padding becomes; any window makes it black


@dataclass(frozen=True)
class Turn:
    """How an image's rows and columns become front to back and patient right to left."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, turn: np.ndarray) -> Turn:
        """That of nibabel's orientation transform from (slice, row, column) to (D, H, W)."""
        flipped = {int(axis): flip < 0 for axis, flip in turn}
        return cls(transpose=int(turn[1, 0]) == 2, flip_rows=flipped[1], flip_columns=flipped[2])

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if self.transpose:
            pixels = pixels.T
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True)
class Image:
    """One image: a file, or one frame of it, and its rescale to HU."""

    part: Part
    frame: int | None  # None where the file is one image
    slope: float
    intercept: float


class Decoder:
    """Decodes images, and keeps the file that it decoded last: of one with many frames all are asked for in turn."""

    def __init__(self) -> None:
        self._part: Part | None = None
        self._dataset = Dataset()

    def __call__(self, part: Part, frame: int | None) -> np.ndarray:
        """The stored values of an image ``(rows, columns)`` as float32, padding as NaN."""
        if part is not self._part:
            self._part, self._dataset = None, Dataset()  # not two of them in memory
            self._part, self._dataset = part, _whole_dataset(part)
        return _stored_values(self._dataset, frame)


@dataclass(frozen=True)
class DicomSlices(Sequence):
    """Images as slices: ``slices[k]`` is float32 HU ``(H, W)``."""

    images: Sequence[Image]
    turn: Turn
    decode: Decoder = field(default_factory=Decoder)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        try:
            with unheard():
                stored = self.decode(image.part, image.frame)
        except Exception as error:
            raise SliceError(index, f"{image.part.name} {cause_of(error)}") from error
        hu = stored * np.float32(image.slope) + np.float32(image.intercept)
        hu[np.isnan(stored)] = AIR_HU
        return np.ascontiguousarray(self.turn(hu))

    def times(self, factor: float) -> DicomSlices:
        """The same, all values multiplied."""
        images = [
            replace(image, slope=factor * image.slope, intercept=factor * image.intercept) for image in self.images
        ]
        return replace(self, images=images)


def _whole_dataset(part: Part) -> Dataset:
    """A file with its pixels; one too old to say its transfer syntax gets the one that it turned out to be written in."""
    dataset = dcmread(io.BytesIO(part.read()), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
    return dataset


def _stored_values(dataset: Dataset, frame: int | None) -> np.ndarray:
    """Stored values as float32, padding as NaN; bits above the stored ones, where some keep overlays, are cleared.

    MONOCHROME1 is a way to show an image, not to store HU: nothing is inverted.
    """
    stored = pixel_array(dataset, raw=True, index=frame)
    values = stored.astype(np.float32)
    values[_padding(dataset, stored)] = np.nan
    return values


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    if stored.dtype.kind == "u" and high < 0:  # written as a signed number: the same bits
        low, high = (number + 2 ** (8 * stored.dtype.itemsize) for number in (low, high))
    return (stored >= low) & (stored <= high)


def cause_of(error: BaseException) -> str:
    """Why an image cannot be decoded; the library's text may hold what stands in a header, so none of it is passed on."""
    text = str(error)
    if "less than expected" in text or "truncated" in text.lower() or isinstance(error, EOFError):
        return "is truncated"
    return f"is damaged ({type(error).__name__})"


def undecodable(syntax: UID | None) -> str | None:
    """The name of a transfer syntax that nothing here decodes, else None."""
    if syntax is None:
        return None
    if syntax not in UID_dictionary:
        return "an unknown transfer syntax"
    if syntax.is_compressed and not syntax.is_deflated:
        try:
            if not get_decoder(syntax).is_available:
                return syntax.name
        except NotImplementedError:
            return syntax.name
    return None
