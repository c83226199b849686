"""Masks brought back: what was prepared lies again where it came from, voxel on voxel, in every form and orientation."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import write_nifti, write_slices
from hospital import edit, in_order, put
from scipy import ndimage

from cov3d.chest import draw
from cov3d.config import Preprocessing, Reading
from cov3d.forms import write_dicom, write_mha, write_nrrd
from cov3d.scans.crop import Cropped
from cov3d.scans.frame import Frame, frame_of, planes, restore, write_mask
from cov3d.scans.preprocess import prepare
from cov3d.scans.read import read
from cov3d.scans.scan import Scan, Selection

SPACING = (3.0, 0.9, 0.8)
SETTINGS = Preprocessing(width=48, depth=32)
ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(axes, flips, strict=True))
    for axes in permutations(("RL", "AP", "SI"))
    for flips in product((0, 1), repeat=3)
]


def blob(slices: int = 20, height: int = 36, width: int = 44) -> np.ndarray:
    """A smooth lesion without symmetry, HU ``(D, H, W)`` from −1000 to 100."""
    d, h, w = np.meshgrid(*(np.linspace(0, 1, n) for n in (slices, height, width)), indexing="ij")
    far = ((d - 0.4) / 0.3) ** 2 + ((h - 0.6 + 0.2 * d) / 0.22) ** 2 + ((w - 0.35 - 0.1 * h) / 0.25) ** 2
    return np.clip(100 - 550 * far, -1000, 100).astype(np.int16)


HU = blob()
WHITE = 450  # HU above are lesion


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def drawn(scan: Scan, settings: Preprocessing = SETTINGS) -> tuple[np.ndarray, Frame]:
    """A scan's bright voxels in its tensor, as a network would draw them, and the tensor's frame."""
    tensor, prepared = prepare(scan, settings)
    grey = 255 * (-WHITE - settings.window_low) / (settings.window_high - settings.window_low)
    if scan.unit == "grey":
        grey = 128
    return (tensor[0] > grey).astype(np.float32), frame_of(scan, prepared, settings)


def mask_of(path: Path, settings: Preprocessing = SETTINGS, reading: Reading | None = None) -> nib.Nifti1Image:
    """A scan's bright voxels drawn in its tensor, brought back and written."""
    probability, frame = drawn(read(path, reading), settings)
    frame = Frame.from_dict(json.loads(json.dumps(frame.to_dict())))
    return nib.load(write_mask(path.parent / "out" / "mask.nii.gz", restore(probability, frame) > 0.5, frame))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_nifti_of_any_orientation_has_its_mask_on_its_own_voxels(tmp_path: Path, codes: str):
    source = nib.load(write_nifti(tmp_path / "scan.nii.gz", HU, SPACING, codes))
    mask = mask_of(tmp_path / "scan.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
    np.testing.assert_allclose(mask.get_qform(), source.affine, atol=1e-4)
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (1, 1)
    assert mask.get_data_dtype() == np.uint8
    assert dice(np.asarray(mask.dataobj) == 1, source.get_fdata() > -WHITE) > 0.95


def test_a_mask_of_a_scan_that_lies_askew_has_its_affine(tmp_path: Path):
    image = nib.load(write_nifti(tmp_path / "straight.nii.gz", HU, SPACING, "LPS"))
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, -0.08), (7.5, -30.25, 100.125))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine), tmp_path / "scan.nii.gz")
    source, mask = nib.load(tmp_path / "scan.nii.gz"), mask_of(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-4)
    assert dice(np.asarray(mask.dataobj) == 1, source.get_fdata() > -WHITE) > 0.95


@pytest.mark.parametrize("write", [write_mha, write_nrrd])
def test_a_volume_of_itk_has_its_mask_on_its_own_voxels(tmp_path: Path, write):
    path = write(tmp_path / f"scan.{write.__name__[6:]}", HU, SPACING)
    mask_of(path)
    source, mask = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "out" / "mask.nii.gz"))
    assert mask.GetSize() == source.GetSize()
    np.testing.assert_allclose(mask.GetSpacing(), source.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(mask.GetDirection(), source.GetDirection(), atol=1e-5)
    assert dice(sitk.GetArrayFromImage(mask) == 1, sitk.GetArrayFromImage(source) > -WHITE) > 0.95


@pytest.mark.parametrize("write", [write_mha, write_nrrd])
def test_a_volume_of_itk_has_its_mask_where_simpleitk_sees_it(tmp_path: Path, write):
    path = write(tmp_path / f"scan.{write.__name__[6:]}", HU, SPACING)
    mask_of(path)
    source, mask = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "out" / "mask.nii.gz"))
    np.testing.assert_allclose(mask.GetOrigin(), source.GetOrigin(), atol=1e-4)


def worlds(folder: Path) -> np.ndarray:
    """Where the bright voxels of a series lie: mm Right, Anterior, Superior, by PS3.3 C.7.6.2.1.1."""
    points = []
    for file in in_order(folder):
        image = pydicom.dcmread(file)
        across, down = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
        rows, columns = np.nonzero(hu > -WHITE)
        far, wide = (float(mm) for mm in image.PixelSpacing)
        points.append(
            np.array(image.ImagePositionPatient, float) + columns[:, None] * wide * across + rows[:, None] * far * down
        )
    return np.concatenate(points) * (-1, -1, 1)


@pytest.mark.parametrize(
    "orientation",
    [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, 1, 0], [1, 0, 0, 0, -1, 0], [-1, 0, 0, 0, -1, 0], [0, 1, 0, 1, 0, 0]],
    ids=["feet first", "head first", "belly up", "prone", "transposed"],
)
def test_a_dicom_series_has_its_mask_where_its_headers_place_it(tmp_path: Path, orientation: list[int]):
    folder = edit(write_dicom(tmp_path / "series", HU, SPACING, seed=0), put(ImageOrientationPatient=orientation))
    mask = mask_of(folder)
    assert mask.shape == (HU.shape[2], HU.shape[1], HU.shape[0])  # columns, rows, slices
    points = nib.affines.apply_affine(np.linalg.inv(mask.affine), worlds(folder))
    np.testing.assert_allclose(points, np.rint(points), atol=1e-3)  # it lies on the series' own voxels
    bright = np.zeros(mask.shape, bool)
    bright[tuple(np.rint(points).astype(int).T)] = True
    assert dice(np.asarray(mask.dataobj) == 1, bright) > 0.95


NOISE = np.random.default_rng(0).integers(0, 20, HU.shape)
GREY = ((HU + 1000) * (230 / 1100) + NOISE).astype(np.uint8)


def test_pictures_have_a_mask_of_columns_rows_slices_to_left_back_and_feet(tmp_path: Path):
    mask = mask_of(write_slices(tmp_path / "scan", GREY))
    assert nib.aff2axcodes(mask.affine) == ("L", "P", "I")
    np.testing.assert_array_equal(mask.affine, np.diag([-1.0, -1.0, -1.0, 1.0]))
    assert dice(np.asarray(mask.dataobj).transpose() == 1, GREY > 127) > 0.95


@pytest.mark.parametrize("lost", [0, 7, 8, 19], ids=["first", "one", "another", "last"])
@pytest.mark.parametrize("damage", [b"", None], ids=["empty", "torn"])
def test_a_lost_slice_keeps_its_place_and_takes_its_neighbours_mask(tmp_path: Path, lost: int, damage: bytes | None):
    path = write_slices(tmp_path / "scan", GREY, suffix=".jpg") / f"{lost}.jpg"
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    assert isinstance(prepare(read(tmp_path / "scan"), SETTINGS)[1].slices, Selection) == (damage is None)
    mask = np.asarray(mask_of(tmp_path / "scan").dataobj).transpose() == 1
    assert mask.shape == GREY.shape
    assert dice(mask, GREY > 127) > 0.95
    if GREY[lost].max() > 127:
        assert dice(mask[lost], GREY[lost] > 127) > 0.9


def test_a_scan_cut_to_its_lungs_has_its_mask_at_its_place_and_none_beyond(tmp_path: Path):
    chest = draw(3, 3, 96, 40)
    path = write_nifti(tmp_path / "scan.nii.gz", chest.hu, chest.spacing, "RAS")
    settings = Preprocessing(width=64, depth=40, crop="lungs")
    scan = read(path)
    _, prepared = prepare(scan, settings)
    cut = prepared.slices
    assert isinstance(cut, Cropped)
    frame = frame_of(scan, prepared, settings)
    assert frame.box == (
        (cut.first, cut.end),
        (cut.rows.start, cut.rows.stop),
        (cut.columns.start, cut.columns.stop),
    )
    white = replace(cut, slices=(chest.lungs * 255).astype(np.uint8))
    tensor, _ = prepare(replace(prepared, slices=white, unit="grey", warnings=()), replace(settings, crop="none"))
    back = restore((tensor[0] > 127).astype(np.float32), frame)
    inside = np.zeros(chest.lungs.shape, bool)
    inside[tuple(slice(*part) for part in frame.box)] = True
    assert not back[~inside].any()
    assert dice(back > 0.5, chest.lungs & inside) > 0.95
    assert dice(back > 0.5, chest.lungs) > 0.95


def test_a_slice_lost_at_the_end_of_the_cut_lies_in_it():
    volume = np.zeros((10, 8, 8), np.uint8)
    scan = Scan(Path("scan"), volume, unit="grey")
    kept = replace(scan, slices=Selection(volume, range(2, 10)), positions=np.arange(2.0, 10.0))
    for first, end, box in ((0, 5, (0, 7)), (1, 8, (3, 10)), (1, 4, (3, 6))):
        cut = Cropped(kept.slices, first, end, slice(1, 7), slice(2, 8))
        prepared = replace(kept, slices=cut, positions=kept.positions[first:end])
        frame = frame_of(scan, prepared, SETTINGS)
        assert frame.box == (box, (1, 7), (2, 8))
        assert frame.span == (first + 2, end + 1)


@pytest.mark.parametrize("shape", [(20, 36, 44), (7, 12, 10), (41, 60, 90)], ids=["same", "smaller", "larger"])
def test_interpolation_is_scipys_at_the_middles_of_pixels(shape: tuple[int, int, int]):
    probability = np.random.default_rng(0).random(shape, np.float32)
    scan = Scan(Path("scan"), HU, unit="HU")
    frame = frame_of(scan, scan, SETTINGS)
    depth = np.linspace(0, shape[0] - 1, 20)
    height, width = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip((36, 44), shape[1:], strict=True))
    places = np.meshgrid(depth, height, width, indexing="ij")
    wanted = ndimage.map_coordinates(probability, places, order=1, mode="nearest")
    np.testing.assert_allclose(restore(probability, frame), wanted, atol=1e-5)
    np.testing.assert_array_equal(np.stack(list(planes(probability, frame))), restore(probability, frame))


def test_uneven_slices_are_found_at_their_places_and_stand_for_what_lies_between():
    positions = np.array([0.0, 1, 2, 3, 6, 7, 8])
    scan = Scan(Path("scan"), HU[:7], unit="HU", spacing=SPACING, positions=positions, affine=np.eye(4))
    frame = frame_of(scan, scan, SETTINGS)
    ramp = np.linspace(0, 1, 9, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    np.testing.assert_allclose(restore(ramp, frame)[:, 0, 0], positions / 8, atol=1e-6)
    np.testing.assert_allclose(frame.thickness, np.array([1, 1, 1, 2, 2, 1, 1]) * 3.0)
    np.testing.assert_allclose(frame.tensor_spacing((32, 48, 48)), (27 / 32, 0.9 * 36 / 48, 0.8 * 44 / 48))


def test_one_slice_takes_the_mean_place_of_the_tensor():
    scan = Scan(Path("scan"), HU[8:9], unit="HU")
    frame = frame_of(scan, scan, SETTINGS)
    ramp = np.arange(5, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    np.testing.assert_allclose(restore(ramp, frame), 2)
    assert frame.tensor_spacing((5, 4, 4)) is None


def test_the_same_mask_is_the_same_bytes_and_says_nothing_but_geometry(tmp_path: Path):
    scan = Scan(Path("DOE"), HU, unit="HU")
    frame = frame_of(scan, scan, SETTINGS)
    one, two = (write_mask(tmp_path / name, HU > 0, frame).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert one == two
    header = nib.load(tmp_path / "a.nii.gz").header
    assert [bytes(header[name]).strip(b"\0") for name in ("descrip", "aux_file", "db_name", "intent_name")] == [b""] * 4
    assert len(header.extensions) == 0


@pytest.mark.parametrize("form", ["ct-64.nii.gz", "dicom"])
@pytest.mark.parametrize("crop", ["none", "lungs"])
def test_what_is_dark_in_a_real_scan_lies_on_it_as_simpleitk_reads_it(
    shared: Path, tmp_path: Path, form: str, crop: str
):
    path, settings = shared / "cip_ct64" / form, Preprocessing(width=128, crop=crop)
    scan = read(path)
    tensor, prepared = prepare(scan, settings)
    frame = frame_of(scan, prepared, settings)
    grey = 255 * (-500 - settings.window_low) / (settings.window_high - settings.window_low)
    mask = restore((tensor[0] < grey).astype(np.float32), frame) > 0.5
    written = sitk.ReadImage(str(write_mask(tmp_path / "mask.nii.gz", mask, frame)))
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
    source = sitk.ReadImage(files)
    assert written.GetSize() == source.GetSize()
    box = np.zeros(frame.shape, np.float32)
    box[tuple(slice(*part) for part in frame.box)] = 1
    places = [sitk.ReadImage(str(write_mask(tmp_path / "box.nii.gz", box > 0, frame))), written]
    inside, found = (
        sitk.GetArrayFromImage(sitk.Resample(image, source, sitk.Transform(), sitk.sitkNearestNeighbor)) == 1
        for image in places
    )
    assert dice(found, (sitk.GetArrayFromImage(source) < -500) & inside) > 0.98
