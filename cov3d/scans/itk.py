"""Reader of ITK's formats, MetaImage (``.mha``, ``.mhd`` and its data file) and NRRD (``.nrrd``), in HU.

ITK itself reads nothing here: a few odd bytes in a header crash it or make it read for ever, and much passes in silence, as
a damaged compressed volume does. Headers are read and checked in rooms of their own, and voxels decoded from checked bytes.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.scans.boundary import check_regular
from cov3d.scans.metaimage import metaimage_header
from cov3d.scans.nrrd import nrrd_header
from cov3d.scans.scan import Scan
from cov3d.scans.text_headers import LONGEST_HEADER, Header
from cov3d.scans.volume import LPS_TO_RAS, volume_scan

BLOCK = 2**22


def read_itk(path: Path, reading: Reading) -> Scan:
    """Read a MetaImage or NRRD volume, turned to canonical orientation.

    Raises:
        ScanError: truncated or damaged (a compressed one is read to its checksum), not three-dimensional, no plausible
            geometry, not single real numbers, voxels elsewhere than in the file or beside it, or more than one voxel in a
            hundred not finite.
    """
    header = _header(path)
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ header.axes
    affine[:3, 3] = LPS_TO_RAS @ header.origin
    stored, warnings = _stored_voxels(path, header)
    return volume_scan(path, stored, affine, reading, warnings=(*header.warnings, *warnings))


def itk_files(path: Path) -> list[Path]:
    """The files of a MetaImage or NRRD volume: itself, and its data file if it has one."""
    return list(dict.fromkeys((path, _header(path).data)))


def _header(path: Path) -> Header:
    check_regular(path)
    with path.open("rb") as file:
        text = file.read(LONGEST_HEADER)
    return (nrrd_header if path.suffix.lower() == ".nrrd" else metaimage_header)(path, text)


def _stored_voxels(path: Path, header: Header) -> tuple[np.ndarray, list[str]]:
    """Voxels ``(i, j, k)`` as stored, and what is to be said of them."""
    size = int(np.prod(header.shape)) * header.dtype.itemsize
    with header.data.open("rb") as file:
        there = os.fstat(file.fileno()).st_size - header.offset
        if not header.packed and there < size:
            raise ScanError(path, f"is truncated: {max(there, 0)} of {size} bytes; copy it again")
        file.seek(header.offset)
        data = _inflated(path, file, size) if header.packed else file.read(size)
    extra = [] if header.packed or there == size else [f"{there - size} bytes more than its header promises, left out"]
    return np.ndarray(header.shape[:3], header.dtype, buffer=data, order="F"), extra


def _inflated(path: Path, file: BinaryIO, size: int) -> np.ndarray:
    """The bytes of a zlib or gzip stream, read to its checksum: exactly ``size``."""
    stream = zlib.decompressobj(wbits=47)  # zlib's or gzip's, as it says itself
    data = np.empty(size, np.uint8)
    there = 0
    while not stream.eof and (packed := stream.unconsumed_tail or file.read(BLOCK)):
        try:
            part = stream.decompress(packed, BLOCK)
        except zlib.error as error:
            raise ScanError(path, "is damaged: its checksum is wrong; copy it again") from error
        if there + len(part) > size:
            raise ScanError(path, f"holds more than the {size} bytes that its header promises; copy it again")
        data[there : there + len(part)] = np.frombuffer(part, np.uint8)
        there += len(part)
    if not stream.eof:
        raise ScanError(path, f"is truncated: {there} of {size} bytes; copy it again")
    if there < size:
        raise ScanError(path, f"holds {there} of the {size} bytes that its header promises; copy it again")
    return data
