"""Is it HU, or grey already windowed? The same chest in every unit that people store it in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_nifti, write_slices

from cov3d import Preprocessing, preprocess, read
from cov3d.chest import draw
from cov3d.config import Reading

SETTINGS = Preprocessing(width=48)
HU = draw(3, severity=2, size=64, slices=24).hu


def windowed(hu: np.ndarray) -> np.ndarray:
    return np.clip((hu + 1150.0) / 1500 * 255, 0, 255)


GREY = np.rint(windowed(HU)).astype(np.uint8)
# Pillow rounds and cuts 8-bit slices between its two passes, where edges overshoot.
TOLERANCE = {"8-bit grey": 6}
WAYS = {
    "HU": (HU, "HU", ""),
    "8-bit grey": (GREY, "grey", "taken as grey levels"),
    "grey as floats": (windowed(HU).astype(np.float32), "grey", "taken as grey levels"),
    "shares of white": ((windowed(HU) / 255).astype(np.float32), "grey", "taken as grey levels"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_unit_of_a_chest_gives_the_same_tensor(tmp_path: Path, way: str):
    values, unit, said = WAYS[way]
    scan = read(write_nifti(tmp_path / "scan.nii.gz", values))
    expected = preprocess(read(write_nifti(tmp_path / "hu.nii.gz", HU)), SETTINGS)
    assert scan.unit == unit
    assert said in "; ".join(scan.remarks)
    assert bool(said) == bool(scan.remarks)
    np.testing.assert_allclose(preprocess(scan, SETTINGS).astype(int), expected, atol=TOLERANCE.get(way, 1))


def test_eight_bit_grey_in_a_volume_is_the_same_as_in_slices(tmp_path: Path):
    volume = read(write_nifti(tmp_path / "scan.nii.gz", GREY))
    np.testing.assert_array_equal(
        preprocess(volume, SETTINGS), preprocess(read(write_slices(tmp_path / "scan", GREY)), SETTINGS)
    )


@pytest.mark.parametrize("padding", [-2000, -3024])
def test_padding_is_air(tmp_path: Path, padding: int):
    padded, black = (np.where(HU < -990, value, HU).astype(np.int16) for value in (padding, -1150))
    scan = read(write_nifti(tmp_path / "padded.nii.gz", padded))
    assert (scan.unit, scan.remarks) == ("HU", ())
    expected = preprocess(read(write_nifti(tmp_path / "black.nii.gz", black)), SETTINGS)
    np.testing.assert_array_equal(preprocess(scan, SETTINGS), expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_unit_that_is_said_is_not_doubted(tmp_path: Path, way: str):
    values, unit, _ = WAYS[way]
    path = write_nifti(tmp_path / "scan.nii.gz", values)
    scan = read(path, Reading(range="hu" if unit == "HU" else "grey"))
    assert (scan.unit, scan.remarks) == (unit, ())
    np.testing.assert_array_equal(preprocess(scan, SETTINGS), preprocess(read(path), SETTINGS))


@pytest.mark.parametrize(
    "shift, said",
    [
        (1024, "do they lack an offset of -1024"),
        (-1000, "no soft tissue near 0 HU"),
        (-1024, "no soft tissue near 0 HU"),
    ],
)
def test_hu_that_are_shifted_are_said(tmp_path: Path, shift: int, said: str):
    chest = np.clip(HU, -1024, 3000) + shift
    chest[5, 20:22, 20:22] = 1500  # metal
    scan = read(write_nifti(tmp_path / "scan.nii.gz", chest.astype(np.int16)))
    assert said in scan.remarks[0]


def test_grey_beyond_white_is_cut_and_said(tmp_path: Path):
    scan = read(write_nifti(tmp_path / "scan.nii.gz", HU), Reading(range="grey"))
    assert "cut to 0…255" in scan.remarks[0]
    assert preprocess(scan, SETTINGS).min() == 0
