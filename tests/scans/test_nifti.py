"""NIfTI volumes: orientation, scale, and everything that can be wrong with a file."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import smooth_volume, write_nifti

from cov3d import Preprocessing, preprocess, read
from cov3d.config import Reading
from cov3d.errors import ScanError

ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*order)
]


def hounsfield(slices: int = 12, side: int = 20) -> np.ndarray:
    """A volume that looks like HU: −1000 to 600."""
    return (smooth_volume(slices, side).astype(np.int16) * 6 - 1000).astype(np.int16)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_gives_the_same_voxels(tmp_path: Path, codes: str):
    hu = hounsfield()
    scan = read(write_nifti(tmp_path / "scan.nii", hu, codes=codes))
    np.testing.assert_array_equal(scan.voxels, hu)
    assert scan.spacing == pytest.approx((2.0, 0.8, 0.8))
    assert (scan.unit, scan.remarks) == ("HU", ())


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


def test_the_header_scale_is_applied_once(tmp_path: Path):
    stored = (hounsfield() + 1024) // 2
    image = nib.Nifti1Image(stored.astype(np.int16), np.diag([0.8, 0.8, 2, 1]))
    image.header.set_slope_inter(2, -1024)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(image.to_bytes()))
    by_nibabel = nib.as_closest_canonical(nib.load(path)).get_fdata()  # R, A, S
    expected = by_nibabel[::-1, ::-1, ::-1].transpose(2, 1, 0)  # I, P, L
    np.testing.assert_allclose(read(path).voxels, expected)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_stored_types_and_packing_do_not_matter(tmp_path: Path, dtype: type, name: str):
    hu = hounsfield()
    offset = 1024 if dtype == np.uint16 else 0
    path = write_nifti(tmp_path / name, (hu.astype(int) + offset).astype(dtype))
    np.testing.assert_allclose(read(path).voxels, hu.astype(float) + offset)


def test_big_endian_files_are_read(tmp_path: Path):
    hu = hounsfield()
    image = nib.Nifti1Image(hu.astype(">i2"), np.diag([1, 1, 1, 1]), nib.Nifti1Header(endianness=">"))
    path = tmp_path / "scan.nii"
    path.write_bytes(image.to_bytes())
    np.testing.assert_array_equal(np.sort(read(path).voxels, None), np.sort(hu, None))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_truncated_volume_fails(tmp_path: Path, share: float, name: str):
    path = write_nifti(tmp_path / name, hounsfield(40, 40))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ScanError):
        read(path)


def test_every_flipped_byte_of_a_packed_volume_is_noticed(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii.gz", hounsfield(20, 30))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    whole = read(path).voxels
    for place in rng.integers(20, len(data), 60):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ScanError):
            read(path)
    path.write_bytes(data)
    np.testing.assert_array_equal(read(path).voxels, whole)


def test_four_dimensions_are_refused_but_a_single_one_is_no_dimension(tmp_path: Path):
    hu = hounsfield()
    nib.save(nib.Nifti1Image(np.stack([hu, hu], -1), np.eye(4)), tmp_path / "two.nii")
    nib.save(nib.Nifti1Image(hu[..., None], np.eye(4)), tmp_path / "one.nii")
    with pytest.raises(ScanError, match=r"three dimensions, got \(12, 20, 20, 2\)"):
        read(tmp_path / "two.nii")
    assert read(tmp_path / "one.nii").voxels.size == hu.size


def test_nan_and_infinite_voxels_become_black_with_a_warning(tmp_path: Path):
    hu = hounsfield().astype(np.float32)
    hu[5, 5, 5:8] = np.nan, np.inf, -np.inf
    scan = read(write_nifti(tmp_path / "scan.nii.gz", hu))
    assert scan.remarks == ("3 voxels NaN or infinite, made black",)
    black = hu.copy()
    black[5, 5, 5:8] = -1150
    same = read(write_nifti(tmp_path / "black.nii.gz", black))
    settings = Preprocessing(width=20, depth=12)
    np.testing.assert_array_equal(preprocess(scan, settings), preprocess(same, settings))


def test_too_many_nan_voxels_fail_the_scan(tmp_path: Path):
    hu = hounsfield().astype(np.float32)
    hu[3] = np.nan
    with pytest.raises(ScanError, match="400 of 4800 voxels are NaN or infinite"):
        read(write_nifti(tmp_path / "scan.nii", hu))


def test_values_that_are_not_hu_are_said_to_be_none(tmp_path: Path):
    scan = read(write_nifti(tmp_path / "mask.nii", (hounsfield() > 0).astype(np.uint8)))
    assert "values 0…1 do not look like HU" in scan.remarks[0]


FAULTS = {
    "empty": (lambda data: b"", "empty"),
    "web page": (lambda data: b"<html>" + bytes(4000), "web page"),
    "zeros": (lambda data: bytes(4000), "only zeros"),
    "a gzip file named .nii": (gzip.compress, "name it .nii.gz"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_no_nifti_is_named_for_what_it_is(tmp_path: Path, fault: str):
    path = write_nifti(tmp_path / "scan.nii", hounsfield())
    change, cause = FAULTS[fault]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ScanError, match=cause):
        read(path)


HEADERS = {
    "huge": ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "promises"),
    "flat": ({"dim": [3, 20, 0, 12, 1, 1, 1, 1]}, "promises|dimensions"),
    "negative": ({"dim": [3, 20, -5, 12, 1, 1, 1, 1]}, "."),
    "unknown type": ({"datatype": 999}, "."),
    "colour": ({"datatype": 128, "bitpix": 24}, "not HU"),
    "far voxels": ({"vox_offset": 1e9}, "byte 1000000000"),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, header: str, packed: bool):
    values, cause = HEADERS[header]
    data = bytearray(write_nifti(tmp_path / "scan.nii", hounsfield()).read_bytes())
    raw = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in values.items():
        raw[name] = value
    data[:348] = raw.binaryblock
    path = tmp_path / ("bad.nii.gz" if packed else "bad.nii")
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    with pytest.raises(ScanError, match=cause):
        read(path)


def test_an_implausible_spacing_is_refused(tmp_path: Path):
    with pytest.raises(ScanError, match="spacing"):
        read(write_nifti(tmp_path / "scan.nii", hounsfield(), spacing=(200.0, 0.8, 0.8)))


def turned(degrees: float, shear: float = 0.0) -> np.ndarray:
    """An affine turned about the patient's long axis, and sheared."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.diag([0.8, 0.8, 2, 1])
    affine[:2, :2] = np.array([[c, -s], [s, c]]) * 0.8
    affine[1, 2] += 2 * shear
    return affine


def test_oblique_scans_are_read_along_the_nearest_axes_with_a_warning(tmp_path: Path):
    for degrees, warned in ((10, False), (30, True)):
        nib.save(nib.Nifti1Image(hounsfield(), turned(degrees)), tmp_path / "scan.nii")
        assert any(f"{degrees} degrees off" in warning for warning in read(tmp_path / "scan.nii").remarks) == warned


def with_both_forms(path: Path, qform: np.ndarray, sform: np.ndarray, **header) -> Path:
    """A volume whose header gives both forms, written by nibabel."""
    image = nib.Nifti1Image(hounsfield(), sform)
    image.set_sform(sform, 1)
    image.set_qform(qform, 2)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def flipped(affine: np.ndarray, *axes: int) -> np.ndarray:
    """The affine of the same voxels said to run the other way along some of the patient's axes."""
    flips = np.ones(4)
    flips[list(axes)] = -1
    return np.diag(flips) @ affine


DISAGREEING = {
    "left and right": (
        flipped(turned(0), 0),
        "point Left, Anterior, Superior, or Right, Anterior, Superior; used sform",
    ),
    "head and feet": (
        flipped(turned(0), 2),
        "point Right, Anterior, Inferior, or Right, Anterior, Superior; used sform",
    ),
    "prone": (flipped(turned(0), 0, 1), "point Left, Posterior, Superior, or Right, Anterior, Superior; used sform"),
    "a quarter turn": (turned(90), "point Anterior, Left, Superior, or Right, Anterior, Superior; used sform"),
    "5 degrees": (turned(5), "disagree by 5.0 degrees; used sform"),
    "1.2 degrees": (turned(1.2), "disagree by 1.2 degrees; used sform"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_qform_and_sform_that_disagree_are_said_and_the_sform_is_used(tmp_path: Path, name: str):
    qform, said = DISAGREEING[name]
    path = with_both_forms(tmp_path / "scan.nii", qform, turned(0))
    header = nib.load(path).header
    assert not np.allclose(header.get_qform()[:3, :3], header.get_sform()[:3, :3], atol=0.01)
    scan = read(path)
    assert len(scan.remarks) == 1 and scan.remarks[0].startswith("qform and sform disagree") and said in scan.remarks[0]
    same = read(with_both_forms(tmp_path / "same.nii", turned(0), turned(0)))
    assert same.remarks == ()
    np.testing.assert_array_equal(scan.voxels, same.voxels)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_forms_that_agree_but_for_rounding_and_offset_raise_no_doubt(tmp_path: Path, codes: str):
    c, s = np.cos(0.1), np.sin(0.1)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    ornt = nib.orientations.axcodes2ornt(tuple(codes)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3)[ornt[:, 0]] * ornt[:, 1:]).T
    affine = turn @ affine
    sform = affine.copy()
    sform[:3, :3] = np.round(sform[:3, :3], 4)
    sform[:3, 3] += (30, -100, 7)
    path = with_both_forms(tmp_path / "scan.nii", affine, sform)  # of 1 mm, so that no axis looks like a stack's
    assert "".join(nib.aff2axcodes(nib.load(path).header.get_qform())) == codes
    assert read(path).remarks == ()


def test_a_sform_that_is_sheared_a_little_agrees_with_the_qform_next_to_it(tmp_path: Path):
    sform = turned(4, shear=0.015)
    path = with_both_forms(tmp_path / "scan.nii", sform, sform)  # nibabel strips the shear off the qform
    assert read(path).remarks == ()


@pytest.mark.parametrize("codes", [(0, 1), (1, 0)])
def test_a_form_that_is_not_in_use_is_not_compared(tmp_path: Path, codes: tuple[int, int]):
    path = with_both_forms(
        tmp_path / "scan.nii", flipped(turned(0), 0), turned(0), qform_code=codes[0], sform_code=codes[1]
    )
    assert read(path).remarks == ()


@pytest.mark.parametrize(("quatern", "said"), [(1 + 1e-5, ()), (1.2, ("qform is no rotation; used sform",))])
def test_a_quaternion_may_be_longer_than_one_by_rounding_only(tmp_path: Path, quatern: float, said: tuple[str, ...]):
    affine = flipped(turned(0), 0, 1)  # half a turn about the long axis: quaternion 0, 0, 0, 1
    path = with_both_forms(tmp_path / "scan.nii", affine, affine, quatern_d=quatern)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path).header.get_qform()
    assert read(path).remarks == said


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [np.nan, 0, 0, 0]])
def test_a_sform_that_is_none_is_refused_and_not_compared(tmp_path: Path, row: list[float]):
    path = with_both_forms(tmp_path / "scan.nii", turned(0), turned(0))
    data = bytearray(path.read_bytes())
    data[280:296] = np.array(row, "<f4").tobytes()  # srow_x, which nibabel would mend
    path.write_bytes(data)
    with pytest.raises(ScanError, match="singular"):
        read(path)


@pytest.mark.parametrize("name", ["cip_ct64/ct-64.nii.gz", "ibsi_phantom/nifti/image/phantom.nii.gz"])
def test_real_volumes_with_both_forms_raise_no_doubt(shared: Path, name: str):
    header = nib.load(shared / name).header
    assert header["qform_code"] > 0 and header["sform_code"] > 0
    assert not any("qform" in remark for remark in read(shared / name).remarks)


def test_a_sheared_scan_is_refused_or_read_as_it_is(tmp_path: Path):
    nib.save(nib.Nifti1Image(hounsfield(), turned(0, shear=0.3)), tmp_path / "scan.nii")
    with pytest.raises(ScanError, match=r"16\.7 degrees off right angles.*say --allow-gaps"):
        read(tmp_path / "scan.nii")
    scan = read(tmp_path / "scan.nii", Reading(allow_gaps=True))
    assert "degrees off right angles" in scan.remarks[0]
    assert scan.spacing == pytest.approx((2.0, 0.8, 0.8))  # along the slices' normal


def test_an_unknown_orientation_is_said(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", hounsfield())
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    bare = nib.Nifti1Image(data, None)
    bare.header.set_zooms((0.8, 0.8, 2))
    nib.save(bare, tmp_path / "bare.nii")
    assert any("orientation unknown" in warning for warning in read(tmp_path / "bare.nii").remarks)


def test_what_stands_in_a_header_does_not_reach_the_error(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", hounsfield(), descrip=b"DOE^JANE")
    data = bytearray(path.read_bytes())
    data[70:72] = (999).to_bytes(2, "little")  # datatype
    path.write_bytes(data)
    assert b"DOE^JANE" in data
    with pytest.raises(ScanError) as caught:
        read(path)
    assert "DOE" not in str(caught.value)


def test_a_real_volume_and_its_jpeg_slices_agree(shared: Path):
    settings = Preprocessing(width=64, depth=79)
    slices = preprocess(read(shared / "jpg_stacks" / "cip_ct64"), settings).astype(int)
    volume = preprocess(read(shared / "cip_ct64" / "ct-64.nii.gz"), settings).astype(int)
    difference = np.abs(slices - volume)
    # What is left is JPEG's own loss at 64 pixels a side.
    assert np.percentile(difference, 99) <= 10
    assert difference.mean() < 2.5
