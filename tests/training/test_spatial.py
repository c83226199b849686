"""Where an augmented scan's voxels come from: steps exact, or composed into one sampling that equals them done in turn."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from cov3d.config import AugmentationNumbers
from cov3d.training.draws import draw
from cov3d.training.elastic import RANK, field
from cov3d.training.spatial import PLANES, Placement, place, sample

SHAPES = {"cube": (12, 12, 12), "half as deep": (6, 12, 12)}
FLIPS = list(product((False, True), repeat=3))


def grey(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(shape) -> np.ndarray:
    """Grey levels 0…255: blobs without symmetry, air at the edges."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    blobs = ((0.2, -0.3, 0.1, 0.35), (-0.3, 0.2, 0.3, 0.25), (0.1, 0.35, -0.4, 0.3), (-0.2, -0.4, -0.2, 0.2))
    total = sum(
        np.exp(-((places - np.reshape(blob[:3], (3, 1, 1, 1))) ** 2).sum(0) / (2 * blob[3] ** 2)) for blob in blobs
    )
    total *= np.cos(places * np.pi / 2).prod(0)
    return np.rint(255 * total / total.max()).astype(np.uint8)


def core(alpha: float = 240.0, seed: int = 1) -> torch.Tensor:
    """A core that moves voxels by several of them: what is not composed rightly is seen."""
    return alpha * torch.randn(RANK, RANK, RANK, 3, generator=torch.Generator().manual_seed(seed))


def moved(volume: np.ndarray, flips, turns) -> np.ndarray:
    """numpy's flips and turns, one after another."""
    volume = np.flip(volume, np.flatnonzero(flips))
    for times, plane in zip(turns, PLANES, strict=True):
        volume = np.rot90(volume, times, plane)
    return volume


@pytest.mark.parametrize("flips", FLIPS, ids=str)
@pytest.mark.parametrize("shape, turns", [("cube", (1, 2, 3)), ("cube", (3, 1, 0)), ("half as deep", (2, 3, 2))])
def test_flips_and_turns_are_exact_and_the_sampling_equals_them(shape, turns, flips):
    volume = grey(SHAPES[shape])
    placement = Placement(flips=flips, turns=turns)
    expected = moved(volume, flips, turns).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(place(torch.from_numpy(volume), placement, volume.shape), expected)
    sampled = sample(torch.from_numpy(volume) / 255, placement, volume.shape)
    np.testing.assert_allclose(sampled, expected, atol=1e-5)


def test_a_crop_is_a_slice_of_the_cached_scan_and_then_flipped():
    volume = grey((8, 14, 14))
    placed = place(torch.from_numpy(volume), Placement(corner=(1, 0, 2), flips=(False, True, False)), (6, 12, 12))
    expected = volume[1:7, 0:12, 2:14][:, ::-1].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(placed, expected)


def test_the_whole_scan_is_resized_as_torch_resizes():
    volume = torch.from_numpy(grey((8, 16, 16)))
    expected = torch.nn.functional.interpolate(volume[None, None] / 255, (7, 14, 14), mode="trilinear")[0, 0]
    torch.testing.assert_close(place(volume, Placement(), (7, 14, 14)), expected, atol=1e-5, rtol=0)


def test_outside_the_scan_is_air():
    white = torch.full((4, 32, 32), 255, dtype=torch.uint8)
    turned = place(white, Placement(degrees=45.0), white.shape)
    assert turned[:, 0, 0].max() == 0
    assert turned[:, 16, 16].min() == 1


def by_hand(volume: np.ndarray, placement: Placement, shape) -> np.ndarray:
    """scipy in float64, voxel coordinates taken back through each step: displaced, turned, rotated, flipped, cropped."""
    column = (3, 1, 1, 1)
    middle = np.reshape([(side - 1) / 2 for side in shape], column)
    moves = np.moveaxis(field(placement.core, shape).numpy().astype(float), -1, 0) * np.reshape(shape, column) / 2
    at = np.indices(shape) + moves - middle
    for times, (a, b) in reversed(list(zip(placement.turns, PLANES, strict=True))):
        for _ in range(times):
            at[a], at[b] = at[b].copy(), -at[a]
    turn = np.deg2rad(placement.degrees)
    at[1], at[2] = np.cos(turn) * at[1] + np.sin(turn) * at[2], np.cos(turn) * at[2] - np.sin(turn) * at[1]
    at *= np.reshape([-1 if flipped else 1 for flipped in placement.flips], column)
    part = volume[tuple(slice(c, c + side) for c, side in zip(placement.corner, shape, strict=True))]
    return ndimage.map_coordinates(part / 255, at + middle, order=1, mode="grid-constant")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(24, 24, 24), (12, 24, 24), (10, 16, 24)], ids=str)
def test_all_steps_at_once_equal_the_coordinates_composed_by_hand(shape, seed):
    cached = tuple(side + 4 for side in shape)
    numbers = AugmentationNumbers(*[1.0] * 9)._replace(flip_height=0.5, elastic_voxels=2.0)
    placement = draw(1, numbers, cached, shape, torch.Generator().manual_seed(seed))[0].placement
    volume = grey(cached)
    placed = place(torch.from_numpy(volume), placement, shape)
    np.testing.assert_allclose(placed, by_hand(volume, placement, shape), atol=1e-4)


def in_turn(volume: np.ndarray, placement: Placement) -> np.ndarray:
    """The published steps one after another, each an interpolation of its own, by cubic splines."""
    volume = np.flip(volume / 255, np.flatnonzero(placement.flips))
    volume = ndimage.rotate(volume, placement.degrees, axes=(1, 2), reshape=False, order=3)
    volume = moved(volume, (), placement.turns)
    shift = np.moveaxis(field(placement.core, volume.shape).numpy(), -1, 0) * np.reshape(volume.shape, (3, 1, 1, 1)) / 2
    return ndimage.map_coordinates(volume, np.indices(volume.shape) + shift, order=3)


@pytest.mark.parametrize("shape", [(48, 48, 48), (24, 48, 48)], ids=str)
def test_one_sampling_equals_the_steps_in_turn_up_to_interpolation(shape):
    volume = smooth(shape)
    placement = Placement(None, (True, False, True), 17.0, (2, 1, 0), core())
    expected = in_turn(volume, placement)
    apart = np.abs(place(torch.from_numpy(volume), placement, shape).numpy() - expected)
    assert apart.max() < 0.03 and apart.mean() < 0.002
    for other in (  # what the bounds would not let pass
        Placement(None, (True, False, True), -17.0, (2, 1, 0), placement.core),
        Placement(None, (True, False, True), 17.0, (2, 1, 0), -placement.core),
        Placement(None, (True, False, False), 17.0, (2, 1, 0), placement.core),
    ):
        assert np.abs(place(torch.from_numpy(volume), other, shape).numpy() - expected).max() > 0.1


def test_slices_looked_up_a_few_at_a_time_are_those_looked_up_at_once(monkeypatch):
    volume = torch.from_numpy(grey((10, 12, 12)))
    placement = Placement(degrees=10.0, core=core())
    at_once = place(volume, placement, volume.shape)
    monkeypatch.setattr("cov3d.training.spatial.VOXELS_AT_ONCE", {"cpu": 3 * 144})
    torch.testing.assert_close(place(volume, placement, volume.shape), at_once, atol=1e-6, rtol=0)
