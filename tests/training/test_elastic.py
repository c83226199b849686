"""Elastic fields have the published distribution: white noise smoothed by three convolutions with zeros around."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from cov3d.training.draws import strength
from cov3d.training.elastic import RANK, basis, covariance, field, rms_voxels, smoothing


def published_kernel(sigma: float) -> np.ndarray:
    """As the published code makes it: an odd number of taps, about five σ, summing to 1."""
    taps = int(5 * sigma) // 2 * 2 + 1
    offsets = np.arange(taps) - (taps - 1) / 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def published_fields(count: int, shape, rng) -> np.ndarray:
    """One component of the published construction, ``(count, D, H, W)``, σ in proportion to the sides, α = 1."""
    noise = rng.uniform(-1, 1, (count, *shape))
    for axis, side in enumerate(shape, start=1):
        noise = ndimage.convolve1d(noise, published_kernel(35 * side / 224), axis, mode="constant")
    return noise * np.sqrt(np.prod(np.divide(shape, 224)))


def drawn_fields(count: int, shape, seed: int = 0) -> np.ndarray:
    """Fields as cov3d draws them, ``(count, D, H, W, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    cores = torch.randn(count, RANK, RANK, RANK, 3, generator=generator)
    return np.stack([field(core, shape).numpy() for core in cores])


def test_at_the_published_size_the_smoothing_is_the_published_convolution():
    kernel = published_kernel(35)
    assert len(kernel) == 175
    np.testing.assert_allclose(
        smoothing(224), ndimage.convolve1d(np.eye(224), kernel, 0, mode="constant"), rtol=0, atol=1e-15
    )


def test_the_standard_deviation_at_the_published_size_is_that_of_smoothed_uniform_noise():
    kernel = published_kernel(35)
    in_the_middle = np.sqrt((kernel**2).sum() ** 3 / 3)
    assert in_the_middle == pytest.approx(4.4e-4, rel=0.05)
    assert np.sqrt(covariance(224)[112, 112] ** 3) == pytest.approx(in_the_middle, rel=1e-9)


@pytest.mark.parametrize("side", [16, 32, 64, 112, 128, 224, 256])
def test_the_basis_has_the_covariance_to_a_ten_thousandth(side):
    exact, vectors = covariance(side), basis(side).astype(float)
    assert vectors.shape == (side, RANK)
    assert np.abs(vectors @ vectors.T - exact).max() < 1.1e-4 * exact.max()


def test_sums_of_so_many_are_gaussian():
    """Excess kurtosis of Σ w·U is −1.2 Σw⁴ / (Σw²)²; the furthest from the middle, in a corner, half the taps are left."""
    half = published_kernel(35)[87:]
    assert 1.2 * ((half**4).sum() / (half**2).sum() ** 2) ** 3 < 2e-5


def test_drawn_and_published_fields_have_the_same_covariance():
    """Between all pairs of 16 voxels, corners among them: both samples lie about the exact covariance."""
    shape, count = (8, 12, 12), 6000
    at = [(d, h, w) for d in (0, 4) for h in (0, 3, 6, 11) for w in (0, 6)]
    exact = np.array(
        [[np.prod([covariance(side)[i, j] for side, i, j in zip(shape, a, b, strict=True)]) for b in at] for a in at]
    )
    spread = np.sqrt((np.outer(exact.diagonal(), exact.diagonal()) + exact**2) / count)
    published = published_fields(count, shape, np.random.default_rng(0))[(slice(None), *np.transpose(at))]
    drawn = drawn_fields(count, shape)[(slice(None), *np.transpose(at))]
    for sample in (published, drawn[..., 0], drawn[..., 1], drawn[..., 2]):
        assert (np.abs(sample.T @ sample / count - exact) < 5 * spread).all()
    components = np.corrcoef(drawn[:, 5].T)
    assert np.abs(components - np.eye(3)).max() < 5 / np.sqrt(count)


def test_fields_are_calm_at_the_borders():
    """With zeros around, half of the noise is missing at a face; a grid of B-spline control points would double it there."""
    variance = covariance(224).diagonal()
    assert 0.4 < variance[0] / variance[112] < 0.6


@pytest.mark.parametrize("shape", [(16, 32, 32), (24, 24, 24)], ids=str)
def test_the_displacement_asked_for_in_voxels_is_the_one_drawn(shape):
    fields = drawn_fields(300, shape) * strength(0.5, 3.0, shape) * np.divide(shape, 2)
    assert np.sqrt((fields**2).sum(-1).mean()) == pytest.approx(3, rel=0.05)


def test_the_same_deformation_at_every_size():
    """Displacement keeps its share of the sides; as published it is next to nothing."""
    assert rms_voxels((64, 128, 128)) / 128 == pytest.approx(rms_voxels((112, 224, 224)) / 224, rel=0.02)
    assert strength(0.0, None, (224, 224, 224)) == 1 and strength(1.0, None, (224, 224, 224)) == 7
    assert 7 * rms_voxels((224, 224, 224)) == pytest.approx(0.51, rel=0.02)
