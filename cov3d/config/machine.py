"""How answers are made, where the work is done, and what is said of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from cov3d.config.fields import check_limits, option
from cov3d.errors import SettingError


@dataclass(frozen=True)
class Inference:
    """How answers are made."""

    tta: bool = option(True, "Average over the scan and its left-right reflection.")
    threshold: float = option(0.5, "COVID-19 is called at this probability or above.", min=0.0, max=1.0)
    allow_missing: bool = option(
        False,
        "Answer without folds of a cross-validation, or models, that are missing or unreadable.",
        flag="--allow-missing",
    )

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class Machine:
    """Where the work is done."""

    device: str = option("auto", "auto, cpu, cuda, or cuda:1.")
    workers: int | None = option(
        None,
        "Processes that read scans; if not said, one a core as far as memory allows, one beside a network on a CPU.",
        min=1,
        max=256,
    )
    timeout: float = option(600.0, "Seconds after which a scan is given up.", min=1.0)

    def __post_init__(self) -> None:
        check_limits(self)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise SettingError(f"--device {self.device!r} is not one of auto, cpu, cuda, cuda:1")

    @property
    def processes(self) -> int:
        """How many worker processes: as asked for, else one for each core that this process may use."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(cores, 32))


@dataclass(frozen=True)
class Messages:
    """What is said."""

    quiet: bool = option(False, "Say nothing but errors and results.", flag="--quiet")
    debug: bool = option(False, "Show where in the code an error came from.", flag="--debug")
