"""What DICOM headers say of each image: where it lies in the patient, its rescale, and whether it is CT at all."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pydicom.config
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    UID_dictionary,
)

from cov3d.errors import ScanError
from cov3d.scans.boundary import look_of, patiently
from cov3d.scans.dicom_files import HEAD, LARGEST_FILE, Part
from cov3d.scans.dicom_pixels import undecodable
from cov3d.scans.scan import LARGEST_SIDE, MOST_SLICES

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote headers

CT = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
# In ImageType: what is made of many slices, and shows no place of its own.
PROJECTIONS = {"MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "SSD", "VOLUME_RENDER", "SURFACE_RENDER"}
# RescaleTypes (PS3.3 C.11.1.1.2): iodine, effective atomic number, density, …; some write HU in their own words.
NOT_HU = {"OD", "MGML", "Z_EFF", "ED", "EDW", "PCT"}
RESCALE = "PixelValueTransformationSequence"
FARTHEST_MM = 10_000
TRANSFER_SYNTAX = Tag("TransferSyntaxUID")
TAGS: list[BaseTag] = [
    Tag(name)
    for name in (
        "SOPClassUID",
        "Modality",
        "ImageType",
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "AcquisitionNumber",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "Rows",
        "Columns",
        "SamplesPerPixel",
        "NumberOfFrames",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "BitsStored",
        "HighBit",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
    )
]


@dataclass(frozen=True)
class Slice:
    """One CT image, and where it lies: mm in the patient's axes Left, Posterior, Superior."""

    part: Part
    frame: int | None  # of a file that holds several
    series: str
    patient: str
    study: str
    acquisition: str
    size: tuple[int, int]  # rows, columns
    spacing: np.ndarray  # (2,) mm between rows, between columns
    orientation: np.ndarray  # (2, 3): along a row, down a column
    position: np.ndarray  # (3,) of the first pixel's middle
    slope: float
    intercept: float
    unsaid: tuple[str, ...]  # which of these the header does not say
    derived: bool  # computed from other images, not from what the scanner measured
    undecodable: str | None  # the name of its transfer syntax, if nothing here decodes it


@dataclass
class Headers:
    """All that a scan's headers say: its CT images, how many others for which reason, and what cannot be read."""

    slices: list[Slice] = field(default_factory=list)
    aside: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    listed: int = 0


class _Aside(Exception):
    """The reason why an image is no slice of the scan."""


class _Lost(Exception):
    """The reason why a CT image, which may well be a slice of the scan, cannot be placed in it."""


def header(part: Part, tags: Sequence[BaseTag]) -> Dataset:
    """Some elements of a file's header.

    Raises:
        ScanError: it is not DICOM, or damaged; never with a word of what stands in it.
        OSError: it cannot be read.
    """
    return patiently(lambda: _header(part, tags))


def _header(part: Part, tags: Sequence[BaseTag]) -> Dataset:
    try:
        with part.open() as file:
            _check_inflation(part, file)
            return _parse(file, tags)
    except (InvalidDicomError, EOFError) as error:
        with part.open() as file:
            raise ScanError(part.name, look_of(file.read(64))) from error
    except (OSError, ScanError):
        raise
    except Exception as error:
        raise ScanError(part.name, f"has a damaged header ({type(error).__name__})") from error


def _parse(file: BinaryIO, tags: Sequence[BaseTag]) -> Dataset:
    """Headers with the magic number, and old ones without it if they say what they are."""
    try:
        return dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    except InvalidDicomError:
        file.seek(0)
        found = dcmread(file, stop_before_pixels=True, specific_tags=list(tags), force=True)
        if "SOPClassUID" not in found:
            raise
        return found


def _after_meta(tag: int, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


def _check_inflation(part: Part, file: BinaryIO) -> None:
    """Raise a ScanError if a deflated file inflates to more than any file may hold: pydicom inflates whatever comes."""
    file.seek(HEAD if file.read(HEAD)[128:] == b"DICM" else 0)
    meta = {element.tag: element.value for element in data_element_generator(file, False, True, stop_when=_after_meta)}
    deflated = (meta.get(TRANSFER_SYNTAX) or b"").strip(b"\0 ") == DeflatedExplicitVRLittleEndian.encode()
    stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while deflated and not stream.eof and (packed := stream.unconsumed_tail or file.read(2**16)):
        size += len(stream.decompress(packed, 2**22))
        if size > LARGEST_FILE:
            raise ScanError(part.name, f"inflates to more than {LARGEST_FILE >> 30} GiB, which no CT image is")
    file.seek(0)


def read_headers(files: Sequence[Part]) -> Headers:
    """Read the header of every file."""
    headers = Headers(listed=len(files))
    for part in files:
        try:
            dataset = header(part, TAGS)
        except ScanError as error:
            headers.unreadable.append(f"{part.name} {error.cause}")
            continue
        except OSError as error:  # a link to nothing, or no right to read it
            headers.unreadable.append(f"{part.name} cannot be read: {error.strerror}")
            continue
        try:
            headers.slices += list(_slices(part, dataset))
        except _Aside as reason:
            headers.aside[str(reason)] += 1
        except _Lost as reason:
            headers.unreadable.append(f"{part.name} {reason}")
        except (TypeError, ValueError, AttributeError, IndexError, OverflowError):
            headers.unreadable.append(f"{part.name} has a damaged header")
    return headers


def _slices(part: Part, dataset: Dataset) -> Iterator[Slice]:
    kind = str(dataset.get("SOPClassUID", ""))
    if kind not in CT:
        raise _Aside(UID_dictionary[kind][0] if kind in UID_dictionary else "of an unknown kind")
    if dataset.get("Modality") != "CT":
        raise _Aside("not of modality CT")
    kinds = _image_type(dataset)
    if "LOCALIZER" in kinds:
        raise _Aside("localizer")
    if PROJECTIONS & kinds:
        raise _Aside("projection of many slices")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise _Aside("colour picture")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE and 0 < frames <= MOST_SLICES):
        raise _Aside(f"promising {frames} frames of {rows}×{columns} pixels, which no chest CT has")
    if kind == CTImageStorage and frames > 1:
        raise _Lost("holds several frames, and a CT Image has one")
    if kind == CTImageStorage:
        yield _slice(part, None, dataset, [dataset])
        return
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if len(groups) != frames:
        raise _Lost(f"places {len(groups)} of its {frames} frames")
    for index, group in enumerate(groups):
        yield _slice(part, index, dataset, [group, *shared])


def _slice(part: Part, frame: int | None, dataset: Dataset, groups: Sequence[Dataset]) -> Slice:
    position = _numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    if position is None or orientation is None:
        raise _Lost("is without ImagePositionPatient or ImageOrientationPatient")
    if spacing is None or not (spacing > 0).all():
        raise _Lost("is without PixelSpacing in mm")
    if np.abs(position).max() > FARTHEST_MM:
        raise _Lost(f"lies more than {FARTHEST_MM // 1000} m from where positions are counted from")
    axes = orientation.reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=0.01):
        raise _Lost("has an orientation that cannot be")
    _check_values(dataset, groups)
    slope = _numbers(groups, RESCALE, "RescaleSlope", 1)
    intercept = _numbers(groups, RESCALE, "RescaleIntercept", 1)
    return Slice(
        part=part,
        frame=frame,
        series=str(dataset.get("SeriesInstanceUID", "")),
        patient=str(dataset.get("PatientID", "")).strip(),
        study=str(dataset.get("StudyInstanceUID", "")),
        acquisition=_acquisition(dataset, groups),
        size=(int(dataset.Rows), int(dataset.Columns)),
        spacing=spacing,
        orientation=axes,
        position=position,
        slope=1.0 if slope is None else float(slope[0]),
        intercept=0.0 if intercept is None else float(intercept[0]),
        unsaid=tuple(
            name for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)) if value is None
        ),
        derived="DERIVED" in _image_type(dataset),
        undecodable=undecodable(dataset.file_meta.get("TransferSyntaxUID")),
    )


def _check_values(dataset: Dataset, groups: Sequence[Dataset]) -> None:
    """Raise the reason why an image's stored values do not become HU."""
    slope = _numbers(groups, RESCALE, "RescaleSlope", 1)
    if slope is not None and slope[0] == 0:
        raise _Lost("has RescaleSlope 0")
    if str(_said(groups, RESCALE, "RescaleType")).upper() in NOT_HU:
        raise _Aside("of values that are no HU")
    bits = dataset.get("BitsStored")
    if dataset.get("HighBit", bits and bits - 1) != (bits and bits - 1):
        raise _Lost("keeps its values in other bits than the lowest")


def _acquisition(dataset: Dataset, groups: Sequence[Dataset]) -> str:
    """Which pass over the body an image is of: acquisitions, and times of one acquisition."""
    frame = [
        _said(groups, "FrameContentSequence", name) for name in ("FrameAcquisitionNumber", "TemporalPositionIndex")
    ]
    return "/".join(str(value) for value in (dataset.get("AcquisitionNumber"), *frame) if value is not None)


def _image_type(dataset: Dataset) -> set[str]:
    value = dataset.get("ImageType") or ()
    return {value} if isinstance(value, str) else set(value)


def _said(groups: Sequence[Dataset], macro: str, name: str) -> Any:
    """An element's value, from an image's own header or a frame's functional groups; None if it is not there."""
    for group in groups:
        holder = group[macro].value[0] if macro in group and group[macro].value else group
        value = holder.get(name)
        if value is not None and value != "":
            return value
    return None


def _numbers(groups: Sequence[Dataset], macro: str, name: str, count: int) -> np.ndarray | None:
    """An element's numbers; None if it is not there.

    Raises:
        _Lost: it holds something else than so many finite numbers.
    """
    value = _said(groups, macro, name)
    if value is None:
        return None
    try:
        numbers = np.array([float(number) for number in ([value] if count == 1 else list(value))])
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise _Lost(f"says {name} in something else than {'a number' if count == 1 else f'{count} numbers'}")
    return numbers
