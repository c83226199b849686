"""What a network is given: where it runs, scans as it takes them, and their reflection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cov3d.console import plural
from cov3d.errors import Cov3dError, SettingError
from cov3d.launch import find_launch


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


def device_of_share(name: str) -> torch.device:
    """The device that ``--device`` means for one of several processes that each do a share of the work: GPUs in turn.

    Raises:
        SettingError: a GPU that is not there.
    """
    device, launch = pick_device(name), find_launch()
    if device.type != "cuda" or device.index is not None or launch.local_size == 1:
        return device
    return torch.device("cuda", launch.local_rank % torch.cuda.device_count())


def device_of_rank(name: str) -> torch.device:
    """The device that ``--device`` means for one of several processes that train together: a GPU that no other has.

    Slurm may show each process only GPUs of its own (``--gpus-per-task``).

    Raises:
        SettingError: a GPU that is not there, more processes than GPUs, or one GPU for all.
    """
    device, launch = pick_device(name), find_launch()
    size, there = launch.local_size, torch.cuda.device_count()
    own = there < size and there * size <= launch.gpus
    if device.type != "cuda" or size == 1 or own:
        return device_of_share(name)
    if device.index is not None:
        raise SettingError(
            f"--device {name} is one GPU for {size} processes; leave it at auto, so that each has its own"
        )
    if size > there:
        fewer = f"srun --ntasks-per-node {there}" if launch.found_in == "srun" else f"torchrun --nproc-per-node {there}"
        raise SettingError(f"{size} processes on a machine with {plural(there, 'GPU')}; say {fewer}")
    return torch.device("cuda", launch.local_rank)


@contextmanager
def memory_advice(lower: str) -> Iterator[None]:
    """Out of memory becomes a sentence that says what to lower.

    Raises:
        Cov3dError: the GPU's or the machine's memory is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Cov3dError(f"the GPU's memory is full; lower {lower}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise Cov3dError(f"this machine's memory is full; lower {lower}") from error


def as_input(scans: Tensor) -> Tensor:
    """Cached scans uint8 ``(B, 1, D, H, W)`` as float in [0, 1], cast where they lie: moving bytes costs a quarter."""
    return scans.float().div_(255)


def reflect(scans: Tensor) -> Tensor:
    """Scans ``(..., W)`` mirrored in the sagittal plane: left becomes right."""
    return scans.flip(-1)
