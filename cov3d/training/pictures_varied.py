"""Training pictures varied as by ConvNeXt's recipe, each by itself and then two by two; batches of them.

A crop of random size and shape, resized to the network's side; a mirror; RandAugment (Cubuk et al., arXiv 1909.13719);
a box of noise (Zhong et al., arXiv 1708.04896); then, for a batch, mixup (Zhang et al., arXiv 1710.09412) or cutmix
(Yun et al., arXiv 1905.04899). All are torchvision's. The recipe's magnitudes are of 10, so RandAugment has 11 of them here and
not torchvision's 31, of which 9 would be a third as much. The recipe draws each anew about 9, with a deviation of .5; here
it is 9. On grey pictures RandAugment's colour does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from cov3d.config import Machine, Training
from cov3d.config.pictures import PictureSettings
from cov3d.errors import Cov3dError, ScanError
from cov3d.nets.convnext import DEVIATION, MEAN
from cov3d.stopping import born_deaf, ignore_stops
from cov3d.training.loaders import Loaders
from cov3d.training.order import Order, Place, generator_of
from cov3d.training.pictures_found import Picture, Pictures, open_picture
from cov3d.training.ranks import ALONE, Ranks

MAGNITUDES = 11  # 0 … 10

Vary = Callable[[Image.Image], Tensor]


class PictureFiles(Dataset):
    """Pictures as tensors: float ``(1, H, W)`` in [0, 1], and the class as a number."""

    def __init__(self, pictures: Sequence[Picture], vary: Vary, seed: int = 0):
        self.pictures, self.vary, self.seed = pictures, vary, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        """A picture, varied by seed, epoch and number alone."""
        picture = self.pictures[place.row]
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator_of(self.seed, *place).initial_seed())
                return self.vary(open_picture(picture.path)), picture.label
        except ScanError as error:
            raise Cov3dError(f"{error}; it opened before the training began, so say --resume once it is back") from None


@dataclass(frozen=True)
class Central:
    """A picture's central square, resized from it alone to ``side`` pixels, however long the picture is."""

    side: int
    share: float  # of the picture's shorter side

    def __call__(self, image: Image.Image) -> Image.Image:
        half = self.share * min(image.size) / 2
        x, y = image.width / 2, image.height / 2
        return image.resize(
            (self.side, self.side), Image.Resampling.BICUBIC, box=(x - half, y - half, x + half, y + half)
        )


def plain(settings: PictureSettings) -> Vary:
    """How pictures are scored."""
    return v2.Compose([Central(settings.side, settings.centre), as_tensor])


def varied(settings: PictureSettings) -> Vary:
    """How pictures are trained on, drawn from torch's generator; with everything off as they are scored."""
    steps: list[Callable[[Any], Any]] = [Central(settings.side, settings.centre)]
    if settings.least_crop < 1:
        area = (settings.least_crop, 1.0)
        steps = [v2.RandomResizedCrop(settings.side, area, interpolation=InterpolationMode.BICUBIC)]
    if settings.mirror:
        steps.append(v2.RandomHorizontalFlip(settings.mirror))
    if settings.randaugment:
        steps.append(
            v2.RandAugment(settings.randaugment_steps, settings.randaugment, MAGNITUDES, InterpolationMode.BILINEAR)
        )
    steps.append(as_tensor)
    if settings.erasing:
        steps.append(Erase(settings.erasing))
    return v2.Compose(steps)


class Erase:
    """A box of a picture ``(1, H, W)`` becomes noise, of ImageNet's mean and deviation."""

    def __init__(self, probability: float):
        self.erase = v2.RandomErasing(probability, value="random")

    def __call__(self, picture: Tensor) -> Tensor:
        return self.erase((picture - MEAN) / DEVIATION) * DEVIATION + MEAN


def as_tensor(image: Image.Image) -> Tensor:
    """8-bit grey as float ``(1, H, W)`` in [0, 1]."""
    return torch.from_numpy(np.array(image, np.uint8)).float()[None] / 255


class Mix(Callback):
    """Lays training pictures ``(B, 1, H, W)`` over each other, or parts of them; their classes become shares ``(B, K)``."""

    run_valid = False

    def __init__(self, settings: PictureSettings, classes: int):
        mixup = [v2.MixUp(alpha=settings.mixup, num_classes=classes)] if settings.mixup else []
        cutmix = [v2.CutMix(alpha=settings.cutmix, num_classes=classes)] if settings.cutmix else []
        self.ways = [*mixup, *cutmix]
        self.share = settings.cutmix_share

    def before_batch(self) -> None:
        """Mix."""
        if self.ways:
            way = self.ways[-1 if torch.rand(()) < self.share else 0]
            x, y = way(self.learn.xb[0], self.learn.yb[0])
            self.learn.xb, self.learn.yb = (x,), (y,)


class Readers(DataLoader):
    """A DataLoader whose processes do not hear signals, and one of which is found dead at once, wherever it dies."""

    def __iter__(self) -> Any:
        with born_deaf():
            batches: Any = super().__iter__()
        try:
            yield from batches
        except (ConnectionError, EOFError) as error:  # it died before it had handed over what it said was read
            raise RuntimeError("DataLoader worker exited unexpectedly") from error
        finally:  # else torch tells of another one's death wherever this process is by then
            if self.num_workers:
                batches._shutdown_workers()
                for process in batches._workers:
                    process.kill()  # one that hangs would be waited for when Python exits


def picture_loaders(
    found: Pictures,
    settings: PictureSettings,
    training: Training,
    machine: Machine,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Loaders:
    """Training batches in an order drawn from the seed; validation in order.

    Decoding and varying pictures is work for processes; beside a network on a CPU only if ``--workers`` says so. They do not
    hear the signals that ask the run to stop: a scheduler's go to all processes, and what is under way has to be saved first.
    """
    gpu = device.type == "cuda"
    common: dict[str, Any] = {
        "num_workers": min(machine.processes, 16) if gpu or (machine.workers or 0) > 1 else 0,
        "pin_memory": gpu,
        "worker_init_fn": ignore_stops,
    }
    parts = (found.train, found.validation)
    train, valid = (
        Order(len(pictures), training.batch_size, training.seed, shuffled, ranks)
        for pictures, shuffled in zip(parts, (True, False), strict=True)
    )
    loaders = [
        Readers(PictureFiles(pictures, vary, training.seed), batch_sampler=order, generator=Generator(), **common)
        for pictures, vary, order in zip(parts, (varied(settings), plain(settings)), (train, valid), strict=True)
    ]
    names = ([found.name(picture) for picture in pictures] for pictures in parts)
    return Loaders(loaders[0], loaders[1], device, (train, valid), (next(names), next(names)))
