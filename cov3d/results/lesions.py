"""Lesions: what segmentation models draw, averaged at the voxels of the scan itself, and how much of it there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cov3d.config import Preprocessing
from cov3d.errors import ModelError
from cov3d.nets.model import Model
from cov3d.results.views import forward, straight, views_of
from cov3d.scans.frame import Frame, planes
from cov3d.scans.lungs import find_lungs

PROBABLE = 0.5  # a voxel of a higher probability is lesion
NOT_A_NUMBER = "the model's answer is not a number; is the model damaged?"
NO_LUNGS = "no lungs found, so nobody can say which share of them is lesion"


@dataclass(frozen=True)
class Drawn:
    """Probabilities of lesion ``(D, H, W)`` in a tensor, how this lies in the scan, and how many models they are the mean of."""

    probability: np.ndarray
    frame: Frame
    models: int


@dataclass(frozen=True)
class Lesions:
    """Lesions of one scan: a mask, bool ``(n, H, W)``, at its voxels; their share of the lungs in percent; their volume in ml.

    The share is None where no lungs are found, the volume where the scan's spacing is not known. What lies outside the found
    lungs counts for the volume only.
    """

    mask: np.ndarray
    percent: float | None
    ml: float | None


def find_lesions(
    models: Sequence[Model],
    scans: Mapping[Preprocessing, Tensor],
    frames: Mapping[Preprocessing, Frame],
    tta: bool,
) -> Lesions:
    """Lesions of a scan, given as uint8 ``(1, D, H, W)`` as each model wants it: where the models' mean is above one half.

    Raises:
        ModelError: a model's answer is not finite.
    """
    wanted = list(dict.fromkeys(model.preprocessing for model in models))
    drawn = [
        draw([model for model in models if model.preprocessing == settings], scans[settings], frames[settings], tta)
        for settings in wanted
    ]
    mask = mean_mask(drawn)
    return measure(mask, frames[wanted[0]], scans[wanted[0]][0].numpy())


@torch.inference_mode()
def draw(models: Sequence[Model], scan: Tensor, frame: Frame, tta: bool) -> Drawn:
    """The mean over models and views of what models of one preprocessing draw in a scan."""
    mean = np.zeros(scan.shape[1:], np.float32)
    for model in models:
        logits = forward(model.masks, views_of(scan, model, tta))[:, 0, 0]  # (V, D, H, W)
        mean += straight(logits.float().sigmoid()).mean(0).cpu().numpy() / np.float32(len(models))
    if not np.isfinite(mean).all():
        raise ModelError(NOT_A_NUMBER)
    return Drawn(mean, frame, len(models))


def mean_mask(drawn: Sequence[Drawn]) -> np.ndarray:
    """Where the mean over all models is lesion, bool ``(n, H, W)``; slice by slice, so that memory holds no more."""
    mask = np.empty(drawn[0].frame.shape, bool)
    models = sum(part.models for part in drawn)
    layers = [planes(part.probability, part.frame) for part in drawn]
    for index, found in enumerate(zip(*layers, strict=True)):
        mean = sum(plane * np.float32(part.models / models) for plane, part in zip(found, drawn, strict=True))
        mask[index] = mean > PROBABLE
    return mask


def measure(mask: np.ndarray, frame: Frame, grey: np.ndarray) -> Lesions:
    """A mask with its share of the lungs and its volume. The lungs are looked for in the tensor ``(D, H, W)`` of ``frame``."""
    lesion = np.count_nonzero(mask, axis=(1, 2))
    ml = None
    if frame.spacing is not None:
        ml = float(lesion @ frame.thickness * frame.spacing[1] * frame.spacing[2] / 1000)
    lungs = find_lungs(grey, frame.tensor_spacing(grey.shape), frame.window)
    if lungs is None:
        return Lesions(mask, None, ml)
    within, lung = np.zeros(len(mask)), np.zeros(len(mask))
    for index, plane in enumerate(planes(lungs.mask.astype(np.float32), frame)):
        inside = plane > PROBABLE
        lung[index], within[index] = np.count_nonzero(inside), np.count_nonzero(inside & mask[index])
    whole = float(lung @ frame.thickness)
    return Lesions(mask, 100 * float(within @ frame.thickness) / whole if whole else None, ml)
