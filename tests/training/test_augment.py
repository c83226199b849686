"""Augmentation of a batch: its own draw for each scan, the published probabilities, none in validation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cov3d.config import (
    PUBLISHED_AUGMENTATION,
    Augmentation,
    AugmentationNumbers,
    NetSettings,
    Preprocessing,
    RunSettings,
)
from cov3d.errors import SettingError
from cov3d.nets.inputs import as_input
from cov3d.training.augment import Augment, augment
from cov3d.training.draws import CHANCES, draw, quarter_turns
from cov3d.training.order import Order

SHAPE = (8, 16, 16)
EVERYTHING = AugmentationNumbers(*[1.0] * 9)
FAMILIES = sorted(PUBLISHED_AUGMENTATION)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scans(count: int, shape=SHAPE) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, *shape), dtype=torch.uint8, generator=generator(9))


class FakeLearner:
    def __init__(self, batch: torch.Tensor, training: bool):
        self.xb, self.yb, self.training, self.iter = (batch,), (), training, 0
        self.dls = SimpleNamespace(order=Order(len(batch), len(batch)))


def prepared(training: bool, numbers=PUBLISHED_AUGMENTATION["resnet"], seed: int = 0, cached=SHAPE):
    batch = scans(64, cached)
    callback = Augment(numbers, SHAPE, seed)
    callback.learn = FakeLearner(batch, training)
    callback.before_batch()
    return batch, callback.learn.xb[0]


def test_a_resnets_training_scans_are_mirrored_half_of_the_time_and_nothing_else_changes():
    batch, seen = prepared(training=True)
    plain = (seen == batch / 255).flatten(1).all(1)
    mirrored = (seen == batch.flip(-1) / 255).flatten(1).all(1)
    assert (plain ^ mirrored).all()
    assert 20 <= mirrored.sum() <= 44


@pytest.mark.parametrize("family", FAMILIES)
def test_validation_scans_are_never_changed(family):
    batch, seen = prepared(training=False, numbers=PUBLISHED_AUGMENTATION[family])
    assert torch.equal(seen, as_input(batch))


def test_validation_scans_that_are_cached_larger_are_resized_and_all_alike():
    batch, seen = prepared(training=False, numbers=EVERYTHING, cached=(10, 20, 20))
    resized = torch.nn.functional.interpolate(batch / 255, SHAPE, mode="trilinear")
    torch.testing.assert_close(seen, resized, atol=1e-5, rtol=0)


def test_where_nothing_can_happen_nothing_is_drawn_or_changed():
    dice = generator()
    batch = scans(3)
    assert torch.equal(augment(batch, AugmentationNumbers(), dice), as_input(batch))
    assert torch.equal(dice.get_state(), generator().get_state())


def test_the_seed_decides():
    batch = scans(4, (10, 20, 20))
    first = augment(batch, EVERYTHING, generator(3), SHAPE)
    assert torch.equal(first, augment(batch, EVERYTHING, generator(3), SHAPE))
    assert not torch.equal(first, augment(batch, EVERYTHING, generator(4), SHAPE))


@pytest.mark.parametrize("name", CHANCES)
def test_each_scan_has_its_own_draw(name):
    numbers = AugmentationNumbers(*[(0.5 if name.startswith("flip") else 1.0) * (name == step) for step in CHANCES])
    same = scans(1, (10, 20, 20)).expand(12, -1, -1, -1, -1)
    assert len(torch.unique(augment(same, numbers, generator(), SHAPE), dim=0)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_gets_its_size_and_kind_of_number_within_the_grey_scale(dtype):
    seen = augment(scans(3, (10, 20, 20)), EVERYTHING, generator(), SHAPE, dtype)
    assert seen.shape == (3, 1, *SHAPE) and seen.dtype == dtype
    assert seen.min() >= 0 and seen.max() <= 1


def test_mixed_precision_around_it_changes_nothing():
    batch = scans(2)
    with torch.autocast("cpu", torch.bfloat16):
        within = augment(batch, EVERYTHING, generator(), SHAPE)
    assert torch.equal(within, augment(batch, EVERYTHING, generator(), SHAPE))


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_happen_as_often_as_published(family):
    numbers, count = PUBLISHED_AUGMENTATION[family], 4000
    draws = draw(count, numbers, (10, 20, 20), SHAPE, generator())
    happened = {
        "random_crop": [d.placement.corner is not None for d in draws],
        "flip_depth": [d.placement.flips[0] for d in draws],
        "flip_height": [d.placement.flips[1] for d in draws],
        "flip_width": [d.placement.flips[2] for d in draws],
        "rotate": [d.placement.degrees != 0 for d in draws],
        "blur": [d.sigma > 0 for d in draws],
        "noise": [d.deviation > 0 for d in draws],
        "turn": [any(d.placement.turns) for d in draws],
        "elastic": [d.placement.core is not None for d in draws],
    }
    for name, seen in happened.items():
        chance = getattr(numbers, name)
        assert sum(seen) / count == pytest.approx(chance, abs=5 * (chance * (1 - chance) / count) ** 0.5), name


def test_amounts_fill_their_ranges_and_stay_in_them():
    draws = draw(2000, EVERYTHING, (10, 20, 20), SHAPE, generator())
    for seen, low, high in (
        ([d.placement.degrees for d in draws], -30, 30),
        ([d.sigma for d in draws], 0.6, 0.8),
        ([d.deviation for d in draws], 0.3, 1.0),
    ):
        assert low <= min(seen) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < max(seen) <= high
    corners = {d.placement.corner for d in draws}
    assert corners == {(d, h, w) for d in range(3) for h in range(5) for w in range(5)}


def test_a_probability_changes_only_its_own_step():
    with_noise = draw(50, EVERYTHING, SHAPE, SHAPE, generator())
    without = draw(50, EVERYTHING._replace(noise=0.0), SHAPE, SHAPE, generator())
    for one, other in zip(with_noise, without, strict=True):
        assert one.placement.degrees == other.placement.degrees and one.sigma == other.sigma
        assert torch.equal(one.placement.core, other.placement.core)


def test_quarter_turns_keep_the_shape():
    assert quarter_turns((0.99, 0.99, 0.3), (16, 16, 16)) == (3, 3, 1)
    assert quarter_turns((0.99, 0.99, 0.3), SHAPE) == (2, 3, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_but_for_the_noise():
    numbers, batch = EVERYTHING._replace(noise=0.0), scans(4, (10, 20, 20))
    on_gpu = augment(batch.cuda(), numbers, generator(), SHAPE).cpu()
    torch.testing.assert_close(on_gpu, augment(batch, numbers, generator(), SHAPE), atol=1e-4, rtol=0)


def test_what_is_not_said_is_as_published():
    settings = Augmentation(blur=1.0, rotate_degrees=10.0)
    assert settings.numbers("resnet") == AugmentationNumbers(flip_width=0.5, blur=1.0, rotate_degrees=10.0)
    assert settings.numbers("convnext").chances == (0, 0.25, 0.25, 0.25, 0.2, 1, 0.2, 0, 0.5)
    assert Augmentation(crop_from=256).numbers("convnext").random_crop == 0.5
    assert Augmentation(flip_width=0.0).numbers("resnet") == AugmentationNumbers()


@pytest.mark.parametrize("name", AugmentationNumbers._fields[:9])
@pytest.mark.parametrize("chance", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(name, chance):
    with pytest.raises(SettingError, match=f"--{name.replace('_', '-')} .* expected 0.0 to 1.0"):
        Augmentation(**{name: chance})


def test_training_scans_are_cached_larger_in_proportion():
    assert Augmentation(crop_from=256).to_cache(Preprocessing(width=224)).shape == (128, 256, 256)
    assert Augmentation(crop_from=256).to_cache(Preprocessing(width=224, depth=224)).shape == (256, 256, 256)
    assert Augmentation().to_cache(Preprocessing(width=224)) == Preprocessing(width=224)


def test_a_crop_from_less_than_the_width_is_refused_with_advice():
    with pytest.raises(SettingError, match=r"--crop-from 200 is not above --width 224.*choose 256"):
        Augmentation(crop_from=200).to_cache(Preprocessing(width=224))


@pytest.mark.parametrize("said", [{"rotate_degrees": 10.0}, {"elastic_voxels": 2.0}, {"crop_from": 320}])
def test_how_far_a_step_goes_that_never_happens_is_refused(said):
    with pytest.raises(SettingError, match=r"--[a-z-]+ says nothing where --[a-z-]+ is 0, as it is here; say"):
        RunSettings(augmentation=Augmentation(**said))
    RunSettings(net=NetSettings("convnext-micro"), augmentation=Augmentation(**said))
    step = {"rotate_degrees": "rotate", "elastic_voxels": "elastic", "crop_from": "random_crop"}[next(iter(said))]
    RunSettings(augmentation=Augmentation(**said, **{step: 0.5}))


def test_a_crop_from_nothing_is_refused():
    with pytest.raises(SettingError, match=r"--random-crop 0\.5 has nothing to crop from; say --crop-from"):
        Augmentation(random_crop=0.5)


def test_what_no_cache_holds_is_refused():
    with pytest.raises(SettingError, match=r"uint8 \(B, 1, D, H, W\), as the cache holds them, not torch.float32"):
        augment(torch.rand(1, 1, 8, 8, 8), AugmentationNumbers(), generator())
    with pytest.raises(SettingError, match=r"nothing of \(9, 9, 9\) to crop from scans of \(8, 8, 8\)"):
        augment(scans(1, (8, 8, 8)), AugmentationNumbers(random_crop=1.0), generator(), (9, 9, 9))
