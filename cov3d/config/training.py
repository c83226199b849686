"""How a network is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cov3d.config.fields import check_limits, option
from cov3d.errors import SettingError


@dataclass(frozen=True)
class Training:
    """How a network is fitted."""

    epochs: int = option(40, "Passes over the training scans.", min=1)
    batch_size: int = option(2, "Scans in a batch.", min=1)
    accumulate: int = option(1, "Batches summed before a step of the optimiser.", min=1)
    learning_rate: float = option(1e-4, "The highest learning rate.", min=0.0)
    schedule: Literal["1cycle", "constant", "cosine"] = option(
        "1cycle", "How the learning rate goes: up and down again, as it is, or down along a cosine."
    )
    optimizer: Literal["adamw", "adam"] = option(
        "adamw", "Adam with decoupled weight decay, or with it in the gradient."
    )
    weight_decay: float = option(0.01, "Weight decay.", min=0.0)
    clip: float | None = option(None, "Longest gradient; longer ones are shortened.", min=0.0)
    ema: float | None = option(
        None,
        "Decay of the weights' moving average, which is scored and kept; if not said, .99 (severity) or .995 (presence) "
        "for ConvNeXts; 0 for none.",
        min=0.0,
        max=0.9999,
    )
    checkpoint_activations: bool = option(
        False,
        "Compute activations again instead of keeping them: less memory, more time.",
        flag="--checkpoint-activations",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Precision of the forward pass; auto is bf16 or fp16 on a GPU and fp32 on a CPU."
    )
    validation_fraction: float | None = option(
        None,
        "Hold this share of the training scans out to choose the epoch by; if not said, the study's own validation "
        "scans, or .2 where it has none.",
        min=0.01,
        max=0.9,
    )
    weights: str = option("none", "Weights to start from: none, kinetics (published; downloaded once), or a file.")
    inflate: Literal["none", "full", "1g", "2g"] = option(
        "none",
        "Give the kernels of a 2D ConvNeXt or ResNet-18 in --weights FILE a third axis: constant, Gaussian, or two crossed.",
    )
    inflate_norm: Literal["l2", "sum"] = option(
        "l2", "What an inflated kernel keeps: its Euclidean norm (published), or its sum (as I3D)."
    )
    keep: Literal["auto", "best", "last"] = option(
        "auto", "Which epoch is kept: the best on validation scans (train), or the last (cross-validate, --all-data)."
    )
    skip_nan: bool = option(
        False,
        "Leave steps out whose loss or gradients are no numbers, and say so, instead of ending.",
        flag="--skip-nan",
    )
    sync_batchnorm: bool = option(
        False,
        "With several processes, normalise by the whole batch and not by each process's share of it.",
        flag="--sync-batchnorm",
    )
    seed: int = option(0, "Seed of everything that is drawn.", min=0)

    def __post_init__(self) -> None:
        check_limits(self)
        if self.learning_rate == 0:
            raise SettingError("--learning-rate 0 learns nothing; the published rate is 1e-4")
        if self.clip == 0:
            raise SettingError("--clip 0 learns nothing; leave it out, or take the published 5")

    def step(self, processes: int = 1) -> int:
        """How many rows a step of the optimiser is of."""
        return self.batch_size * self.accumulate * processes
