"""Masks: whatever form and orientation they are stored in, they lie on their scan's tensor, or are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import smooth_volume, write_nifti, write_slices
from PIL import Image

from cov3d import Preprocessing, preprocess, read
from cov3d.chest import Chest, draw
from cov3d.config import Reading, parse_labels
from cov3d.errors import ScanError, SettingError
from cov3d.forms import FORMS, write_dicom, write_mha, write_nrrd
from cov3d.scans.crop import Cropped
from cov3d.scans.mask import (
    EMPTY,
    TOO_SMALL,
    areas,
    canonical_affine,
    cut_alike,
    depth_areas,
    mask_remarks,
    prepare_mask,
    read_mask,
)
from cov3d.scans.preprocess import prepare
from cov3d.scans.scan import Scan, Selection

SETTINGS = Preprocessing(width=32)
SHAPE, SPACING = (10, 24, 20), (2.0, 0.8, 0.8)
ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)
]


def blob(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Lesions without any symmetry."""
    d, h, w = np.ogrid[tuple(map(slice, shape))]
    ball = (d / shape[0] - 0.4) ** 2 + (h / shape[1] - 0.3) ** 2 + (w / shape[2] - 0.6) ** 2 < 0.06
    return ball | ((d == 8) & (h > 15) & (w < 4))


def hu_scan(folder: Path, shape: tuple[int, int, int] = SHAPE) -> Scan:
    """A scan in HU, not square, so that axes cannot be taken for each other."""
    depth, height, width = shape
    hu = smooth_volume(depth, max(height, width))[:, :height, :width].astype(np.int16) * 5 - 1000
    return read(write_nifti(folder / "scan.nii", hu, SPACING), Reading(range="hu"))


def picture_scan(folder: Path, slices: int = 10, side: int = 24) -> Scan:
    return read(write_slices(folder / "scan", smooth_volume(slices, side), numbers=range(3, 3 + slices)))


def mask_file(folder: Path, values: np.ndarray, **ways) -> Path:
    return write_nifti(folder / "mask.nii.gz", values, ways.pop("spacing", SPACING), **ways)


def moved(path: Path, by: tuple[float, float, float]) -> Path:
    """A NIfTI volume that lies so many mm elsewhere."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += by
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), path)
    return path


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


# Reading


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_mask_stored_in_any_orientation_is_the_same_mask(tmp_path: Path, codes: str):
    scan = hu_scan(tmp_path)
    found = read_mask(mask_file(tmp_path, blob().astype(np.uint8), codes=codes), scan)
    np.testing.assert_array_equal(found, blob())
    assert found.dtype == bool


@pytest.mark.parametrize("codes", ORIENTATIONS[::5])
def test_and_a_scan_stored_in_any_orientation_has_the_same_tensor_of_it(tmp_path: Path, codes: str):
    whole = hu_scan(tmp_path)
    turned = read(
        write_nifti(tmp_path / "turned.nii", whole.voxels.astype(np.int16), SPACING, codes), Reading(range="hu")
    )
    path = mask_file(tmp_path, blob().astype(np.uint8))
    one, other = (prepare_mask(read_mask(path, s), prepare(s, SETTINGS)[1], SETTINGS) for s in (whole, turned))
    np.testing.assert_array_equal(one, other)
    assert one.any()


@pytest.mark.parametrize(("of_scan", "of_mask"), [(write_mha, write_nrrd), (write_nrrd, write_mha)])
def test_masks_of_itks_forms_lie_on_each_other(tmp_path: Path, of_scan: Callable, of_mask: Callable):
    suffix = {write_mha: ".mha", write_nrrd: ".nrrd"}
    hu = hu_scan(tmp_path).voxels.astype(np.int16)
    scan = read(of_scan(tmp_path / f"one{suffix[of_scan]}", hu, SPACING), Reading(range="hu"))
    mask = of_mask(tmp_path / f"two{suffix[of_mask]}", blob().astype(np.int16), SPACING)
    np.testing.assert_array_equal(read_mask(mask, scan), blob())


@pytest.mark.parametrize("form", ["nifti", "mha", "nrrd"])
def test_masks_of_any_form_lie_on_a_dicom_series(tmp_path: Path, form: str):
    hu = hu_scan(tmp_path).voxels.astype(np.int16)
    scan = read(write_dicom(tmp_path / "scan", hu, SPACING))
    mask = FORMS[form].write(tmp_path / f"mask{FORMS[form].suffix}", blob().astype(np.int16), SPACING, 0)
    np.testing.assert_array_equal(read_mask(mask, scan), blob())


@pytest.mark.parametrize("form", ["nifti", "mha", "nrrd"])
def test_masks_of_any_form_that_lie_elsewhere_are_refused(tmp_path: Path, form: str):
    scan = hu_scan(tmp_path)  # begins at 0 mm, where the others have their middle
    mask = FORMS[form].write(tmp_path / f"mask{FORMS[form].suffix}", blob().astype(np.int16), SPACING, 0)
    assert "lies elsewhere than its scan, by up to 11.5 voxels" in refusal(mask, scan)


@pytest.mark.parametrize("white", [1, 255])
def test_pictures_have_masks_of_pictures_in_either_white(tmp_path: Path, white: int):
    scan = picture_scan(tmp_path)
    lesions = blob((10, 24, 24))
    folder = write_slices(tmp_path / "mask", lesions.astype(np.uint8) * white)
    np.testing.assert_array_equal(read_mask(folder, scan), lesions)


def test_pictures_may_have_a_volume_for_a_mask_of_which_only_the_shape_is_compared(tmp_path: Path):
    scan = picture_scan(tmp_path)
    lesions = blob((10, 24, 24))
    path = moved(mask_file(tmp_path, lesions.astype(np.uint8), codes="RAS"), (30, -50, 700))
    np.testing.assert_array_equal(read_mask(path, scan), lesions)


@pytest.mark.parametrize("form", ["pictures", "volume"])
def test_slices_that_a_scan_was_read_without_are_left_out_of_its_mask(tmp_path: Path, form: str):
    whole = picture_scan(tmp_path, slices=24)
    (whole.source / "7.png").write_bytes(b"damaged")
    scan = read(whole.source)
    assert len(scan.slices) == 23
    lesions = np.random.default_rng(0).random((24, 24, 24)) < 0.5
    path = tmp_path / "mask"
    if form == "pictures":
        write_slices(path, lesions.astype(np.uint8))
    else:
        path = mask_file(tmp_path, lesions.astype(np.uint8))
    np.testing.assert_array_equal(read_mask(path, scan), np.delete(lesions, 4, axis=0))


@pytest.mark.parametrize(
    ("labels", "values"), [("1", {1}), ("2,3", {2, 3}), (" 3 , 2,2", {2, 3}), ("1,2,3", {1, 2, 3}), ("9", set())]
)
def test_labels_say_which_values_are_lesion(tmp_path: Path, labels: str, values: set[int]):
    stored = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    found = read_mask(mask_file(tmp_path, stored), hu_scan(tmp_path), labels)
    np.testing.assert_array_equal(found, np.isin(stored, list(values)))


def test_values_are_those_that_the_header_scales_to(tmp_path: Path):
    path = mask_file(tmp_path, blob().astype(np.uint8))
    image = nib.Nifti1Image((blob() * 4).astype(np.int16), nib.load(path).affine)
    image.header.set_slope_inter(0.25, 0)
    nib.save(image, path)
    np.testing.assert_array_equal(read_mask(path, hu_scan(tmp_path)), blob())


def test_an_empty_mask_is_one_and_it_is_said(tmp_path: Path):
    scan = hu_scan(tmp_path)
    mask = read_mask(mask_file(tmp_path, np.zeros(SHAPE, np.uint8)), scan)
    tensor = prepare_mask(mask, prepare(scan, SETTINGS)[1], SETTINGS)
    assert not mask.any() and not tensor.any()
    assert mask_remarks(mask, tensor) == (EMPTY,)


def test_lesions_that_vanish_in_the_tensor_are_said(tmp_path: Path):
    scan = hu_scan(tmp_path, (40, 64, 64))
    mask = np.zeros((40, 64, 64), bool)
    mask[9, 5, 5] = True
    tensor = prepare_mask(mask, prepare(scan, SETTINGS)[1], SETTINGS)
    assert mask_remarks(mask, tensor) == (TOO_SMALL,)
    mask[8:16, 4:12, 4:12] = True
    assert mask_remarks(mask, prepare_mask(mask, prepare(scan, SETTINGS)[1], SETTINGS)) == ()


# What is refused


def refusal(path: Path, scan: Scan, labels: str = "") -> str:
    with pytest.raises(ScanError) as caught:
        read_mask(path, scan, labels)
    assert caught.value.path == path
    return caught.value.cause


@pytest.mark.parametrize("shape", [(11, 24, 20), (10, 20, 24), (10, 12, 10)])
def test_another_shape_is_refused_with_both_shapes(tmp_path: Path, shape: tuple[int, int, int]):
    cause = refusal(mask_file(tmp_path, np.ones(shape, np.uint8)), hu_scan(tmp_path))
    assert f"is of {shape} voxels (D, H, W), its scan of {SHAPE} (canonical affines [" in cause
    assert cause.count("[") == 2 and "; give the mask in the scan's own geometry" in cause


def test_another_place_is_refused_with_both_affines_and_the_distance(tmp_path: Path):
    path = moved(mask_file(tmp_path, blob().astype(np.uint8), codes="RAS"), (4.0, 0, 1.0))
    cause = refusal(path, hu_scan(tmp_path))
    assert "lies elsewhere than its scan, by up to 5 voxels" in cause
    assert (
        "its canonical affine is [0 0 -0.8 4; 0 -0.8 0 0; -2 0 0 1], the scan's [0 0 -0.8 0; 0 -0.8 0 0; -2 0 0 0]"
        in cause
    )


@pytest.mark.parametrize("spacing", [(2.5, 0.8, 0.8), (2.0, 0.9, 0.9), (2.0, 0.8, 0.9)])
def test_another_spacing_is_refused(tmp_path: Path, spacing: tuple[float, float, float]):
    cause = refusal(mask_file(tmp_path, blob().astype(np.uint8), spacing=spacing), hu_scan(tmp_path))
    assert "lies elsewhere than its scan" in cause


@pytest.mark.parametrize("axis", range(3))
def test_a_mirrored_mask_is_refused(tmp_path: Path, axis: int):
    path = mask_file(tmp_path, blob().astype(np.uint8), codes="LPS")
    image = nib.load(path)
    affine = image.affine @ np.diag([-1.0 if k == axis else 1.0 for k in range(4)])
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), path)
    assert "lies elsewhere than its scan" in refusal(path, hu_scan(tmp_path))


@pytest.mark.parametrize(("voxels", "refused"), [(0.2, False), (0.3, True), (0.5, True), (1.0, True)])
def test_roundings_of_a_header_are_forgiven_and_half_a_voxel_is_not(tmp_path: Path, voxels: float, refused: bool):
    path = moved(mask_file(tmp_path, blob().astype(np.uint8)), (0, voxels * SPACING[1], 0))
    scan = hu_scan(tmp_path)
    if refused:
        assert f"by up to {voxels:.3g} voxels" in refusal(path, scan)
    else:
        np.testing.assert_array_equal(read_mask(path, scan), blob())


def test_other_values_are_refused_and_listed(tmp_path: Path):
    values = blob().astype(np.int16)
    values[0, 0, :3] = (2, 7, -1)
    cause = refusal(mask_file(tmp_path, values), hu_scan(tmp_path))
    assert "holds the values -1, 0, 1, 2, 7, expected 0 and 1; else say with --mask-labels which are lesion" in cause


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.where(blob(), 255, 0).astype(np.uint8), "0, 255"),
        (np.where(blob(), 0.5, 0).astype(np.float32), "0, 0.5"),
        (np.arange(10 * 24 * 20, dtype=np.int16).reshape(SHAPE), "0, 1, 2, 3, 4, and 4795 more"),
    ],
)
def test_few_values_are_listed_of_many(tmp_path: Path, values: np.ndarray, said: str):
    assert f"holds the values {said}, expected 0 and 1" in refusal(mask_file(tmp_path, values), hu_scan(tmp_path))


def test_pictures_of_three_greys_are_refused(tmp_path: Path):
    grey = blob((10, 24, 24)).astype(np.uint8)
    grey[0, 0, 0] = 255
    cause = refusal(write_slices(tmp_path / "mask", grey), picture_scan(tmp_path))
    assert "holds the values 0, 1, 255, expected 0 and 1, or 0 and 255; else say" in cause


def test_jpeg_masks_are_refused_and_it_is_said_why(tmp_path: Path):
    folder = write_slices(tmp_path / "mask", blob((10, 24, 24)).astype(np.uint8) * 255, suffix=".jpg")
    assert "JPEG changes values, so export it as PNG" in refusal(folder, picture_scan(tmp_path))


@pytest.mark.parametrize("labels", ["", "1"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float, labels: str):
    values = blob().astype(np.float32)
    values[3, 4, 5] = value
    cause = refusal(mask_file(tmp_path, values), hu_scan(tmp_path), labels)
    assert cause == "holds values that are NaN or infinite; export the mask again"


def test_pictures_are_no_mask_of_what_lies_in_the_patient(tmp_path: Path):
    folder = write_slices(tmp_path / "mask", blob((10, 24, 24)).astype(np.uint8))
    cause = refusal(folder, hu_scan(tmp_path, (10, 24, 24)))
    assert "is pictures, which lie nowhere" in cause and "give it as a volume" in cause


def test_a_mask_whose_pictures_are_damaged_is_refused(tmp_path: Path):
    scan = picture_scan(tmp_path, 24)
    folder = write_slices(tmp_path / "mask", blob((24, 24, 24)).astype(np.uint8))
    data = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(b"damaged")
    cause = refusal(folder, scan)
    assert cause == "1 slice unreadable, or of another size than the others; a mask needs all of its slices"
    (folder / "5.png").write_bytes(data[: len(data) // 2])
    assert refusal(folder, scan).endswith("; a mask needs all of its slices")


def test_what_is_not_there_or_no_volume_is_a_sentence(tmp_path: Path):
    scan = hu_scan(tmp_path)
    assert refusal(tmp_path / "nothing.nii.gz", scan) == "is not there"
    (tmp_path / "mask.nii.gz").write_bytes(b"\x1f\x8b damaged")
    assert refusal(tmp_path / "mask.nii.gz", scan)


@pytest.mark.parametrize("text", ["lesion", "1;3", "1,,2", "-1", "1.5", "١", "0", "0,1", "1" * 9])
def test_labels_that_cannot_be_are_refused(text: str):
    with pytest.raises(SettingError, match="--mask-labels"):
        parse_labels(text)


def test_the_same_labels_are_the_same_however_they_are_written():
    assert parse_labels("3, 1,1") == parse_labels("1,3") == (1, 3)
    assert parse_labels("") == parse_labels(" ") == ()


# To a tensor


def by_supersampling(mask: np.ndarray, settings: Preprocessing) -> np.ndarray:
    """Shares of lesion, each voxel split into as many as its axis gets, and these averaged; slices evenly spaced."""
    depth, height, width = settings.shape
    fine = mask.astype(float)
    for axis, count in ((1, height), (2, width)):
        size = fine.shape[axis]
        fine = np.repeat(fine, count, axis=axis)
        fine = fine.reshape(*fine.shape[:axis], count, size, *fine.shape[axis + 1 :]).mean(axis + 1)
    n, points = len(mask), 4000
    out = []
    for place in np.linspace(0, n - 1, depth):
        half = (n - 1) / (depth - 1) / 2
        sample = place + half * (2 * (np.arange(points) + 0.5) / points - 1)
        sample = sample[(sample > -0.5) & (sample < n - 0.5)]
        out.append(np.bincount(np.rint(sample).astype(int), minlength=n) / len(sample) @ fine.reshape(n, -1))
    return np.array(out).reshape(settings.shape)


@pytest.mark.parametrize("shape", [(10, 24, 20), (47, 50, 33), (5, 16, 16), (64, 100, 90)])
@pytest.mark.parametrize("settings", [SETTINGS, Preprocessing(width=20, depth=33)])
def test_areas_are_those_of_an_independent_count(tmp_path: Path, shape: tuple[int, int, int], settings: Preprocessing):
    mask = np.random.default_rng(0).random(shape) < 0.4
    mask |= blob(shape)
    shares = by_supersampling(mask, settings)
    sure = np.abs(shares - 0.5) > 0.002
    found = prepare_mask(mask, prepare(hu_scan(tmp_path, shape), settings)[1], settings)
    assert found.dtype == np.uint8 and found.shape == (1, *settings.shape)
    np.testing.assert_array_equal(found[0][sure] == 255, shares[sure] > 0.5)
    assert set(np.unique(found)) == {0, 255} and sure.mean() > 0.8


def even(slices: np.ndarray) -> Scan:
    """A scan of evenly spaced slices that says nothing else."""
    return Scan(Path("scan"), slices.astype(np.uint8), "grey")


def test_a_worked_example():
    """Four slices of 32×32 to two of 16×16: each voxel is two slices of 2×2."""
    mask = np.zeros((4, 32, 32), bool)
    mask[0, 0:2, 0:2] = True  # four of eight: a half, so lesion
    mask[0:2, 4, 4] = True  # two of eight
    mask[2:4, 6:8, 30] = True  # four of eight
    mask[3, 10:12, 10] = True  # two of eight
    found = prepare_mask(mask, even(mask), Preprocessing(width=16, depth=2))[0]
    assert np.argwhere(found).tolist() == [[0, 0, 0], [1, 3, 15]]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_in_plane_it_is_pillows_box(factor: int):
    side = 16 * factor
    mask = np.random.default_rng(factor).random((6, side, side)) < 0.5
    found = prepare_mask(mask, even(mask), Preprocessing(width=16, depth=6))[0]
    for voxels, pixels in zip(found, mask, strict=True):
        box = np.asarray(Image.fromarray(pixels.astype(np.float32)).resize((16, 16), Image.Resampling.BOX))
        np.testing.assert_array_equal(voxels == 255, box > 0.4999)


def test_one_slice_is_every_slice_and_one_place_is_the_first_slice():
    mask = blob()
    whole = prepare_mask(mask[4:5], even(mask[4:5]), SETTINGS)[0]
    assert whole.any() and (whole == whole[0]).all()
    first = prepare_mask(mask, even(mask), replace(SETTINGS, depth=1))
    np.testing.assert_array_equal(first, prepare_mask(mask[:1], even(mask[:1]), replace(SETTINGS, depth=1)))


def test_shares_add_up_and_nothing_is_counted_twice():
    for shares in (areas(np.arange(11.0), np.linspace(0, 10, 5)), depth_areas(np.array([0.0, 1, 2, 5, 6]), 7)):
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(areas(np.arange(11.0), np.linspace(0, 10, 5)).sum(0), 0.4, atol=1e-6)


def test_a_gap_in_the_body_is_filled_by_the_slices_beside_it():
    """Slices at 0, 1, 5, 6: at the places 0 … 6, the first two and the last two; 3 is half-way."""
    shares = depth_areas(np.array([0.0, 1, 5, 6]), 7)
    assert shares.argmax(1).tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert shares[3].tolist() == [0, 0.5, 0.5, 0]


def test_what_is_cut_and_chosen_is_cut_and_chosen_alike():
    volume = np.arange(10 * 6 * 5).reshape(10, 6, 5)
    chosen = Selection(list(volume), [0, 2, 3, 7, 9])
    cropped = Cropped(chosen, 1, 4, slice(1, 5), slice(2, 4))
    np.testing.assert_array_equal(cut_alike(volume, cropped), np.stack(list(cropped)))
    both = Selection(cropped, [2, 0])
    np.testing.assert_array_equal(cut_alike(volume, both), np.stack(list(both)))


# It lies on the tensor


@cache
def chest(severity: int) -> Chest:
    return draw(severity, severity, 128, 48)


def painted(lesions: np.ndarray) -> np.ndarray:
    """Lesions white, all else black, as HU."""
    return np.where(lesions, 350, -1150).astype(np.int16)


@pytest.mark.parametrize("severity", [1, 2, 4])
@pytest.mark.parametrize("width", [64, 100])
def test_a_mask_lies_on_what_is_white_in_the_tensor(tmp_path: Path, severity: int, width: int):
    drawn, settings = chest(severity), Preprocessing(width=width)
    scan = read(write_nifti(tmp_path / "scan.nii", painted(drawn.lesions), drawn.spacing))
    tensor, prepared = prepare(scan, settings)
    mask = read_mask(mask_file(tmp_path, drawn.lesions.astype(np.uint8), spacing=drawn.spacing, codes="RAS"), scan)
    found = prepare_mask(mask, prepared, settings)
    assert dice(found > 127, tensor > 127) > 0.93
    shifted = [dice(np.roll(found, by, axis) > 127, tensor > 127) for axis in (1, 2, 3) for by in (-1, 1)]
    assert dice(found > 127, tensor > 127) > max(shifted) + 0.05


def test_so_it_does_when_the_scan_is_cut_to_its_lungs(tmp_path: Path):
    drawn, settings = chest(3), Preprocessing(width=64, crop="lungs")
    scan = read(write_nifti(tmp_path / "scan.nii", drawn.hu, drawn.spacing))
    _, prepared = prepare(scan, settings)
    part = prepared.slices
    assert isinstance(part, Cropped)
    inside = painted(drawn.lesions)[part.first : part.end, part.rows, part.columns]
    by_hand = preprocess(read(write_nifti(tmp_path / "part.nii", inside, drawn.spacing)), Preprocessing(width=64))
    mask = read_mask(mask_file(tmp_path, drawn.lesions.astype(np.uint8), spacing=drawn.spacing), scan)
    assert dice(prepare_mask(mask, prepared, settings) > 127, by_hand > 127) > 0.95


@pytest.mark.parametrize("crop", ["none", "lungs"])
def test_so_it_does_when_slices_turn_out_to_be_unreadable(tmp_path: Path, crop: str):
    drawn, settings = chest(3), Preprocessing(width=64, crop=crop)  # type: ignore[arg-type]
    grey = np.rint(np.clip((drawn.hu + 1150) / 1500, 0, 1) * 255).astype(np.uint8)
    folder = write_slices(tmp_path / "scan", grey)
    for number in (11, 25, 26):
        data = (folder / f"{number}.png").read_bytes()
        (folder / f"{number}.png").write_bytes(data[: len(data) // 2])  # its header can be read
    scan = read(folder)
    assert len(scan.slices) == 48
    _, prepared = prepare(scan, settings)
    assert len(prepared.slices) <= 45
    mask = read_mask(mask_file(tmp_path, drawn.lesions.astype(np.uint8)), scan)
    white = write_slices(tmp_path / "white", np.where(drawn.lesions, np.uint8(255), np.uint8(0)))
    for number in (11, 25, 26):
        (white / f"{number}.png").unlink()
    lost = read(white)
    if crop == "lungs":
        part = prepared.slices
        assert isinstance(part, Cropped)
        places = slice(part.first, part.end)
        lost = replace(
            lost,
            slices=np.stack(list(lost.slices))[places, part.rows, part.columns],
            positions=np.delete(np.arange(48.0), [11, 25, 26])[places],
        )
    else:
        lost = replace(lost, positions=np.delete(np.arange(48.0), [11, 25, 26]))
    by_hand = preprocess(lost, Preprocessing(width=64))
    assert dice(prepare_mask(mask, prepared, settings) > 127, by_hand > 127) > 0.93


def test_canonical_affines_agree_with_nibabels_reorientation(tmp_path: Path):
    for codes in ORIENTATIONS[::7]:
        path = moved(mask_file(tmp_path, blob().astype(np.uint8), codes=codes), (3, -40, 55))
        scan = read(path, Reading(range="hu"))
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(("I", "P", "L"))
        )
        np.testing.assert_allclose(canonical_affine(scan, SHAPE), image.as_reoriented(turn).affine, atol=1e-5)


# Real masks


def test_the_tumour_of_ibsi_is_one_tensor_on_its_nifti_and_on_its_dicom(shared: Path):
    folder = shared / "ibsi_phantom"
    settings = Preprocessing(width=64)
    tensors = []
    for path in (folder / "nifti/image/phantom.nii.gz", folder / "dicom/image"):
        scan = read(path)
        mask = read_mask(folder / "nifti/mask/mask.nii.gz", scan)
        assert mask.sum() == 125256
        tensors.append(prepare_mask(mask, prepare(scan, settings)[1], settings))
    np.testing.assert_array_equal(*tensors)
    assert tensors[0].mean() / 255 == pytest.approx(125256 / mask.size, rel=0.03)


def test_a_full_size_tumour_keeps_its_share_of_the_scan(shared: Path):
    scan = read(shared / "pyradiomics/lung2_image.nrrd")
    mask = read_mask(shared / "pyradiomics/lung2_label.nrrd", scan)
    settings = Preprocessing(width=256, depth=61)
    tensor = prepare_mask(mask, prepare(scan, settings)[1], settings)
    assert tensor.mean() / 255 == pytest.approx(mask.mean(), rel=0.03)


@pytest.mark.parametrize("form", ["ct-64.nrrd", "ct-64.nii.gz", "dicom"])
def test_real_lungs_are_black_where_their_mask_is_white(shared: Path, form: str):
    scan = read(shared / "cip_ct64" / form)
    mask = read_mask(shared / "cip_ct64/wholeLung-64.nrrd", scan)
    settings = Preprocessing(width=64)
    tensor, prepared = prepare(scan, settings)
    white = prepare_mask(mask, prepared, settings) > 127
    hu = tensor[white].astype(float) * 1500 / 255 - 1150
    assert 0.05 < white.mean() < 0.4 and np.median(hu) < -700


def test_a_real_mask_of_lobes_asks_which_are_meant(shared: Path):
    scan = read(shared / "cip_ct64/ct-64.nrrd")
    assert "--mask-labels" in refusal(shared / "cip_ct64/lm-64.nrrd", scan)
