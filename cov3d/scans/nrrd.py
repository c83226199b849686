"""The header of an NRRD file, ``.nrrd``."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cov3d.errors import ScanError
from cov3d.scans.boundary import look_of
from cov3d.scans.text_headers import Fields, Header, header_lines, unknown_orientation
from cov3d.scans.volume import check_spacing

TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
# Whether each axis of a space points with Left, Posterior, Superior, or against it.
LPS, RAS, LAS = (1, 1, 1), (-1, -1, 1), (1, -1, 1)
SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), LPS),
    **dict.fromkeys(("right-anterior-superior", "ras"), RAS),
    **dict.fromkeys(("left-anterior-superior", "las"), LAS),
}
ORDERS = {"little": "<", "big": ">"}
PACKED = {"raw": False, "gzip": True, "gz": True}
SPATIAL = {"domain", "space", "???", "none"}  # kinds of axes
SKIPS = ("byte skip", "byteskip", "line skip", "lineskip")


def nrrd_header(path: Path, text: bytes) -> Header:
    """An NRRD header from the first bytes of its file.

    Raises:
        ScanError: it promises what cannot be or what cov3d does not read, has no end, or names another file.
    """
    if not text.startswith(b"NRRD000"):
        raise ScanError(path, look_of(text[:64]))
    pairs, end = _pairs(path, text)
    fields = Fields(path, pairs)
    if "data file" in fields or "datafile" in fields:
        raise ScanError(path, "has its voxels in another file, which cov3d does not read; save it as one .nrrd")
    if any(key in fields and fields.numbers(key) != [0] for key in SKIPS):
        raise ScanError(path, "skips bytes before its voxels, which cov3d does not read; save it anew")
    if fields.word("encoding") not in PACKED:
        raise ScanError(path, "has its voxels encoded as neither raw nor gzip; save it as one of these")
    dtype = fields.dtype("type", TYPES, ORDERS.get(fields.word("endian"), "|"))
    if dtype.itemsize > 1 and fields.word("endian") not in ORDERS:
        raise ScanError(path, "does not say the byte order (endian) of its voxels; mend its header")
    shape = fields.layout("dimension", "sizes", dtype)
    if set(fields.word("kinds").split()[:3]) - SPATIAL:
        raise ScanError(path, "has axes (kinds) that are not of space; export the CT itself")
    axes, warnings = _axes(fields, len(shape))
    return Header(shape, dtype, axes, _origin(fields), path, end, PACKED[fields.word("encoding")], warnings)


def _pairs(path: Path, text: bytes) -> tuple[list[tuple[str, str]], int]:
    """Fields and values up to the empty line, and where that ends."""
    pairs: list[tuple[str, str]] = []
    for line, end in header_lines(path, text):
        if not line:
            return pairs, end
        key, _, value = line.partition(":")
        if not line.startswith("#") and not value.startswith("="):  # key:=value is a writer's own remark
            pairs.append((key.lower(), value.strip()))
    raise ScanError(path, "is truncated in its header; copy it again")


def _axes(fields: Fields, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Steps along the first three axes, from the header's space to the patient's."""
    asked = fields.word("space")
    if "space directions" in fields:
        axes = np.array(_vectors(fields)).T
        check_spacing(fields.path, np.linalg.norm(axes, axis=0).tolist())
    elif asked:
        raise ScanError(fields.path, "names a space but not its axes' directions in it; mend its header")
    else:
        spacing = fields.numbers("spacings", count)[:3]
        check_spacing(fields.path, spacing)
        axes = np.diag(spacing)
    if asked in SPACES:
        return np.array(SPACES[asked])[:, None] * axes, ()
    return axes, (unknown_orientation("its space is not a patient's" if asked else "no space in its header"),)


def _origin(fields: Fields) -> np.ndarray:
    """Where the first voxel lies, from the header's space to the patient's; at 0 where the header does not say."""
    if "space origin" not in fields:
        return np.zeros(3)
    origin = fields.place("space origin", fields["space origin"].strip("()").split(","))
    return np.array(SPACES.get(fields.word("space"), LPS)) * origin


def _vectors(fields: Fields) -> list[list[float]]:
    """The directions of the first three axes, in mm; further axes must have none."""
    found = re.findall(r"none|\([^()]*\)", fields["space directions"])
    vectors = [fields.floats("space directions", text[1:-1].split(",")) for text in found if text != "none"]
    if [len(vector) for vector in vectors] != [3, 3, 3] or "none" in found[:3]:
        raise ScanError(fields.path, "does not give each of three axes a direction in space; mend its header")
    return vectors
