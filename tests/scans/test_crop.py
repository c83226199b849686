"""Scans cut to the box of their lungs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_volume, write_nifti, write_slices

from cov3d import Preprocessing, preprocess, read
from cov3d.chest import Chest, draw
from cov3d.forms import write_jpeg
from cov3d.scans.cache import cache_folder
from cov3d.scans.crop import MARGIN, Cropped
from cov3d.scans.preprocess import prepare

WHOLE = Preprocessing(width=64)
CROPPED = Preprocessing(width=64, crop="lungs")


def truth(chest: Chest) -> tuple[slice, ...]:
    """The box of the lungs that were drawn."""
    places = np.argwhere(chest.lungs)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(places.min(0), places.max(0), strict=True))


@pytest.mark.parametrize("severity", range(5))
def test_a_drawn_chest_is_cut_to_its_lungs(tmp_path: Path, severity: int):
    chest = draw(severity, severity, 128, 48)
    _, scan = prepare(read(write_nifti(tmp_path / "scan.nii", chest.hu, chest.spacing)), CROPPED)
    assert isinstance(scan.slices, Cropped)
    cut = (slice(scan.slices.first, scan.slices.end), scan.slices.rows, scan.slices.columns)
    box = truth(chest)
    within = np.zeros(chest.lungs.shape, bool)
    within[cut] = True
    assert (chest.lungs & within).sum() >= 0.995 * chest.lungs.sum()
    for side, true in zip(cut, box, strict=True):
        assert side.stop - side.start <= (true.stop - true.start) * (1 + 2 * MARGIN) + 8
    assert scan.remarks == ()


def test_the_tensor_is_that_of_the_part(tmp_path: Path):
    chest = draw(1, 2, 128, 48)
    tensor, scan = prepare(read(write_nifti(tmp_path / "scan.nii", chest.hu, chest.spacing)), CROPPED)
    part = np.stack(list(scan.slices)).astype(np.int16)
    by_hand = preprocess(read(write_nifti(tmp_path / "part.nii", part, chest.spacing)), WHOLE)
    np.testing.assert_array_equal(tensor, by_hand)


def test_slices_and_volumes_are_cut_alike(tmp_path: Path):
    chest = draw(2, 1, 128, 48)
    slices = prepare(read(write_jpeg(tmp_path / "slices", chest.hu, chest.spacing)), CROPPED)[1].slices
    volume = prepare(read(write_nifti(tmp_path / "scan.nii", chest.hu, chest.spacing)), CROPPED)[1].slices
    for a, b in ((slices.rows, volume.rows), (slices.columns, volume.columns)):
        assert abs(a.start - b.start) + abs(a.stop - b.stop) <= 4
    assert abs(slices.first - volume.first) + abs(slices.end - volume.end) <= 2


def test_without_lungs_the_scan_stays_whole_and_it_is_said(tmp_path: Path):
    scan = read(write_slices(tmp_path / "scan", smooth_volume(20, 64) // 4 + 180))  # all as bright as flesh
    tensor, prepared = prepare(scan, CROPPED)
    np.testing.assert_array_equal(tensor, preprocess(scan, WHOLE))
    assert prepared.remarks == ("no lungs found, so the scan is not cut to them; is this a chest CT?",)
    assert prepare(scan, WHOLE)[1].remarks == ("no lungs found: is this a chest CT?",)


@pytest.mark.parametrize("settings", [WHOLE, CROPPED], ids=["whole", "cropped"])
def test_a_scan_without_its_bases_is_said_to_be_cut_off_however_it_is_prepared(tmp_path: Path, settings: Preprocessing):
    chest = draw(0, 2, 96, 48)
    whole, part = (write_nifti(tmp_path / f"{n}.nii", chest.hu[:n], chest.spacing) for n in (48, 30))
    assert prepare(read(whole), settings)[1].remarks == ()
    said = ("the lungs go on beyond the last slice: is the scan cut off?",)
    assert prepare(read(part), settings)[1].remarks == said


def test_an_abdomen_is_said_to_show_no_lungs(shared: Path):
    scan = read(shared / "totalseg" / "example_ct_abdomen.nii.gz")
    for settings in (WHOLE, CROPPED):
        assert "no lungs found" in prepare(scan, settings)[1].remarks[0]


def test_cropped_and_whole_tensors_lie_apart(tmp_path: Path):
    assert cache_folder(tmp_path, WHOLE) != cache_folder(tmp_path, CROPPED)
