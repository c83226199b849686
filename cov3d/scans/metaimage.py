"""The header of a MetaImage: ``.mha``, or ``.mhd`` with a data file beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cov3d.errors import ScanError
from cov3d.scans.boundary import look_of
from cov3d.scans.text_headers import Fields, Header, header_lines, unknown_orientation
from cov3d.scans.volume import check_spacing

TYPES = {
    "met_char": "i1",
    "met_uchar": "u1",
    "met_short": "i2",
    "met_ushort": "u2",
    "met_int": "i4",
    "met_uint": "u4",
    "met_long": "i4",
    "met_ulong": "u4",
    "met_long_long": "i8",
    "met_ulong_long": "u8",
    "met_float": "f4",
    "met_double": "f8",
}
# Names that older writers give to the same.
OTHER_NAMES = {
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
}
# What would make other voxels of the bytes, by the only value that is read. SimpleITK ignores the last two in silence.
PLAIN = {
    "HeaderSize": 0,
    "ElementNumberOfChannels": 1,
    "ElementToIntensityFunctionSlope": 1,
    "ElementToIntensityFunctionOffset": 0,
}


def metaimage_header(path: Path, text: bytes) -> Header:
    """A MetaImage's header from the first bytes of its file.

    Raises:
        ScanError: it promises what cannot be or what cov3d does not read, has no end, or names a data file elsewhere.
    """
    if b"NDims" not in text:
        raise ScanError(path, look_of(text[:64]))
    pairs, end = _pairs(path, text)
    fields = Fields(path, pairs)
    for key, plain in PLAIN.items():
        if key in fields and fields.numbers(key) != [plain]:
            raise ScanError(path, f"has a {key} other than {plain}, which cov3d does not read; save it anew")
    if "BinaryData" in fields and not _yes(fields, "BinaryData"):
        raise ScanError(path, "its voxels are written as text, which cov3d does not read; save them as binary")
    dtype = fields.dtype("ElementType", TYPES, ">" if _yes(fields, "BinaryDataByteOrderMSB") else "<")
    shape = fields.layout("NDims", "DimSize", dtype)
    axes, warnings = _axes(fields, len(shape))
    local = fields.word("ElementDataFile") == "local"
    data = path if local else _beside(path, fields["ElementDataFile"])
    origin = fields.place("Offset", fields["Offset"].split()[:3]) if "Offset" in fields else np.zeros(3)
    return Header(shape, dtype, axes, origin, data, end if local else 0, _yes(fields, "CompressedData"), warnings)


def _pairs(path: Path, text: bytes) -> tuple[list[tuple[str, str]], int]:
    """Keys and values up to the last, ElementDataFile, and where that ends."""
    pairs: list[tuple[str, str]] = []
    for line, end in header_lines(path, text):
        key, _, value = line.partition("=")
        pairs.append((OTHER_NAMES.get(key.strip(), key.strip()), value.strip()))
        if pairs[-1][0] == "ElementDataFile":
            return pairs, end
    raise ScanError(path, "is truncated in its header; copy it again")


def _yes(fields: Fields, key: str) -> bool:
    return fields.word(key)[:1] in ("t", "1")


def _axes(fields: Fields, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Steps along the first three axes. AnatomicalOrientation is often wrong and not asked."""
    spacing = fields.numbers("ElementSpacing" if "ElementSpacing" in fields else "ElementSize", count)[:3]
    check_spacing(fields.path, spacing)
    if "TransformMatrix" not in fields:
        return np.diag(spacing), (unknown_orientation("no TransformMatrix in its header"),)
    directions = np.reshape(fields.numbers("TransformMatrix", count**2), (count, count))[:3, :3]  # a row an axis
    if not np.allclose(np.linalg.norm(directions, axis=1), 1, atol=0.01):
        raise ScanError(fields.path, "has a TransformMatrix that is not made of unit vectors; mend its header")
    return directions.T * spacing, ()


def _beside(path: Path, name: str) -> Path:
    """The data file that a header names: only an ordinary file in the header's own folder, and not the header."""
    if name.startswith("LIST") or "%" in name:
        raise ScanError(path, "has its voxels in several files, which cov3d does not read; save it as one .mha")
    header = path.resolve()  # a link to a header means the header there, and the data file beside that
    data = header.parent / name
    plain = Path(name).name == name and "\\" not in name
    if not plain or data.resolve().parent != header.parent or data.resolve() == header:
        raise ScanError(path, "names a data file that does not lie beside it; only such a file is read")
    if not data.exists():
        raise ScanError(path, "has lost its data file; copy that beside it, under the name it had")
    if not data.is_file():
        raise ScanError(path, "names a data file that is not an ordinary file")
    return data
