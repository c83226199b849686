"""Blur and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from cov3d.training.intensity import add_noise, blur


@pytest.mark.parametrize("sigma", [0.6, 0.7, 0.8])
@pytest.mark.parametrize("shape", [(10, 12, 14), (2, 5, 1)], ids=str)
def test_blur_is_scipys_gaussian(sigma, shape):
    scan = np.random.default_rng(0).random(shape)
    expected = ndimage.gaussian_filter(scan, sigma, mode="nearest", radius=3)
    np.testing.assert_allclose(blur(torch.from_numpy(scan).float(), sigma), expected, atol=1e-6)


def test_a_tap_more_would_change_nothing():
    scan = np.zeros((9, 9, 9))
    scan[4, 4, 4] = 1
    expected = ndimage.gaussian_filter(scan, 0.8, mode="nearest", radius=4)
    np.testing.assert_allclose(blur(torch.from_numpy(scan).float(), 0.8), expected, atol=3e-4)


@pytest.mark.parametrize("deviation", [0.3, 1.0])
def test_noise_is_mixed_in_as_published(deviation):
    noisy = add_noise(torch.full((20, 50, 50), 0.4), deviation, seed=1)
    assert noisy.mean() == pytest.approx(0.97 * 0.4 + 0.03 * 0.5, abs=5 * 0.03 * deviation / 50000**0.5)
    assert noisy.std() == pytest.approx(0.03 * deviation, rel=0.02)


def test_air_stays_air_and_nothing_leaves_the_grey_scale():
    scan = torch.tensor([0.0, 0.001, 0.5, 1.0]).repeat(10, 10, 100)
    noisy = add_noise(scan, 1.0, seed=2)
    assert (noisy[scan == 0] == 0).all()
    assert noisy.min() >= 0 and noisy.max() <= 1
    assert len(noisy[scan == 1].unique()) > 50


def test_the_seed_decides_the_noise():
    scan = torch.rand(4, 5, 6)
    assert torch.equal(add_noise(scan, 0.5, 3), add_noise(scan, 0.5, 3))
    assert not torch.equal(add_noise(scan, 0.5, 3), add_noise(scan, 0.5, 4))
