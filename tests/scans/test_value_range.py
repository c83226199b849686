"""Is it HU, or grey already windowed? The same chest in every unit that people store it in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import write_nifti, write_slices

from cov3d import Preprocessing, preprocess, read
from cov3d.chest import AIR, draw
from cov3d.config import Reading
from cov3d.scans.value_range import measure, unit_of

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


@pytest.mark.parametrize("severity", range(5))
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize(("shift", "tissue"), [(0, None), (250, (270, 310)), (-250, (-230, -190))])
def test_a_chest_shifted_by_250_hu_is_said_with_its_air_and_tissue(size: int, severity: int, shift: int, tissue):
    for seed in range(2):
        chest = draw(seed, severity, size, 24).hu + shift
        said = unit_of(measure(chest.astype(np.float32)), Reading()).warnings
        if tissue is None:
            assert said == ()
            continue
        found = re.fullmatch(
            r"values are unlikely for HU: air at (\S+), soft tissue at (\S+); is the rescale .*", said[0]
        )
        air, level = (int(value) for value in found.groups())
        assert tissue[0] < level < tissue[1]
        assert air == pytest.approx(AIR + shift, abs=20) if shift > 0 else air < -500


def test_stored_values_without_their_intercept_are_said_though_padding_is_black(tmp_path: Path):
    stored = np.where(HU < -990, -2000, HU + 1024).astype(np.int16)
    said = read(write_nifti(tmp_path / "scan.nii.gz", stored)).remarks
    assert said[0].startswith("values are unlikely for HU: no air, soft tissue at")
    assert read(write_nifti(tmp_path / "same.nii.gz", stored), Reading(range="hu")).remarks == ()


@pytest.mark.parametrize("noise", [60, 120, 250])
def test_noise_raises_no_doubt(noise: int):
    rng = np.random.default_rng(noise)
    noisy = HU + rng.normal(0, noise, HU.shape)
    assert unit_of(measure(noisy.astype(np.float32)), Reading()).warnings == ()


def test_the_histogram_is_numpys_of_the_sample_and_knows_no_nan():
    pixels = np.random.default_rng(0).normal(-300, 400, (3, 200, 130)).astype(np.float32)
    pixels[0, :6, :6] = np.nan, np.inf, -np.inf, 0, 0, 0
    values = measure(pixels)
    sample = pixels[:, ::2, ::2]
    assert values.sampled == sample.size
    assert values.share((-150, 200)) == pytest.approx(np.mean((sample >= -150) & (sample < 200)), abs=1e-6)
    assert values.not_finite == 18


REAL = {
    "cip_ct64/ct-64.nii.gz": 2,
    "cip_ct64/dicom": 2,
    "pyradiomics/lung2_image.nrrd": 2,
    "ibsi_phantom/nifti/image/phantom.nii.gz": 2,
    "totalseg/pulmonary_ct_cropped.nii.gz": 2,
    "totalseg/example_ct_abdomen.nii.gz": 2,
    "lungfcp_0006_15slices": 1,  # fat and muscle drown in the shoulders' noise
}


@pytest.mark.parametrize("name", REAL)
def test_real_hu_raise_no_doubt_until_they_are_shifted(shared: Path, name: str):
    voxels = read(shared / name).voxels

    def said(shift: int) -> tuple[str, ...]:
        return unit_of(measure(voxels + np.float32(shift)), Reading()).warnings

    assert said(0) == ()
    assert len(said(250)) + len(said(-250)) == REAL[name]


def test_grey_beyond_white_is_cut_and_said(tmp_path: Path):
    scan = read(write_nifti(tmp_path / "scan.nii.gz", HU), Reading(range="grey"))
    assert "cut to 0…255" in scan.remarks[0]
    assert preprocess(scan, SETTINGS).min() == 0
