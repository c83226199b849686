"""Pictures of augmentation: a batch as the network sees it, and each step by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from cov3d.commit import commit
from cov3d.config import Augmentation, AugmentationNumbers, Machine, RunSettings
from cov3d.errors import Cov3dError, SettingError
from cov3d.scans.cache import fill_cache
from cov3d.scans.series import every_series
from cov3d.scans.study import TRAIN, Study
from cov3d.training.augment import apply, augment
from cov3d.training.draws import Draw, strength
from cov3d.training.elastic import RANK
from cov3d.training.spatial import Placement

VIEWS = ("axial", "coronal", "sagittal")


def show_study(
    study: Study,
    settings: RunSettings,
    machine: Machine,
    cache: str | Path,
    output: str | Path,
    count: int | None = None,
    each_step: bool = False,
    seed: int | None = None,
    overwrite: bool = False,
) -> dict[str, str]:
    """Draw the first training scans of a study as training would see them, or each step by itself on the first.

    Returns the scans that cannot be read, with their causes.

    Raises:
        SettingError: the picture exists, and no ``overwrite``; it is to be no PNG; or what says nothing beside
            ``each_step``.
        Cov3dError: none of the scans can be read.
    """
    _check(Path(output), settings, count, each_step, seed, overwrite)
    usual = 1 if each_step else 8
    rows = [row for row in every_series(study, settings.reading).rows if row.split in (TRAIN, "")][: count or usual]
    filled = fill_cache(rows, settings.augmentation.to_cache(settings.preprocessing), cache, machine, settings.reading)
    scans = {row.scan: filled.load(row.scan) for row in rows if row.scan in filled.entries}
    if not scans:
        raise Cov3dError(f"{study.source}: none of its first {len(rows)} training scans can be read; try cov3d check")
    if each_step:
        show_steps(output, next(iter(scans.values())), settings.preprocessing.shape)
    else:
        numbers = settings.augmentation.numbers(settings.net.family)
        show_batch(output, scans, numbers, settings.preprocessing.shape, seed or 0)
    return filled.failures


def _check(
    output: Path, settings: RunSettings, count: int | None, each_step: bool, seed: int | None, overwrite: bool
) -> None:
    """Raise a SettingError for a picture that cannot be written, and for settings that say nothing."""
    if output.suffix.lower() != ".png":
        raise SettingError(f"--output {output} is to be a PNG; call it {output.with_suffix('.png')}")
    if output.exists() and not overwrite:
        raise SettingError(f"{output} exists; say --overwrite, or another --output")
    said = {f.name for f in fields(Augmentation) if getattr(settings.augmentation, f.name) is not None}
    drawn = said - {"crop_from", "random_crop"} or (count, seed) != (None, None)
    if each_step and drawn:
        raise SettingError(
            "--steps shows each step as it is, on one scan; of probabilities, amounts, --scans and --seed it knows nothing, "
            "so leave them out"
        )


def show_batch(
    path: str | Path,
    scans: Mapping[str, Tensor],
    numbers: AugmentationNumbers,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Path:
    """Draw scans as training would see them, three planes each, into a PNG.

    ``scans`` are names with cached scans uint8 ``(1, D', H', W')``; ``shape`` ``(D, H, W)`` is the network's.
    """
    batch = torch.stack(list(scans.values()))
    seen = augment(batch, numbers, torch.Generator().manual_seed(seed), shape)
    return _draw(Path(path), dict(zip(scans, seen[:, 0], strict=True)), across=2)


def show_steps(path: str | Path, scan: Tensor, shape: Sequence[int] | None = None) -> Path:
    """Draw each step by itself beside the scan uint8 ``(1, D', H', W')`` as it is, into a PNG."""
    return _draw(Path(path), steps(scan, shape), across=3)


def steps(scan: Tensor, shape: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Each step by itself, where the published strength can hardly be seen at a greater one, as its name says.

    ``scan`` is uint8 ``(1, D', H', W')``, a result float ``(D, H, W)`` in [0, 1], D, H, W being ``shape`` or as they come.
    There is a crop if they come larger.
    """
    shape = tuple(scan.shape[1:] if shape is None else shape)
    core = torch.randn(RANK, RANK, RANK, 3, generator=torch.Generator().manual_seed(2))
    spare = [large - small for large, small in zip(scan.shape[1:], shape, strict=True)]
    draws = {"the scan": Draw()}
    if any(spare):
        draws["crop"] = Draw(Placement(corner=(spare[0], 0, spare[2])))
    for axis, name in enumerate(("head to feet", "front to back", "right to left")):
        flips = [axis == flipped for flipped in range(3)]
        draws[f"flip, {name}"] = Draw(Placement(flips=(flips[0], flips[1], flips[2])))
    draws |= {
        "rotation, 25°": Draw(Placement(degrees=25.0)),
        "quarter turn": Draw(Placement(turns=(0, 1, 0))),
        "half turn": Draw(Placement(turns=(2, 0, 0))),
        "blur, σ 1.5 (published .6 to .8)": Draw(sigma=1.5),
        "noise, sd 6 % (published .9 to 3 %)": Draw(deviation=2.0, seed=1),
        "elastic, as published with α 7": Draw(Placement(core=7 * core)),
        "elastic, moved by 4 % of the width": Draw(Placement(core=core * strength(0, 0.04 * shape[2], shape))),
    }
    result = apply(scan[None].expand(len(draws), -1, -1, -1, -1), list(draws.values()), shape)
    return dict(zip(draws, result[:, 0], strict=True))


def _draw(path: Path, scans: Mapping[str, Tensor], across: int) -> Path:
    """Middle slices of scans ``(D, H, W)`` in three planes, ``across`` scans beside each other."""
    from matplotlib.figure import Figure

    down = -(-len(scans) // across)
    figure = Figure(figsize=(across * 5.4, down * 2.05 + 0.1), layout="constrained")
    figures = figure.subfigures(down, across, squeeze=False).flat
    for number, (part, (name, scan)) in enumerate(zip(figures, scans.items(), strict=False)):
        part.suptitle(name, fontsize=10)
        for axes, plane, view in zip(part.subplots(1, 3), middle_planes(scan), VIEWS, strict=True):
            axes.imshow(plane.cpu().numpy(), cmap="gray", vmin=0, vmax=1, aspect=plane.shape[1] / plane.shape[0])
            axes.set(xticks=[], yticks=[])
            if number < across:
                axes.set_xlabel(view, fontsize=8)
                axes.xaxis.set_label_position("top")
    return commit(path, lambda file: figure.savefig(file, format="png", dpi=100))


def middle_planes(scan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The middle slices of a scan ``(D, H, W)``: axial ``(H, W)``, coronal ``(D, W)``, sagittal ``(D, H)``."""
    depth, height, width = (side // 2 for side in scan.shape)
    return scan[depth], scan[:, height], scan[:, :, width]
