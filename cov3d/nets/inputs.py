"""What a network is given: where it runs, scans as it takes them, and their reflection."""

from __future__ import annotations

import torch
from torch import Tensor

from cov3d.errors import SettingError


def pick_device(name: str) -> torch.device:
    """The device that ``--device`` means; auto is a GPU where there is one.

    Raises:
        SettingError: a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"--device {name}: there are {torch.cuda.device_count()} GPUs here; choose another, or auto")
    return device


def as_input(scans: Tensor) -> Tensor:
    """Cached scans uint8 ``(B, 1, D, H, W)`` as float in [0, 1], cast where they lie: moving bytes costs a quarter."""
    return scans.float().div_(255)


def reflect(scans: Tensor) -> Tensor:
    """Scans ``(..., W)`` mirrored in the sagittal plane: left becomes right."""
    return scans.flip(-1)
