"""What is done to training pictures: each by itself, then two by two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import draw_shapes
from torchvision.transforms import v2

from cov3d.config.pictures import PictureSettings
from cov3d.training.pictures_found import open_picture
from cov3d.training.pictures_varied import Mix, plain, varied

torch.set_num_threads(1)

OFF: dict[str, Any] = {"randaugment": 0, "mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "mirror": 0.0, "least_crop": 1.0}


def test_with_everything_off_training_pictures_are_plain_pictures(tmp_path: Path):
    draw_shapes(tmp_path / "shapes", each=2, side=32)
    settings = PictureSettings(side=32, centre=1.0, **OFF)
    path = tmp_path / "shapes" / "cross" / "0.png"
    wanted = torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32))[None] / 255
    image = open_picture(path)
    assert torch.equal(varied(settings)(image), wanted) and torch.equal(plain(settings)(image), wanted)


def test_the_central_square_is_what_pillow_crops_and_resizes():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (64, 100)).astype(np.uint8))
    got = plain(PictureSettings(side=48, centre=0.5))(image) * 255
    theirs = image.crop((34, 16, 66, 48)).resize((48, 48), Image.Resampling.BICUBIC)
    inner = np.s_[4:-4, 4:-4]  # near the border a box sees what lies outside, and a crop does not
    np.testing.assert_allclose(got[0].numpy()[inner], np.asarray(theirs)[inner], atol=1)


@pytest.mark.parametrize(
    "said",
    [{"randaugment": 9}, {"erasing": 1.0}, {"mirror": 1.0}, {"least_crop": 0.3}],
    ids=lambda said: next(iter(said)),
)
def test_each_step_changes_a_picture_and_keeps_its_size(tmp_path: Path, said: dict[str, Any]):
    draw_shapes(tmp_path / "shapes", each=1, side=48)
    image = open_picture(tmp_path / "shapes" / "cross" / "0.png")
    settings = PictureSettings(side=48, centre=1.0, **{**OFF, **said})
    torch.manual_seed(0)
    made = [varied(settings)(image) for _ in range(8)]
    assert all(one.shape == (1, 48, 48) and one.dtype == torch.float32 for one in made)
    assert any(not torch.equal(one, plain(settings)(image)) for one in made)
    torch.manual_seed(0)
    assert all(torch.equal(one, varied(settings)(image)) for one in made)
    if "mirror" in said:
        assert torch.equal(made[0], plain(settings)(image).flip(2))
    if "erasing" in said:  # all but a box of at most a third is as it was, to rounding
        changed = [(one - plain(settings)(image)).abs() > 1e-5 for one in made]
        assert all(0.01 < float(one.float().mean()) < 0.35 for one in changed)


def test_nine_of_ten_turns_a_picture_by_27_degrees():
    """As in the recipe; with torchvision's own scale of 30 it would be 9."""
    step = next(one for one in varied(PictureSettings(randaugment=9)).transforms if isinstance(one, v2.RandAugment))  # type: ignore[attr-defined]
    magnitudes = step._AUGMENTATION_SPACE["Rotate"][0](step.num_magnitude_bins, 224, 224)
    assert float(magnitudes[step.magnitude]) == pytest.approx(27)


class Batch:
    """What a callback sees of a Learner."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.xb, self.yb = (x,), (y,)


def mixed(**said: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Four pictures, each of one grey level: 1, 2, 3, 4; and their classes 0, 1, 2, 3, mixed."""
    x = torch.arange(1.0, 5.0)[:, None, None, None].expand(4, 1, 16, 16).clone()
    mix = Mix(PictureSettings(**{**OFF, **said}), classes=4)
    mix.learn = Batch(x, torch.arange(4))
    mix.before_batch()
    return mix.learn.xb[0], mix.learn.yb[0]


def test_mixup_lays_each_picture_over_another_by_the_share_of_its_class():
    torch.manual_seed(1)
    x, y = mixed(mixup=0.8)
    torch.testing.assert_close(y.sum(1), torch.ones(4))
    levels = y @ torch.arange(1.0, 5.0)
    torch.testing.assert_close(x, levels[:, None, None, None].expand_as(x))
    assert ((y > 0).sum(1) == 2).all()


def test_cutmix_lays_a_part_as_large_as_the_share_of_its_class():
    torch.manual_seed(1)
    x, y = mixed(cutmix=1.0)
    for picture, shares in zip(x, y, strict=True):
        for k in range(4):
            assert float((picture == k + 1).float().mean()) == pytest.approx(float(shares[k]), abs=1e-6)
    assert ((y > 0).sum(1) == 2).all()


def test_without_both_a_batch_is_as_it_was_and_with_both_each_has_its_share():
    x, y = mixed()
    assert torch.equal(y, torch.arange(4)) and x.unique().tolist() == [1, 2, 3, 4]
    torch.manual_seed(0)
    cut = sum(mixed(mixup=0.8, cutmix=1.0, cutmix_share=0.25)[0].unique().tolist() == [1, 2, 3, 4] for _ in range(200))
    assert 25 < cut < 80
