"""The published settings of both systems, by name, with their published scores.

Turnbull, arXiv 2207.12218, table 1 (the header of three of its columns is lost in the paper's text; λ, e1, e2 is inferred);
Kienzle et al., arXiv 2206.15073, tables 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from cov3d.config import RunSettings, from_options
from cov3d.config.pictures import PICTURE_TRAINING
from cov3d.errors import SettingError


@dataclass(frozen=True)
class Recipe:
    """Settings by the names of their options, and macro F1 by what it was measured on."""

    name: str
    options: dict[str, Any]
    scores: dict[str, float]
    weights: str = ""  # what the user must give with --weights, where a recipe cannot name it

    def settings(self, **said: Any) -> RunSettings:
        """The recipe as settings of a run, with whatever is said besides in place of its own."""
        return from_options(RunSettings, {**self.beside(said), **said})

    def beside(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Its options beside those that somebody said: none of these, and none that would contradict them.

        With another width, depth and crop keep their ratios to it; with another task, λ is that task's; with no weights to
        begin with nothing is inflated; and without crops scans are cached as large as the network sees them.
        """
        options = {name: value for name, value in self.options.items() if name not in said}
        if "width" in said and "width" in self.options:
            ratio = said["width"] / self.options["width"]
            options |= {name: round(options[name] * ratio) for name in ("depth", "crop_from") if name in options}
        if "task" in said and said["task"] != self.options.get("task"):
            options.pop("severity_factor", None)
        if said.get("weights") == "none":
            options.pop("inflate", None)
        if said.get("random_crop") == 0:
            options.pop("crop_from", None)
        return options


def find_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        SettingError: there is none, and which is nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = get_close_matches(name, RECIPES, n=1, cutoff=0.0)
    raise SettingError(f"there is no recipe {name!r}; did you mean {near[0]}? 'cov3d recipes' lists all")


def describe(recipe: Recipe) -> str:
    """A recipe's name, settings as options, and scores, on one line each."""
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in recipe.options.items())
    begins = f" --weights FILE ({recipe.weights})" if recipe.weights else ""
    scores = "; ".join(f"{where} {score:.4f}" for where, score in recipe.scores.items())
    return f"{recipe.name}{': ' if scores else ''}{scores}\n  {options}{begins}"


# ID: slices, width, reflection, λ, epochs, smoothing of presence and of severity, F1 of presence and of severity
TURNBULL = """
 1 160 320 yes .1 40 .1 0  .9476 .4764
 2 160 320 yes .1 50 .1 0  .9412 .4417
 3 160 320 no  .1 30 .1 .1 .9394 .4508
 4 160 320 yes 0  40 0  .1 .9372 -
 5 160 320 yes .5 30 .1 .1 .9372 .5952
 6 160 320 yes .9 50 .1 0  .9371 .6369
 7 128 256 yes .1 40 .1 0  .9351 .4424
 8 128 256 yes .1 50 .1 0  .9328 .4812
 9 128 256 yes .1 40 0  0  .9311 .388
10 160 320 yes .1 30 .1 .1 .9287 .4153
11 160 320 yes .9 40 .1 0  .9277 .6623
12 64  128 yes .1 40 .1 .1 .9268 .3988
13 128 256 no  .5 30 .1 .1 .9264 .5909
14 128 256 yes .9 40 .1 0  .9256 .7546
15 128 256 no  .1 30 .1 .1 .9249 .4416
16 160 320 yes .9 40 .1 .1 .9237 .6766
17 128 256 yes 0  40 0  .1 .9226 -
18 64  128 yes .2 30 .1 0  .9222 .4745
19 64  128 yes .1 50 .1 0  .9204 .4725
20 64  128 yes 0  40 .1 0  .9183 -
21 64  128 yes .1 40 .1 0  .9183 .4376
22 64  128 yes 0  40 0  .1 .9183 -
23 128 256 yes .1 30 .1 .1 .9167 .4354
24 64  128 no  .1 30 .1 0  .9093 .3873
25 64  128 yes .9 40 .1 0  .9062 .6754
26 64  128 no  .5 30 .1 0  .8973 .6143
27 128 256 yes 1  40 0  0  -     .6712
28 64  128 yes 1  40 0  0  -     .6811
"""


def _turnbull() -> Iterator[Recipe]:
    for line in TURNBULL.strip().splitlines():
        number, depth, width, reflection, factor, epochs, presence, severity, *f1 = line.split()
        options = {
            "task": {"0": "presence", "1": "severity"}.get(factor, "both"),
            "architecture": "resnet18",
            "weights": "kinetics",
            "depth": int(depth),
            "width": int(width),
            "flip_width": 0.5 if reflection == "yes" else 0.0,
            "loss": "joint",
            "severity_factor": float(factor),
            "presence_smoothing": float(presence),
            "severity_smoothing": float(severity),
            "epochs": int(epochs),
            "batch_size": 2,
            "learning_rate": 1e-4,
            "schedule": "1cycle",
            "optimizer": "adamw",
            "weight_decay": 0.01,
        }
        scores = {
            f"{task}, validation": float(score)
            for task, score in zip(("presence", "severity"), f1, strict=True)
            if score != "-"
        }
        idle = {"0": "severity_smoothing", "1": "presence_smoothing"}.get(factor, "")  # of a loss that λ leaves out
        options.pop(idle, None)
        yield Recipe(f"cov3d-{number}", options, scores)


CONVNEXT = {
    "architecture": "convnext-tiny",
    "depth": 224,
    "width": 224,
    "crop_from": 256,
    "loss": "balanced-ce",
    "class_weights": "inverse",
    "batch_size": 4,
    "learning_rate": 5e-5,
    "schedule": "constant",
    "optimizer": "adamw",
    "weight_decay": 1e-8,
    "precision": "fp32",
    "seed": 1055,
}
KIENZLE = {
    "severity": {"task": "severity", "severity_factor": 1.0, "epochs": 100, "ema": 0.99},
    "presence": {"task": "presence", "severity_factor": 0.0, "epochs": 70, "ema": 0.995},
}
IMAGENET = "a 2D ConvNeXt-tiny trained on ImageNet"
PRETRAINED = "a convnext-tiny pretrained by {}"
# What a submission begins with: its own settings, and what --weights must name.
BEGINNINGS: dict[str, tuple[dict[str, Any], str]] = {
    "random": ({}, ""),
    "imagenet": ({"inflate": "full"}, IMAGENET),
    "imagenet-1g": ({"inflate": "1g"}, IMAGENET),
    "imagenet-2g": ({"inflate": "2g"}, IMAGENET),
    "balanced": ({"inflate": "full"}, IMAGENET),
    "unbalanced": ({"inflate": "full", "class_weights": "none"}, IMAGENET),
    "segmentation": ({}, PRETRAINED.format("segmentation")),
    "segmia": ({}, PRETRAINED.format("segmia")),
    "multitask": ({}, PRETRAINED.format("multitask")),
    "segmentation-orientation": ({"turn": 0.25}, PRETRAINED.format("segmentation")),
    "segmia-orientation": ({"turn": 0.25}, PRETRAINED.format("segmia")),
}
# Macro F1 in per cent: cross-validation, ensemble of the five folds on the official test and validation sets.
SEVERITY = {
    "random": (62.71, None, 56.46),
    "imagenet": (65.67, 45.73, 61.28),
    "imagenet-1g": (65.81, None, 59.93),
    "imagenet-2g": (69.61, None, 56.92),
    "balanced": (64.99, None, 62.82),
    "unbalanced": (65.37, None, 60.10),
    "segmentation": (67.25, 46.21, 61.28),
    "segmia": (66.48, 48.85, 63.05),  # its fifth fold's model alone: 51.48 on the test set, 2nd place
    "multitask": (68.18, 48.95, 58.77),
    "segmentation-orientation": (71.74, None, 62.68),
}
PRESENCE = {
    "imagenet": 82.13,
    "multitask": 86.02,
    "segmia": 83.63,
    "segmia-orientation": 83.93,
    "segmentation": 86.18,
}


def _kienzle() -> Iterator[Recipe]:
    for beginning, found in SEVERITY.items():
        measured = zip(("cross-validation", "test", "validation"), found, strict=True)
        scores = {f"severity, {where}": round(score / 100, 4) for where, score in measured if score is not None}
        yield _convnext("severity", beginning, scores)
    for beginning, score in PRESENCE.items():
        yield _convnext("presence", beginning, {"presence, test": round(score / 100, 4)})


def _convnext(task: str, beginning: str, scores: dict[str, float]) -> Recipe:
    own, weights = BEGINNINGS[beginning]
    return Recipe(f"convnext-{task}-{beginning}", {**CONVNEXT, **KIENZLE[task], **own}, scores, weights)


RECIPES = {recipe.name: recipe for recipe in (*_turnbull(), *_kienzle())}


# The ways of pretraining, with the settings of Kienzle et al. (arXiv 2206.15073); of imagenet with ConvNeXt's own.
SHARED = ("architecture", "depth", "width", "crop_from", "batch_size", "precision", "seed")
PRETRAINING = {
    **{name: CONVNEXT[name] for name in SHARED},
    "learning_rate": 1e-5,
    "schedule": "constant",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "clip": 5.0,
    "ema": 0.99,
}
METHODS = {
    name: Recipe(name, options, {})
    for name, options in {
        "imagenet": {"architecture": "convnext-tiny", **PICTURE_TRAINING},
        "segmentation": {**PRETRAINING, "epochs": 119},
        "segmia": {**PRETRAINING, "epochs": 59},
        "multitask": {**PRETRAINING, "epochs": 119, "loss": "balanced-ce", "class_weights": "none"},
    }.items()
}
