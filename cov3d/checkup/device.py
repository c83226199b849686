"""Which GPU the work would be done on, or that there is none and what that means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cov3d.checkup.findings import Finding, size

if TYPE_CHECKING:
    import torch

DRIVER = Path("/proc/driver/nvidia/version")
ENOUGH_MEMORY = 8e9
ON_CPU = (
    "preprocess and infer work without; a ResNet-18 takes about 20 s for each two scans that it is trained on at width 128 "
    "on two cores, so train where a GPU is, or at --width 64"
)


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its number, name, compute capability, and bytes of memory in all and free."""

    number: int
    name: str
    capability: tuple[int, int]
    total: int
    free: int


def find_device(asked: str) -> torch.device | None:
    """The device that ``--device`` means, or None if it is not there; auto is a GPU where there is one."""
    import torch

    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(asked)
    there = device.type == "cpu" or (device.index or 0) < torch.cuda.device_count()
    return device if there else None


def look_at_device(asked: str) -> Iterator[Finding]:
    """The device that ``--device`` means."""
    import torch

    device, driver = find_device(asked), driver_version()
    if device is None:
        yield judge_absent(asked, torch.cuda.device_count(), driver, torch.version.cuda)
    elif device.type == "cpu":
        yield judge_cpu(asked, torch.get_num_threads(), driver, torch.version.cuda)
    else:
        try:
            gpu, others = _gpu(device), _others(device)
        except RuntimeError as error:
            yield Finding(
                "gpu", f"it does not answer: {' '.join(str(error).split())[:120]}", "bad", "restart its driver"
            )
        else:
            yield judge_gpu(gpu, others, driver, torch.cuda.get_arch_list())


def judge_gpu(gpu: Gpu, others: Sequence[str], driver: str, kernels: Sequence[str]) -> Finding:
    """A GPU; ``kernels`` are the architectures that torch was built for, ``sm_90`` or ``compute_90``."""
    major, minor = gpu.capability
    found = f"{gpu.number}: {gpu.name}, compute capability {major}.{minor}, {size(gpu.total)}, {size(gpu.free)} free"
    found += f", driver {driver}" if driver else ""
    found += f"; {len(others)} more: {', '.join(others)}" if others else ""
    nvidia = [kernel for kernel in kernels if kernel.startswith(("sm_", "compute_"))]
    if nvidia and not any(runs_on(kernel, gpu.capability) for kernel in nvidia):
        advice = f"this torch was built for {', '.join(nvidia)} only; install one that has sm_{major}{minor}"
        return Finding("gpu", found, "bad", advice)
    if gpu.free < gpu.total / 2:
        advice = "something else fills half of its memory or more; end it, or choose another with --device cuda:1"
        return Finding("gpu", found, "note", advice)
    if gpu.total < ENOUGH_MEMORY:
        return Finding(
            "gpu", found, "note", "say a smaller --width, --batch-size 1 or --checkpoint-activations to train"
        )
    return Finding("gpu", found)


def judge_cpu(asked: str, threads: int, driver: str, cuda: str | None) -> Finding:
    """No GPU, or none wanted; ``driver`` and ``cuda`` tell whether there might be one."""
    found = f"{'none' if asked == 'auto' else 'not asked for'}; {threads} CPU thread{'' if threads == 1 else 's'}"
    if asked != "auto":
        return Finding("gpu", found)
    return Finding("gpu", found, "note", _unseen(driver, cuda) or ON_CPU)


def judge_absent(asked: str, count: int, driver: str, cuda: str | None) -> Finding:
    """A GPU that was asked for and is not there."""
    found = f"--device {asked}, and torch sees {count}"
    return Finding("gpu", found, "bad", _unseen(driver, cuda) or "choose another --device, or auto")


def runs_on(kernel: str, capability: tuple[int, int]) -> bool:
    """Whether what torch was built for runs on a GPU: ``sm_86`` on 8.6 to 8.9, ``compute_86`` on all later ones."""
    matched = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", kernel)
    if not matched:
        return False
    built = int(matched.group(2)), int(matched.group(3))
    return built <= capability and (matched.group(1) == "compute" or built[0] == capability[0])


def driver_version(path: Path = DRIVER) -> str:
    """The NVIDIA driver's version, or nothing where it does not say so."""
    try:
        matched = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", path.read_text())
    except (OSError, UnicodeDecodeError):
        return ""
    return matched.group() if matched else ""


def _unseen(driver: str, cuda: str | None) -> str:
    """What to do where a driver is there and torch sees no GPU."""
    if not driver:
        return ""
    if cuda is None:
        return f"NVIDIA driver {driver} is here, but this torch is for CPUs; install torch with CUDA from pytorch.org"
    return (
        f"NVIDIA driver {driver} is here, but torch sees no GPU: the driver may be too old for CUDA {cuda}, the "
        "container started without --gpus all, or CUDA_VISIBLE_DEVICES empty"
    )


def _gpu(device: torch.device) -> Gpu:
    import torch

    number = torch.cuda.current_device() if device.index is None else device.index
    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    return Gpu(number, properties.name, (properties.major, properties.minor), total, free)


def _others(device: torch.device) -> list[str]:
    import torch

    number = torch.cuda.current_device() if device.index is None else device.index
    return [torch.cuda.get_device_name(other) for other in range(torch.cuda.device_count()) if other != number]
