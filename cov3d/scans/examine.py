"""What is to be known of one scan before it is compared with others: sizes, its files, a hash of each slice, and it in small."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from cov3d.config import Preprocessing, Reading, from_dict
from cov3d.scans.boundary import boundary
from cov3d.scans.jumps import find_jumps
from cov3d.scans.preprocess import STRUCTURE, prepare
from cov3d.scans.read import read, scan_files
from cov3d.scans.scan import Scan
from cov3d.scans.slices import SLICE_NAME
from cov3d.scans.workers import Outcome

WIDTH = 64  # of a slice in small
DETAILS = (16, WIDTH, WIDTH)  # (D, H, W) in which scans are compared in what is their own
COARSE = (24, 24, 24)  # and in which they are compared in how they lie
# Details are what a blur of so many pixels takes away, cut at so many grey levels: else the skin would outweigh all vessels.
BLUR, STRONGEST = 0.8, 8
# Grey levels above which there is tissue, about -500 HU; the share of it that is left out on each side.
TISSUE, LITTLE = 110, 0.02
MOST_DEPTH = 2048  # of a tensor
DIGEST = 16  # bytes of a slice's hash; 0 for a slice that shows nothing
NOTHING = bytes(DIGEST)
# Other endings may hold a patient's name.
SUFFIXES = (".jpg", ".jpeg", ".png", ".nii", ".gz", ".mha", ".mhd", ".nrrd", ".dcm", ".zip")


@dataclass(frozen=True, eq=False)
class Facts:
    """One scan's facts. ``hashes`` has one entry for each readable slice, from head to feet.

    ``details`` is int8 :data:`DETAILS`: bodies are alike, and it is in small things that they differ. ``coarse`` is uint8
    :data:`COARSE`, the scan in grey levels.
    """

    shape: tuple[int, int, int]  # (D, H, W)
    spacing: tuple[float, float, float] | None  # mm along D, H, W
    remarks: tuple[str, ...]
    blank: bool
    jumps: tuple[int, ...]
    interleaved: bool
    files: dict[str, float]
    hashes: tuple[bytes, ...]
    details: np.ndarray
    coarse: np.ndarray

    @property
    def empty_slices(self) -> int:
        """How many slices show nothing."""
        return self.hashes.count(NOTHING)


def examine(path: str | Path, reading: Reading | None = None) -> Facts:
    """Read a scan once and note its facts.

    Raises:
        ScanError: it cannot be read.
    """
    path = Path(path)
    scan = read(path, reading)
    slices = HashedSlices(scan)
    depth = min(len(scan.slices), MOST_DEPTH)
    tensor, prepared = prepare(replace(scan, slices=slices), Preprocessing(width=WIDTH, depth=depth))
    pictures = tensor[0].astype(np.float32)
    jumps, interleaved = find_jumps(pictures.reshape(depth, -1))
    return Facts(
        shape=(len(slices.digests), *slices.size),
        spacing=scan.spacing,
        remarks=prepared.remarks,
        blank=int(tensor.max()) - int(tensor.min()) < STRUCTURE,
        jumps=tuple(jumps),
        interleaved=interleaved,
        files=file_facts(path, len(slices.digests) * slices.size[0] * slices.size[1]),
        hashes=tuple(slices.digests[index] for index in sorted(slices.digests)),
        details=details_of(pictures),
        coarse=coarse_of(pictures),
    )


def examine_job(job: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Examine one scan. Runs in a worker."""
    facts = vars(examine(job["path"], from_dict(Reading, job["reading"], "job"))).copy()
    hashes, details, coarse = (facts.pop(name) for name in ("hashes", "details", "coarse"))
    return facts, [b"".join(hashes), details.tobytes(), coarse.tobytes()]


def facts_of(outcome: Outcome) -> Facts:
    """The facts that a worker sent."""
    answer, (hashes, details, coarse) = dict(outcome.answer), outcome.parts
    for name in ("shape", "spacing", "remarks", "jumps"):
        answer[name] = None if answer[name] is None else tuple(answer[name])
    return Facts(
        **answer,
        hashes=tuple(hashes[first : first + DIGEST] for first in range(0, len(hashes), DIGEST)),
        details=np.frombuffer(details, np.int8).reshape(DETAILS),
        coarse=np.frombuffer(coarse, np.uint8).reshape(COARSE),
    )


# Slices


class HashedSlices(Sequence):
    """A scan's slices, each one's hash noted in ``digests`` when it is decoded."""

    def __init__(self, scan: Scan):
        self.slices = scan.slices
        self.unit = scan.unit
        self.digests: dict[int, bytes] = {}
        self.size = (0, 0)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index):
        pixels = self.slices[index]
        self.digests[index] = slice_hash(pixels, self.unit)
        self.size = pixels.shape
        return pixels


def slice_hash(pixels: np.ndarray, unit: str) -> bytes:
    """A hash of a slice's values and size, whatever file it comes from; :data:`NOTHING` if it shows nothing.

    Grey levels count as 0…255, HU as whole numbers.
    """
    kind = np.uint8 if unit == "grey" else np.int16
    if pixels.dtype != kind:
        limits = np.iinfo(kind)
        finite = np.nan_to_num(pixels, nan=limits.min, posinf=limits.max, neginf=limits.min)
        pixels = np.rint(np.clip(finite, limits.min, limits.max)).astype(kind)
    if int(pixels.max()) - int(pixels.min()) < STRUCTURE:
        return NOTHING
    described = f"{unit} {pixels.shape}".encode()
    return hashlib.blake2b(pixels.tobytes(), digest_size=DIGEST, key=described).digest()


# In small


def details_of(pictures: np.ndarray) -> np.ndarray:
    """The details of slices in small, float32 ``(n, WIDTH, WIDTH)``, as int8 :data:`DETAILS`."""
    small = _resized(pictures, DETAILS)
    own = small - ndimage.gaussian_filter(small, (0, BLUR, BLUR))
    return np.rint(np.clip(own, -STRONGEST, STRONGEST)).astype(np.int8)


def coarse_of(pictures: np.ndarray) -> np.ndarray:
    """The body in the same slices, cut out of the air around it, as uint8 :data:`COARSE`.

    Patients lie higher or lower in a picture, which says nothing of how they are turned.
    """
    tissue = (pictures > TISSUE).sum(0)
    rows, columns = (_extent(tissue.sum(axis)) for axis in (1, 0))
    return np.rint(np.clip(_resized(np.ascontiguousarray(pictures[:, rows, columns]), COARSE), 0, 255)).astype(np.uint8)


def _extent(tissue: np.ndarray) -> slice:
    """Where all but a little of the tissue lies: the table below a patient is little. All, where there is none."""
    share = np.cumsum(tissue) / max(tissue.sum(), 1)
    first, last = np.searchsorted(share, (LITTLE, 1 - LITTLE))
    return slice(int(first), int(last) + 1) if first < len(tissue) else slice(None)


def _resized(volume: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A volume ``(D, H, W)`` in another shape, averaged where that is smaller."""
    d, h, w = shape
    rows = Image.fromarray(volume.reshape(len(volume), -1))  # depth first: all pixels of a slice as one row
    deep = np.asarray(rows.resize((rows.width, d), Image.Resampling.BILINEAR)).reshape(d, *volume.shape[1:])
    return np.stack([np.asarray(Image.fromarray(one).resize((w, h), Image.Resampling.BOX)) for one in deep])


# Files


def file_facts(path: Path, voxels: int) -> dict[str, float]:
    """What a scan's files show without the picture in them: form, bytes, numbers of slices, how JPEG was written.

    Of names only numbers of slices and known endings are looked at, of headers only JPEG's and PNG's.
    """
    files = scan_files(path)
    with boundary(path):
        size = sum(file.stat().st_size for file in files)
    suffix = files[0].suffix.lower()
    facts = {
        "bytes a voxel": size / voxels,
        "file form": float(SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES)),
    }
    if SLICE_NAME.fullmatch(files[0].name):
        numbers = [int(file.stem) for file in files]
        facts["first number"] = float(numbers[0])
        facts["numbers missing"] = float(numbers[-1] - numbers[0] + 1 - len(numbers))
        facts["leading zeros"] = float(len(files[0].stem) - len(str(numbers[0])))
        facts |= _picture_facts(files[len(files) // 2])
    return facts


def _picture_facts(file: Path) -> dict[str, float]:
    """How a slice's file was written."""
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            tables = getattr(image, "quantization", None) or {}
            return {
                "colour channels": float(len(image.getbands())),
                "JPEG quantisation": float(np.mean(list(tables.values()))) if tables else 0.0,
                "JPEG tables": float(len(tables)),
                "JFIF": float("jfif" in image.info),
                "EXIF": float("exif" in image.info),
                "progressive": float("progressive" in image.info),
                "resolution tag": float(np.mean(image.info.get("dpi", (0, 0)))),
            }
    except Exception:  # one that cannot be read is said where it is decoded
        return {}
