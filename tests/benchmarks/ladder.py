"""Which way of pretraining helps: severity of drawn chests, cross-validated, from each rung of the ladder.

    python tests/benchmarks/ladder.py [--seeds 5] [--epochs 24] [--learning-rate 1e-3] [--scans 240]
        [--graded-seed 7] [--folder ladder]

One study is learnt from before, its pictures, masks and severities; another is graded. On this one a network is
cross-validated, from random weights and from each pretraining, at equal epochs. What stands in the folder already is not made
again, so that it may be stopped. An hour on two cores; printed are the Dice of masks on held-out scans that chose nothing, and
the macro F1 of out-of-fold answers, of each seed and their mean.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cov3d import Pretraining, RunSettings, cross_validate, find_recipe, pretrain, pretrain_pictures, read_study
from cov3d.config import PictureSettings, Training
from cov3d.config.pictures import PICTURE_TRAINING
from cov3d.phantom import write_study

MASKED_SEED = 3  # of the study that is learnt from before
FOLDS = 3
PLAIN = PictureSettings(
    side=64, rate_batch=0, mixup=0.0, cutmix=0.0, randaugment=0, erasing=0.0, least_crop=0.5, warmup_epochs=0.3
)
FITTED = Training(**{**PICTURE_TRAINING, "epochs": 4, "batch_size": 32, "learning_rate": 1e-3})
NET = {"architecture": "convnext-micro", "base_width": 16, "drop_path": 0.0}
SHARED = {
    "task": "severity",
    "width": 64,
    "depth": 48,
    "crop": "lungs",
    "random_crop": 0.0,
    "flip_depth": 0.0,
    "flip_height": 0.0,
    "flip_width": 0.5,
    "rotate": 0.0,
    "elastic": 0.0,
    "noise": 0.0,
    "blur": 0.0,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "schedule": "1cycle",
    "ema": 0.9,
    "weights": "none",
    **NET,
}


def settings(**said) -> RunSettings:
    """A small network's settings; the others are the published ones of fine-tuning."""
    recipe = find_recipe("convnext-severity-random")
    return recipe.settings(**{**SHARED, "precision": "auto", **said})


def climb(root: Path) -> dict[str, dict[str, str]]:
    """Every pretraining, and what a training begins with after it. Severities of the study that is scored are seen by none."""
    cache = root / "cache"
    masked, graded = (read_study(root / name) for name in ("masked", "graded"))
    pictures = root / "imagenet"
    once(
        pictures,
        lambda: pretrain_pictures(root / "masked" / "train", PLAIN, FITTED, settings().net, None, pictures, True),
    )
    flat = {"weights": str(pictures / "weights.safetensors"), "inflate": "full"}
    rungs: dict[str, dict[str, str]] = {"random": {}, "imagenet": flat}
    for method, study, epochs, kept in (
        ("segmentation", masked, 40, "masks"),
        ("segmia", graded, 20, "masks"),
        ("multitask", masked, 20, "severity"),
    ):
        folder = root / method
        teacher = None if method == "segmentation" else Pretraining(teacher=rungs["segmentation"]["weights"])
        how = settings(epochs=epochs, validation_fraction=0.15, keep="last", **flat)
        once(folder, lambda: pretrain(study, method, how, teacher, None, cache, folder, True))  # noqa: B023
        rungs[method] = {"weights": str(folder / f"{kept}.safetensors")}
    return rungs


def score(asked: argparse.Namespace, begun: dict[str, str], rung: str, seed: int) -> float:
    """Macro F1 of severity, out of fold."""
    how = settings(epochs=asked.epochs, learning_rate=asked.learning_rate, seed=seed, **begun)
    folder = asked.folder / f"{rung}-{asked.learning_rate:g}-{asked.epochs}-{seed}"
    graded = read_study(asked.folder / "graded")
    once(folder, lambda: cross_validate(graded, how, None, FOLDS, None, asked.folder / "cache", folder))
    return json.loads((folder / "metrics.json").read_text())["severity"]["macro_f1"]


def once(folder: Path, make: Callable[[], object]) -> None:
    """Make what is not there."""
    if not (folder / "metrics.json").exists():
        make()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scans", type=int, default=240)
    parser.add_argument("--graded-seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("ladder"))
    asked = parser.parse_args()
    for name, seed in {"masked": MASKED_SEED, "graded": asked.graded_seed}.items():
        if not (asked.folder / name).exists():
            write_study(asked.folder / name, asked.scans, seed=seed, size=96)
    rungs = climb(asked.folder)
    dice = json.loads((asked.folder / "segmentation" / "metrics.json").read_text())["masks"]
    print(f"\nsegmentation: Dice {dice['dice']:.3f}, IoU {dice['iou']:.3f} of {dice['n']} held-out scans\n")
    print(
        f"severity out of {FOLDS} folds, {asked.epochs} epochs: macro F1 of seeds 0 to {asked.seeds - 1}, and their mean"
    )
    for rung, begun in rungs.items():
        found = [score(asked, begun, rung, seed) for seed in range(asked.seeds)]
        print(f"{rung:13} {' '.join(f'{f1:.3f}' for f1 in found)}   {np.mean(found):.3f}", flush=True)


if __name__ == "__main__":
    main()
