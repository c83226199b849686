"""What happens to each scan of a batch, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cov3d.config import AugmentationNumbers
from cov3d.training.elastic import ALPHA, RANK, rms_voxels
from cov3d.training.spatial import PLANES, Placement

BLUR = (0.6, 0.8)  # σ, voxels
NOISE = (0.3, 1.0)  # standard deviation before it is mixed in
SEEDS = 2**31

# Every scan takes the same numbers from the generator whatever happens to it, so a probability changes only its own step.
CHANCES = ("crop", "flip_depth", "flip_height", "flip_width", "rotate", "blur", "noise", "turn", "elastic")
AMOUNTS = ("corner_depth", "corner_height", "corner_width", "degrees", "sigma", "deviation", "seed", "alpha")
TURNS = ("turn_0", "turn_1", "turn_2")


@dataclass(frozen=True)
class Draw:
    """What happens to one scan: where its voxels come from, then blur and noise, 0 where there is none. Default: nothing."""

    placement: Placement = Placement()
    sigma: float = 0.0
    deviation: float = 0.0
    seed: int = 0


def draw(
    count: int, numbers: AugmentationNumbers, cached: Sequence[int], shape: Sequence[int], generator: torch.Generator
) -> list[Draw]:
    """Draws for ``count`` scans cached at ``cached`` ``(D', H', W')`` and given to the network at ``shape`` ``(D, H, W)``.

    The generator is one of the CPU, so that a batch's draws do not depend on its device. Nothing is drawn where every
    probability is 0.
    """
    if not any(numbers.chances):
        return [Draw()] * count
    names = CHANCES + AMOUNTS + TURNS
    rows = torch.rand(count, len(names), generator=generator, dtype=torch.float64).tolist()
    cores = torch.randn(count, RANK, RANK, RANK, 3, generator=generator)
    return [
        _draw(dict(zip(names, row, strict=True)), core, numbers, cached, shape)
        for row, core in zip(rows, cores, strict=True)
    ]


def _draw(
    uniform: dict[str, float], core: Tensor, numbers: AugmentationNumbers, cached: Sequence[int], shape: Sequence[int]
) -> Draw:
    happens = {name: uniform[name] < chance for name, chance in zip(CHANCES, numbers.chances, strict=True)}
    corner = [
        int(uniform[f"corner_{axis}"] * (large - small + 1))
        for axis, large, small in zip(("depth", "height", "width"), cached, shape, strict=True)
    ]
    placement = Placement(
        corner=(corner[0], corner[1], corner[2]) if happens["crop"] else None,
        flips=(happens["flip_depth"], happens["flip_height"], happens["flip_width"]),
        degrees=numbers.rotate_degrees * (2 * uniform["degrees"] - 1) if happens["rotate"] else 0.0,
        turns=quarter_turns([uniform[name] for name in TURNS], shape) if happens["turn"] else (0, 0, 0),
        core=core * strength(uniform["alpha"], numbers.elastic_voxels, shape) if happens["elastic"] else None,
    )
    return Draw(
        placement,
        between(uniform["sigma"], *BLUR) if happens["blur"] else 0.0,
        between(uniform["deviation"], *NOISE) if happens["noise"] else 0.0,
        int(uniform["seed"] * SEEDS),
    )


def between(uniform: float, low: float, high: float) -> float:
    """A number of U(0, 1) as one of U(low, high)."""
    return low + uniform * (high - low)


def quarter_turns(uniform: Sequence[float], shape: Sequence[int]) -> tuple[int, int, int]:
    """How often a volume ``(D, H, W)`` is turned by 90° in each plane: 0 to 3 times, or 0 or 2 where its sides differ."""
    times = [int(number * 4) for number in uniform]
    times = [n if shape[a] == shape[b] else n // 2 * 2 for n, (a, b) in zip(times, PLANES, strict=True)]
    return times[0], times[1], times[2]


def strength(uniform: float, voxels: float | None, shape: Sequence[int]) -> float:
    """α of an elastic field: from U(1, 7) as published, or such that it moves voxels by ``voxels`` (rms)."""
    return between(uniform, *ALPHA) if voxels is None else voxels / rms_voxels(shape)
