"""MetaImage and NRRD: the geometry that other libraries see, and everything that can be wrong with a file."""

from __future__ import annotations

import gzip
import itertools
import os
import re
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import smooth_volume, write_nifti
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cov3d import Preprocessing, preprocess, read
from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.scans.fingerprint import content_fingerprint, stat_fingerprint
from cov3d.scans.read import find_scans, scan_files, scan_name

ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*order)
]
HU = (smooth_volume(12, 20)[:, :18].astype(np.int16) * 6 - 1000).astype(np.int16)  # −1000 to 530, no two sides alike
SPACING = (2.0, 0.8, 0.7)
# Name and packing of every form.
FORMS = [("a.mha", False), ("a.mha", True), ("a.mhd", False), ("a.mhd", True), ("a.nrrd", False), ("a.nrrd", True)]
IDENTITY = np.eye(3).ravel().tolist()


def write_sitk(path: Path, voxels: np.ndarray, packed: bool, spacing=(0.7, 0.8, 2.0), direction=IDENTITY) -> Path:
    """Write voxels ``(k, j, i)`` as SimpleITK does, axes in mm Left, Posterior, Superior."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


@pytest.mark.parametrize("name, packed", FORMS)
def test_the_first_voxel_lies_where_simpleitk_puts_it(tmp_path: Path, name: str, packed: bool):
    image = sitk.GetImageFromArray(HU)
    image.SetSpacing((0.7, 0.8, 2.0))
    image.SetDirection([-1, 0, 0, 0, 1, 0, 0, 0, -1])
    image.SetOrigin((12.5, -30.25, 700.0))
    sitk.WriteImage(image, str(tmp_path / name), useCompression=packed)
    affine = read(tmp_path / name).affine
    assert affine is not None
    for index in ((0, 0, 0), (3, 5, 7)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        assert affine @ (*index, 1) == pytest.approx([-x, -y, z, 1])


def test_an_origin_in_another_space_is_turned_with_its_axes(tmp_path: Path):
    ways = {"space": "right-anterior-superior", "space_origin": "(12.5,-30,700)"}
    affine = read(nrrd(tmp_path / "a.nrrd", **ways)).affine
    assert affine is not None and affine[:3, 3].tolist() == [12.5, -30, 700]


def as_nifti(nifti: Path, path: Path, packed: bool) -> Path:
    """Write what stands in a NIfTI in another form, by SimpleITK."""
    image = nib.load(nifti)
    axes = np.diag([-1, -1, 1]) @ image.affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    return write_sitk(path, np.asarray(image.dataobj).T, packed, sizes.tolist(), (axes / sizes).ravel().tolist())


def metaimage(path: Path, voxels: np.ndarray = HU, data: bytes | None = None, end: str = "\n", **changes) -> Path:
    """Write a MetaImage by hand; ``changes`` are fields, None for those that are missing."""
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "PatientName": "DOE^JANE",
        "ElementSpacing": "0.7 0.8 2",
        "DimSize": " ".join(map(str, voxels.shape[::-1])),
        "ElementType": "MET_SHORT",
    } | changes
    fields["ElementDataFile"] = fields.pop("ElementDataFile", "LOCAL")
    text = "".join(f"{key} = {value}{end}" for key, value in fields.items() if value is not None)
    path.write_bytes(text.encode() + (voxels.tobytes() if data is None else data))
    return path


def nrrd(path: Path, voxels: np.ndarray = HU, data: bytes | None = None, end: str = "\n", **changes) -> Path:
    """Write an NRRD by hand, likewise; a field's name has ``_`` for its space."""
    fields = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, voxels.shape[::-1])),
        "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(0,0,0)",
        "content": "DOE^JANE",
    } | {key.replace("_", " "): value for key, value in changes.items()}
    lines = ["NRRD0005", "# by hand", *(f"{key}: {value}" for key, value in fields.items() if value is not None)]
    text = end.join([*lines, "0010|0010:=DOE^JANE", "", ""])
    path.write_bytes(text.encode() + (voxels.tobytes() if data is None else data))
    return path


BY_HAND = {"a.mha": metaimage, "a.nrrd": nrrd}
# HU as both write it, whose axes go to Left, Posterior, Superior.
CANONICAL = HU[::-1]


# Geometry


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_in_every_form_is_that_of_its_nifti(tmp_path: Path, codes: str):
    nifti = write_nifti(tmp_path / "scan.nii", HU, SPACING, codes)
    for name, packed in FORMS:
        scan = read(as_nifti(nifti, tmp_path / name, packed))
        np.testing.assert_array_equal(scan.voxels, HU)
        assert scan.spacing == pytest.approx(SPACING)
        assert (scan.unit, scan.remarks) == ("HU", ())


@pytest.mark.parametrize("seed", range(12))
def test_a_scan_turned_by_chance_is_read_as_its_nifti(tmp_path: Path, seed: int):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    spacing = rng.uniform(0.5, 3, 3).tolist()
    for name, packed in (("a.nii", False), *FORMS):
        write_sitk(tmp_path / name, HU, packed, spacing, axes.ravel().tolist())
        scan, nifti = read(tmp_path / name), read(tmp_path / "a.nii")
        np.testing.assert_array_equal(scan.voxels, nifti.voxels)
        assert scan.spacing == pytest.approx(nifti.spacing, rel=1e-5)
        assert scan.remarks == nifti.remarks


@pytest.mark.parametrize("space, stored", [
    ("left-posterior-superior", CANONICAL), ("LPS", CANONICAL),
    ("right-anterior-superior", CANONICAL[:, ::-1, ::-1]), ("RAS", CANONICAL[:, ::-1, ::-1]),
    ("left-anterior-superior", CANONICAL[:, ::-1]), ("LAS", CANONICAL[:, ::-1]),
])  # fmt: skip
def test_the_space_of_an_nrrd_says_where_its_axes_go(tmp_path: Path, space: str, stored: np.ndarray):
    scan = read(nrrd(tmp_path / "a.nrrd", np.ascontiguousarray(stored), space=space))
    np.testing.assert_array_equal(scan.voxels, HU)
    assert scan.remarks == ()


UNKNOWN = {
    "no space": ("a.nrrd", {"space": None, "space_directions": None, "spacings": "0.7 0.8 2"}),
    "no space but directions": ("a.nrrd", {"space": None, "space_dimension": "3"}),
    "a scanner's space": ("a.nrrd", {"space": "scanner-xyz"}),
    "no matrix": ("a.mha", {"TransformMatrix": None}),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_orientation_is_said(tmp_path: Path, case: str):
    name, changes = UNKNOWN[case]
    scan = read(BY_HAND[name](tmp_path / name, CANONICAL, **changes))
    assert re.search("orientation unknown.*read as left-posterior-superior", *scan.remarks)
    np.testing.assert_array_equal(scan.voxels, HU)
    assert scan.spacing == pytest.approx(SPACING)


def test_old_names_of_metaimage_fields_mean_the_same(tmp_path: Path):
    old = {"TransformMatrix": None, "ElementSpacing": None, "BinaryDataByteOrderMSB": None}
    for name in ("Rotation", "Orientation"):
        new = {name: "0 1 0 1 0 0 0 0 1", "ElementSize": "0.8 0.7 2", "ElementByteOrderMSB": "True"}
        turned = np.ascontiguousarray(CANONICAL.transpose(0, 2, 1)).astype(">i2")
        scan = read(metaimage(tmp_path / "a.mha", turned, **old, **new, AnatomicalOrientation="RPI"))
        np.testing.assert_array_equal(scan.voxels, HU)
        assert scan.spacing == pytest.approx(SPACING)


def test_a_sheared_nrrd_is_refused_or_read_as_it_is(tmp_path: Path):
    path = nrrd(tmp_path / "a.nrrd", space_directions="(0.7,0,0) (0,0.8,0) (0,0.6,2)")
    with pytest.raises(ScanError, match=r"16\.7 degrees off right angles.*say --allow-gaps"):
        read(path)
    assert "degrees off right angles" in read(path, Reading(allow_gaps=True)).remarks[0]


# Voxels

TYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name, packed", FORMS)
def test_stored_types_do_not_matter(tmp_path: Path, dtype: type, name: str, packed: bool):
    voxels = (HU // 20 + (55 if np.dtype(dtype).kind == "u" else 0)).astype(dtype)
    scan = read(write_sitk(tmp_path / name, voxels, packed), Reading(range="hu"))
    np.testing.assert_array_equal(scan.voxels, voxels[::-1])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_big_endian_files_and_lines_of_windows_are_read(tmp_path: Path, packed: bool, end: str):
    voxels = CANONICAL.astype(">i2")
    meta = {"BinaryDataByteOrderMSB": "True", "CompressedData": str(packed), "data": None}
    other = {"endian": "big", "encoding": "gzip" if packed else "raw", "data": None}
    if packed:
        meta["data"], other["data"] = zlib.compress(voxels.tobytes()), gzip.compress(voxels.tobytes())
    np.testing.assert_array_equal(read(metaimage(tmp_path / "A.MHA", voxels, end=end, **meta)).voxels, HU)
    np.testing.assert_array_equal(read(nrrd(tmp_path / "A.NRRD", voxels, end=end, **other)).voxels, HU)


FOUR = {
    "a.mha": {"NDims": "4", "TransformMatrix": " ".join(map(str, np.eye(4).ravel())), "ElementSpacing": "0.7 0.8 2 1"},
    "a.nrrd": {"dimension": "4", "space_directions": "(0.7,0,0) (0,0.8,0) (0,0,2) none"},
}
SIZES = {"a.mha": "DimSize", "a.nrrd": "sizes"}


@pytest.mark.parametrize("name", BY_HAND)
def test_four_dimensions_are_refused_but_a_single_one_is_no_dimension(tmp_path: Path, name: str):
    one = read(BY_HAND[name](tmp_path / name, CANONICAL, **FOUR[name], **{SIZES[name]: "20 18 12 1"}))
    np.testing.assert_array_equal(one.voxels, HU)
    two = BY_HAND[name](
        tmp_path / name, CANONICAL, CANONICAL.tobytes() * 2, **FOUR[name], **{SIZES[name]: "20 18 12 2"}
    )
    with pytest.raises(ScanError, match=r"three dimensions, got \(20, 18, 12, 2\)"):
        read(two)


@pytest.mark.parametrize("name, packed", FORMS)
def test_flat_and_coloured_images_are_refused(tmp_path: Path, name: str, packed: bool):
    sitk.WriteImage(sitk.GetImageFromArray(HU[0]), str(tmp_path / name), useCompression=packed)
    with pytest.raises(ScanError, match="three dimensions, got 2"):
        read(tmp_path / name)
    colour = sitk.GetImageFromArray(np.stack([HU, HU, HU], -1), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / name), useCompression=packed)
    with pytest.raises(
        ScanError, match=r"ElementNumberOfChannels other than 1|three dimensions, got \(3, 20, 18, 12\)"
    ):
        read(tmp_path / name)


@pytest.mark.parametrize("name, packed", FORMS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_truncated_volume_fails(tmp_path: Path, share: float, name: str, packed: bool):
    path = scan_files(write_sitk(tmp_path / name, HU, packed))[-1]
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ScanError, match=r"truncated|not what its name says"):
        read(tmp_path / name)


def test_a_truncated_volume_says_how_much_is_there(tmp_path: Path):
    with pytest.raises(ScanError, match="is truncated: 8000 of 8640 bytes; copy it again"):
        read(metaimage(tmp_path / "a.mha", data=HU.tobytes()[:8000]))


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd"])
def test_every_flipped_byte_of_a_packed_volume_is_noticed(tmp_path: Path, name: str):
    path = scan_files(write_sitk(tmp_path / name, HU, packed=True))[-1]
    data = path.read_bytes()
    # Of gzip's first ten bytes a time and a system say nothing of voxels; of zlib's each counts.
    begin = {"a.mha": data.find(b"LOCAL\n") + 6, "a.mhd": 0, "a.nrrd": data.find(b"\n\n") + 12}[name]
    rng = np.random.default_rng(0)
    for place in rng.integers(begin, len(data), 60):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ScanError, match=r"checksum is wrong|truncated|holds more than the 8640 bytes"):
            read(tmp_path / name)
    path.write_bytes(data)
    np.testing.assert_array_equal(read(tmp_path / name).voxels, CANONICAL)


@pytest.mark.parametrize(
    "sizes, cause", [("20 18 11", "holds more than the 7920"), ("20 18 13", "holds 8640 of the 9360")]
)
def test_a_packed_volume_of_other_sizes_than_its_header_promises_is_refused(tmp_path: Path, sizes: str, cause: str):
    with pytest.raises(ScanError, match=cause):
        read(nrrd(tmp_path / "a.nrrd", sizes=sizes, encoding="gzip", data=gzip.compress(HU.tobytes())))
    with pytest.raises(ScanError, match=cause):
        read(metaimage(tmp_path / "a.mha", DimSize=sizes, CompressedData="True", data=zlib.compress(HU.tobytes())))


def test_bytes_beyond_the_promise_are_said(tmp_path: Path):
    scan = read(metaimage(tmp_path / "a.mha", data=CANONICAL.tobytes() + b"more"))
    assert scan.remarks == ("4 bytes more than its header promises, left out",)
    np.testing.assert_array_equal(scan.voxels, HU)


def test_nan_voxels_become_black_with_a_warning(tmp_path: Path):
    voxels = HU.astype(np.float32)
    voxels[5, 5, 5:8] = np.nan, np.inf, -np.inf
    scan = read(write_sitk(tmp_path / "a.mha", voxels, packed=True))
    assert scan.remarks == ("3 voxels NaN or infinite, made black",)


# Headers

META = {
    "promises 10^12 voxels": ({"DimSize": "4000 4000 4000", "ElementType": "MET_DOUBLE"}, "promises"),
    "no voxels": ({"DimSize": "20 0 12"}, "promises"),
    "negative": ({"DimSize": "20 -18 12"}, "promises"),
    "numbers beyond any": ({"DimSize": "1e300 18 12"}, "no whole numbers as DimSize"),
    "half voxels": ({"DimSize": "20.5 18 12"}, "no whole numbers as DimSize"),
    "two sizes": ({"DimSize": "20 18"}, "2 numbers as DimSize in its header, expected 3"),
    "no sizes": ({"DimSize": None}, "no DimSize"),
    "a hundred dimensions": ({"NDims": "100"}, "three dimensions, got 100"),
    "dimensions that SimpleITK counts for ever": ({"NDims": "-1"}, "three dimensions, got -1"),
    "no type": ({"ElementType": None}, "ElementType"),
    "an unknown type": ({"ElementType": "DOE^JANE"}, "ElementType.*not HU"),
    "vectors": ({"ElementType": "MET_SHORT_ARRAY"}, "ElementType.*not HU"),
    "channels": ({"ElementNumberOfChannels": "3"}, "ElementNumberOfChannels other than 1"),
    "text": ({"BinaryData": "False"}, "written as text"),
    "voxels further on": ({"HeaderSize": "348"}, "HeaderSize other than 0"),
    "a scale": ({"ElementToIntensityFunctionSlope": "2"}, "Slope other than 1"),
    "no spacing": ({"ElementSpacing": None}, "no ElementSize"),
    "spacing 0": ({"ElementSpacing": "0 0.8 2"}, "spacing .* not plausible"),
    "spacing nan": ({"ElementSpacing": "nan 0.8 2"}, "no plain numbers as ElementSpacing"),
    "a comma": ({"ElementSpacing": "0,7 0.8 2"}, "no plain numbers as ElementSpacing"),
    "a name": ({"ElementSpacing": "DOE^JANE 0.8 2"}, "no plain numbers as ElementSpacing"),
    "negative spacing": ({"ElementSpacing": "-0.7 0.8 2"}, "spacing .* not plausible"),
    "spacing 1e300": ({"ElementSpacing": "1e300 0.8 2"}, "spacing .* not plausible"),
    "spacing 1e400": ({"ElementSpacing": "1e400 0.8 2"}, "spacing .* not plausible"),
    "a singular matrix": ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "singular"),
    "a short matrix": ({"TransformMatrix": "1 0 0 0 1"}, "5 numbers as TransformMatrix in its header, expected 9"),
    "a matrix of nan": ({"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, "no plain numbers as TransformMatrix"),
    "a matrix of zeros": ({"TransformMatrix": "0 0 0 0 1 0 0 0 1"}, "unit vectors"),
    "a matrix with sizes": ({"TransformMatrix": "2 0 0 0 2 0 0 0 2"}, "unit vectors"),
    "two sayings": ({"DimSize ": "1 1 1"}, "says DimSize twice"),
}
NRRD = {
    "promises 10^12 voxels": ({"sizes": "4000 4000 4000", "type": "double"}, "promises"),
    "negative": ({"sizes": "20 -18 12"}, "promises"),
    "no sizes": ({"sizes": None}, "no sizes"),
    "two sizes": ({"sizes": "20 18"}, "2 numbers as sizes in its header, expected 3"),
    "a hundred dimensions": ({"dimension": "100"}, "three dimensions, got 100"),
    "blocks": ({"type": "block"}, "type.*not HU"),
    "an unknown type": ({"type": "DOE^JANE"}, "type.*not HU"),
    "colour": ({"kinds": "RGB-color domain domain"}, "kinds"),
    "complex": ({"kinds": "complex domain domain"}, "kinds"),
    "no byte order": ({"endian": None}, "byte order"),
    "text": ({"encoding": "ascii"}, "neither raw nor gzip"),
    "bzip2": ({"encoding": "bzip2"}, "neither raw nor gzip"),
    "another file": ({"data_file": "/etc/passwd"}, "in another file"),
    "another file, other name": ({"datafile": "LIST"}, "in another file"),
    "skipped bytes": ({"byte_skip": "-1"}, "skips bytes"),
    "skipped lines": ({"lineskip": "3"}, "skips bytes"),
    "no directions": ({"space_directions": None}, "names a space but not"),
    "nothing of space": ({"space_directions": None, "space": None}, "no spacings"),
    "spacings nan": ({"space_directions": None, "space": None, "spacings": "nan 1 1"}, "no plain numbers as spacings"),
    "spacings negative": ({"space_directions": None, "space": None, "spacings": "-1 1 1"}, "spacing .* not plausible"),
    "direction none": ({"space_directions": "none (0,0.8,0) (0,0,2)"}, "does not give each of three axes"),
    "two directions": ({"space_directions": "(0,0.8,0) (0,0,2)"}, "does not give each of three axes"),
    "flat directions": ({"space_directions": "(1,0) (0,1) (1,1)"}, "does not give each of three axes"),
    "direction nan": ({"space_directions": "(nan,0,0) (0,1,0) (0,0,2)"}, "no plain numbers as space directions"),
    "direction 0": ({"space_directions": "(0,0,0) (0,1,0) (0,0,2)"}, "spacing .* not plausible"),
    "direction 1e300": ({"space_directions": "(1e300,0,0) (0,1,0) (0,0,2)"}, "spacing .* not plausible"),
    "singular directions": ({"space_directions": "(1,0,0) (1,0,0) (0,0,2)"}, "singular"),
    "space and time": ({"space": "left-posterior-superior-time", "space_directions": "(1,0,0,0)"}, "three axes"),
}
FAULTS = [("a.mha", *fault) for fault in META.values()] + [("a.nrrd", *fault) for fault in NRRD.values()]


@pytest.mark.parametrize("name, changes, cause", FAULTS, ids=[*META, *NRRD])
def test_a_header_that_cannot_be_is_refused_without_its_text(tmp_path: Path, name: str, changes: dict, cause: str):
    path = BY_HAND[name](tmp_path / name, **changes)
    assert b"DOE^JANE" in path.read_bytes()
    with pytest.raises(ScanError, match=cause) as caught:
        read(path)
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    "data, cause", [(b"", "empty"), (bytes(4000), "only zeros"), (b"<html>" + bytes(9), "web page")]
)
@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd"])
def test_a_file_that_is_none_of_its_form_is_named_for_what_it_is(tmp_path: Path, name: str, data: bytes, cause: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ScanError, match=cause):
        read(tmp_path / name)


@pytest.mark.parametrize("name, data, cause", [
    ("a.mha", b"NDims = 3\n", "truncated in its header"),
    ("a.mha", b"NDims = 3\nComment = " + b"x" * 10**6, "header of more than 64 KiB"),
    ("a.mha", b"NDims = 3\n" + b"x = 1\n" * 10**5, "header of more than 64 KiB"),
    ("a.nrrd", b"NRRD0004\ntype: short\n", "truncated in its header"),
    ("a.nrrd", b"NRRD0004\n# " + b"x" * 10**6, "header of more than 64 KiB"),
    ("a.nrrd", b"NRRD0004\n" + b"x: 1\n" * 10**5, "header of more than 64 KiB"),
])  # fmt: skip
def test_a_header_without_end_is_refused(tmp_path: Path, name: str, data: bytes, cause: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ScanError, match=cause):
        read(tmp_path / name)


GREEDY = """
import resource, sys
from pathlib import Path
import cov3d

cov3d.read(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        cov3d.read(path)
    except cov3d.errors.ScanError as error:
        print(error.cause)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_promise_of_gigabytes_takes_no_memory(tmp_path: Path):
    """Four GiB are promised, which is not refused, and packed zeros give some of them."""
    whole, zeros = metaimage(tmp_path / "whole.mha"), bytes(2**24)
    meta = metaimage(tmp_path / "a.mha", data=zlib.compress(zeros), CompressedData="True", DimSize="1024 1024 2048")
    other = nrrd(tmp_path / "a.nrrd", data=gzip.compress(zeros), encoding="gzip", sizes="1024 1024 2048")
    plain = nrrd(tmp_path / "b.nrrd", sizes="1024 1024 2048")
    said = subprocess.run([sys.executable, "-c", GREEDY, whole, meta, other, plain], capture_output=True, check=True)
    *causes, grown = said.stdout.decode().splitlines()
    assert [cause.split(" of ")[0] for cause in causes] == ["holds 16777216", "holds 16777216", "is truncated: 8640"]
    assert int(grown) < 64  # MiB


# Data files


@pytest.fixture
def detached(tmp_path: Path) -> Path:
    """A header in a folder of its own, its voxels beside it in ``a.raw``, and voxels that are not its own around it."""
    (tmp_path / "scans").mkdir()
    (tmp_path / "other.raw").write_bytes(HU.tobytes())
    (tmp_path / "scans" / "a.raw").write_bytes(CANONICAL.tobytes())
    (tmp_path / "scans" / "link.raw").symlink_to(tmp_path / "other.raw")
    os.mkfifo(tmp_path / "scans" / "pipe.raw")
    return metaimage(tmp_path / "scans" / "a.mhd", data=b"", ElementDataFile="a.raw")


@pytest.mark.parametrize("name, cause", [
    ("/etc/passwd", "does not lie beside it"),
    ("../other.raw", "does not lie beside it"),
    ("../scans/a.raw", "does not lie beside it"),
    ("./a.raw", "does not lie beside it"),
    ("/dev/zero", "does not lie beside it"),
    ("..", "does not lie beside it"),
    ("", "does not lie beside it"),
    ("link.raw", "does not lie beside it"),
    ("a.mhd", "does not lie beside it"),
    ("C:\\a.raw", "does not lie beside it"),
    ("pipe.raw", "not an ordinary file"),
    ("LIST", "in several files"),
    ("LIST2D\na.raw", "in several files"),
    ("a%03d.raw 1 12 1", "in several files"),
    ("DOE^JANE.raw", "lost its data file"),
    ("x" * 5000, "."),
    ("a\0b", "."),
])  # fmt: skip
def test_a_header_may_only_name_an_ordinary_file_beside_it(detached: Path, name: str, cause: str):
    np.testing.assert_array_equal(read(detached).voxels, HU)
    metaimage(detached, data=b"", ElementDataFile=name)
    with pytest.raises(ScanError, match=cause) as caught:
        read(detached)
    assert "DOE" not in str(caught.value)
    assert caught.value.path == detached


def test_a_linked_header_means_the_data_file_beside_the_header(detached: Path, tmp_path: Path):
    (tmp_path / "linked.mhd").symlink_to(detached)
    np.testing.assert_array_equal(read(tmp_path / "linked.mhd").voxels, HU)


@pytest.mark.parametrize("packed", [False, True])
def test_a_change_of_header_or_data_file_changes_the_fingerprint(tmp_path: Path, packed: bool):
    path = write_sitk(tmp_path / "a.mhd", HU, packed)
    files = scan_files(path)
    assert [file.suffix for file in files] == [".mhd", ".zraw" if packed else ".raw"]
    for file in files:
        before = stat_fingerprint(path), content_fingerprint(path)
        file.write_bytes(file.read_bytes().replace(b"DimSize", b"DimSize ") if file == path else b"other")
        assert not {stat_fingerprint(path), content_fingerprint(path)} & set(before)


def test_a_volume_is_found_by_its_header_and_named_without_its_form(tmp_path: Path):
    for name, packed in FORMS:
        write_sitk(tmp_path / name, HU, packed)
    assert [path.name for path in find_scans(tmp_path)] == ["a.mha", "a.mhd", "a.nrrd"]
    assert {scan_name(path) for path in find_scans(tmp_path)} == {"a"}


# Real scans


def test_a_real_nrrd_and_its_nifti_agree(shared: Path):
    by_nrrd, by_nifti = (read(shared / "cip_ct64" / name) for name in ("ct-64.nrrd", "ct-64.nii.gz"))
    np.testing.assert_array_equal(by_nrrd.voxels, by_nifti.voxels)
    assert by_nrrd.spacing == pytest.approx(by_nifti.spacing, rel=1e-6)
    tensors = [preprocess(scan, Preprocessing(width=64)) for scan in (by_nrrd, by_nifti)]
    np.testing.assert_array_equal(*tensors)


def test_a_real_mask_is_said_to_be_none_of_hu(shared: Path):
    scan = read(next((shared / "mhd_zraw_lungmask").glob("*.mhd")))
    assert scan.voxels.shape == (194, 512, 512)
    assert scan.remarks == ("values 0…2 do not look like HU of a chest",)


def test_a_real_scan_is_what_simpleitk_makes_of_it(shared: Path):
    path = shared / "pyradiomics" / "lung2_image.nrrd"
    scan, image = read(path), sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPI")
    np.testing.assert_array_equal(scan.voxels, sitk.GetArrayFromImage(image))
    assert scan.spacing == pytest.approx(image.GetSpacing()[::-1])
    assert (scan.unit, scan.remarks) == ("HU", ())


# Mutations

MUTATED = int(os.environ.get("COV3D_FUZZ", "100"))
NUMBERS = [
    b"-1",
    b"0",
    b"4",
    b"100",
    b"2147483648",
    b"99999999999999999999999",
    b"1e400",
    b"nan",
    b"",
    b"0,7",
    b"1 " * 200,
]
NOISE = [b"9" * 400, b"x" * 5000, b"\n" * 3, b" " * 3000, b"%s%n", b"\0", b"(", b")", b"none ", b"= ", b": ", b"\xff"]


def flip(data: bytes, draw) -> bytes:
    place = draw(st.integers(0, len(data) - 1))
    return data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]


def cut(data: bytes, draw) -> bytes:
    place = draw(st.integers(1, len(data) - 1))
    return data[:place] + data[place + draw(st.sampled_from((1, 2, 5, 50, 10**6))) :]


def insert(data: bytes, draw) -> bytes:
    place = draw(st.integers(0, min(len(data), 500)))
    return data[:place] + draw(st.sampled_from(NOISE) | st.binary(max_size=20)) + data[place:]


def other_number(data: bytes, draw) -> bytes:
    places = list(re.finditer(rb"-?\d+\.?\d*", data[:500])) or [re.search(b"", data)]
    place = draw(st.sampled_from(places))
    return data[: place.start()] + draw(st.sampled_from(NUMBERS)) + data[place.end() :]


def other_order(data: bytes, draw) -> bytes:
    lines = data.split(b"\n")
    lines.insert(draw(st.integers(0, min(len(lines), 14))), draw(st.sampled_from(lines[:14])))
    return b"\n".join(lines)


@pytest.mark.parametrize("name, packed", FORMS)
def test_a_mutated_file_is_a_scan_or_an_error_of_our_own(tmp_path: Path, name: str, packed: bool):
    path = write_sitk(tmp_path / name, HU[:4, :6, :5], packed)
    files = scan_files(path)
    whole = {file: file.read_bytes() for file in files}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    changes = st.lists(st.sampled_from((flip, cut, insert, other_number, other_order)), min_size=1, max_size=4)

    @settings(max_examples=MUTATED, derandomize=True, database=None, deadline=None, suppress_health_check=HealthCheck)
    @given(st.sampled_from(files), changes, st.data())
    def try_one(file: Path, changes, draw) -> None:
        data = whole[file]
        for change in changes:
            data = change(data, draw.draw) if len(data) > 1 else data
        file.write_bytes(data)
        begin = time.monotonic()
        try:
            assert np.isfinite(read(path).spacing).all()
        except ScanError:
            pass
        finally:
            file.write_bytes(whole[file])
        assert time.monotonic() - begin < 5

    try_one()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB
