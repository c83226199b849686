"""How a 2D network is fitted to pictures, whose weights a 3D network then begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from cov3d.config.fields import check_limits, option
from cov3d.config.net import LEAST_SIDE, Architecture, NetSettings
from cov3d.config.training import Training
from cov3d.errors import SettingError

# What has a 2D network whose weights can be given a third axis: the convolutions of the others differ along depth.
FLAT: tuple[str, ...] = tuple(name for name in get_args(Architecture) if name not in ("mc3-18", "r2plus1d-18"))

# What ConvNeXt's recipe (arXiv 2201.03545, table 5) says of settings that train has as well. A batch is what one machine
# holds; the learning rate is for 4096 pictures a step, and goes down with them.
PICTURE_TRAINING: dict[str, Any] = {
    "epochs": 300,
    "batch_size": 128,
    "learning_rate": 4e-3,
    "schedule": "cosine",
    "weight_decay": 0.05,
}
PUBLISHED_EMA = 0.9999
EMA_SHARE = 8  # of all steps the average spans an eighth at most; 1 / (1 − .9999) is a ninth of the published 94 000
WARMUP_SHARE = 15  # the published 20 epochs of 300


@dataclass(frozen=True)
class PictureSettings:
    """How a 2D network is fitted to pictures. The defaults are ConvNeXt's."""

    side: int = option(224, "Width and height of the pictures that the network sees.", min=LEAST_SIDE, max=1024)
    warmup_epochs: float | None = option(
        None, "Epochs in which the learning rate rises; a fifteenth of all, 20 of 300, if not said.", min=0.0
    )
    final_rate: float = option(1e-6, "Learning rate at the end of the cosine.", min=0.0)
    rate_batch: int = option(
        4096, "Pictures a step that --learning-rate is for; with others it changes in proportion; 0 for never.", min=0
    )
    label_smoothing: float = option(0.1, "Label smoothing.", min=0.0, max=0.9)
    randaugment: int = option(9, "Magnitude of RandAugment, of 10; 0 for none.", min=0, max=10)
    randaugment_steps: int = option(2, "Steps of RandAugment a picture.", min=1, max=14)
    mixup: float = option(0.8, "Alpha of mixup, which lays two pictures over each other; 0 for none.", min=0.0)
    cutmix: float = option(1.0, "Alpha of cutmix, which lays a part of one on the other; 0 for none.", min=0.0)
    cutmix_share: float = option(0.5, "Share of batches with cutmix, where the others have mixup.", min=0.0, max=1.0)
    erasing: float = option(0.25, "Probability that a box is erased with noise.", min=0.0, max=1.0)
    mirror: float = option(0.5, "Probability that a picture is mirrored, left to right.", min=0.0, max=1.0)
    least_crop: float = option(
        0.08, "Share of a picture's area that random crops hold at least; at 1 there are none.", min=0.01, max=1.0
    )
    centre: float = option(
        0.875, "Share of a picture's shorter side that its central square has, by which it is scored.", min=0.1, max=1.0
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def warmup(self, epochs: int) -> float:
        """Epochs in which the learning rate rises."""
        return epochs / WARMUP_SHARE if self.warmup_epochs is None else self.warmup_epochs

    def highest_rate(self, training: Training, processes: int = 1) -> float:
        """The learning rate at its highest, for the pictures that are a step."""
        return training.learning_rate * (training.step(processes) / self.rate_batch if self.rate_batch else 1.0)


def picture_ema(training: Training, steps: int) -> float:
    """The decay of the weights' average: as said, else .9999, or in shorter trainings what spans an eighth of their steps."""
    if training.ema is not None:
        return training.ema
    return max(0.0, min(PUBLISHED_EMA, 1 - EMA_SHARE / steps))


def check_pictures(settings: PictureSettings, training: Training, net: NetSettings) -> None:
    """Raise a SettingError for settings that exclude each other, or say nothing where pictures are learnt."""
    _check_rates(settings, training)
    if net.architecture not in FLAT:
        raise SettingError(
            f"--architecture {net.architecture} has no 2D weights to begin with; choose one of {', '.join(FLAT)}"
        )
    unused = {
        "--weights": training.weights != "none",
        "--inflate": training.inflate != "none",
        "--inflate-norm": training.inflate_norm != "l2",
        "--keep best": training.keep == "best",
        "--dropout": net.dropout is not None,
        "--penultimate": net.penultimate is not None,
    }
    said = [option for option, given in unused.items() if given]
    if said:
        raise SettingError(f"{said[0]} says nothing where pictures are learnt (--method imagenet); leave it out")


def _check_rates(settings: PictureSettings, training: Training) -> None:
    if training.schedule != "cosine":
        raise SettingError(f"--schedule {training.schedule} is not for pictures; say --schedule cosine, or nothing")
    if not settings.warmup(training.epochs) < training.epochs:
        raise SettingError(
            f"--warmup-epochs {settings.warmup_epochs:g} leaves nothing of {training.epochs} epochs; lower it, or raise --epochs"
        )
    rate = settings.highest_rate(training)
    if not settings.final_rate <= rate:
        raise SettingError(
            f"--final-rate {settings.final_rate:g} is above the highest learning rate, {rate:.3g} for "
            f"{training.step()} pictures a step; lower it, or raise --learning-rate"
        )
