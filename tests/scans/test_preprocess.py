"""Preprocessing equals the reference, Pillow and scipy, to one grey level; for any number of slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_volume, write_nifti, write_slices
from PIL import Image
from scipy.interpolate import CubicSpline

from cov3d import Preprocessing, preprocess, read
from cov3d.errors import SettingError
from cov3d.scans.preprocess import prepare
from cov3d.scans.spline import add_band, spline_matrix


def reference(volume: np.ndarray, depth: int, width: int) -> np.ndarray:
    """Cov3d's published way: Pillow's bicubic to 8 bits, then a spline for every pixel column."""
    shrunk = [np.asarray(Image.fromarray(p).resize((width, width), Image.Resampling.BICUBIC)) for p in volume]
    stack = np.stack(shrunk) / 255
    if len(stack) == 1:
        return np.repeat(stack, depth, 0)
    spline = CubicSpline(np.linspace(0, 1, len(stack)), stack, axis=0, bc_type="not-a-knot")
    return np.clip(spline(np.linspace(0, 1, depth)), 0, 1)


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5, 16, 17, 40, 131])
def test_slices_become_what_pillow_and_scipy_make_of_them(tmp_path: Path, slices: int):
    volume = np.random.default_rng(slices).integers(0, 256, (slices, 40, 40), dtype=np.uint8)
    settings = Preprocessing(width=24)
    tensor = preprocess(read(write_slices(tmp_path / "scan", volume)), settings)
    assert (tensor.shape, tensor.dtype) == ((1, 12, 24, 24), np.uint8)
    np.testing.assert_allclose(tensor[0], 255 * reference(volume, 12, 24), atol=0.51)


def test_enlarging_is_the_same_way(tmp_path: Path):
    volume = smooth_volume(9, 20)
    tensor = preprocess(read(write_slices(tmp_path / "scan", volume)), Preprocessing(width=64))
    np.testing.assert_allclose(tensor[0], 255 * reference(volume, 32, 64), atol=0.51)


def test_first_and_last_slice_stay_first_and_last(tmp_path: Path):
    volume = smooth_volume(30, 32)
    tensor = preprocess(read(write_slices(tmp_path / "scan", volume)), Preprocessing(width=32, depth=7))
    np.testing.assert_array_equal(tensor[0, [0, -1]], volume[[0, -1]])


def test_a_volume_and_its_windowed_slices_give_the_same_tensor(tmp_path: Path):
    grey = smooth_volume(25, 40)
    hu = np.round(grey / 255 * 1500 - 1150).astype(np.int16)
    volume = preprocess(read(write_nifti(tmp_path / "scan.nii.gz", hu)), Preprocessing(width=24))
    slices = preprocess(read(write_slices(tmp_path / "scan", grey)), Preprocessing(width=24))
    np.testing.assert_allclose(volume.astype(int), slices, atol=1)


def test_the_window_cuts_before_the_resize(tmp_path: Path):
    hu = np.full((8, 40, 40), -1000, np.int16)
    hu[:, 20:, :] = 3000  # metal: its height above the window must not bleed into its surroundings
    cut = np.clip(hu, -1150, 350)
    settings = Preprocessing(width=24)
    np.testing.assert_array_equal(
        preprocess(read(write_nifti(tmp_path / "metal.nii", hu)), settings),
        preprocess(read(write_nifti(tmp_path / "cut.nii", cut)), settings),
    )


def test_another_window_moves_the_grey_levels(tmp_path: Path):
    path = write_nifti(tmp_path / "scan.nii", np.full((6, 20, 20), -245, np.int16))
    tensor = preprocess(read(path), Preprocessing(width=16, window_low=-1000, window_high=500))
    np.testing.assert_array_equal(tensor, round(755 / 1500 * 255))


def test_the_matrix_is_scipys_spline_at_uneven_places():
    positions = np.array([0.0, 1, 2, 4, 5, 9, 10])
    data = np.random.default_rng(0).normal(size=(7, 5))
    expected = CubicSpline(positions / 10, data)(np.linspace(0, 1, 33))
    np.testing.assert_allclose(spline_matrix(positions, 33) @ data, expected, atol=1e-6)


@pytest.mark.parametrize("slices", [20, 166, 1201])
def test_bands_lose_nothing(slices: int):
    matrix = spline_matrix(np.arange(slices, dtype=float), 160)
    data = np.random.default_rng(0).uniform(0, 255, (slices, 50)).astype(np.float32)
    banded = np.zeros((160, 50), np.float32)
    for first in range(0, slices, 16):
        add_band(banded, matrix[:, first : first + 16], data[first : first + 16])
    np.testing.assert_allclose(banded, matrix.astype(float) @ data.astype(float), atol=0.02)


def test_a_scan_of_one_slice_is_constant_and_says_so(tmp_path: Path):
    volume = smooth_volume(1, 32)
    tensor, scan = prepare(read(write_slices(tmp_path / "scan", volume)), Preprocessing(width=32))
    np.testing.assert_array_equal(tensor[0], np.repeat(volume, 16, 0))
    assert scan.remarks == ("only 1 slice: the volume is constant along depth",)


def test_a_black_scan_is_said_to_be_blank(tmp_path: Path):
    folder = write_slices(tmp_path / "scan", np.zeros((10, 32, 32), np.uint8))
    _, scan = prepare(read(folder), Preprocessing(width=32))
    assert scan.remarks == ("blank: the scan shows no structure",)


@pytest.mark.parametrize("width", [0, -2, 15, 4096])
def test_impossible_widths_are_refused(width: int):
    with pytest.raises(SettingError, match=rf"--width {width} is out of range"):
        Preprocessing(width=width)


def test_an_odd_width_wants_a_depth():
    with pytest.raises(SettingError, match=r"--width 321 is odd.*choose 322, or say --depth"):
        Preprocessing(width=321)
    assert Preprocessing(width=321, depth=160).shape == (160, 321, 321)
