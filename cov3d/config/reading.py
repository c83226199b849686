"""How a scan's files are understood, and how a scan becomes a tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cov3d.config.fields import HIDDEN_UID, UID, check_limits, hide_uid, option
from cov3d.errors import SettingError


@dataclass(frozen=True)
class Reading:
    """How a scan's files are understood. It belongs to the files, not to a model: a model file does not hold it."""

    range: Literal["auto", "hu", "grey"] = option(
        "auto", "What stored values are: HU, or grey levels already windowed; auto looks at them."
    )
    series: str = option("largest", "Which DICOM series of a folder: largest, all, or a SeriesInstanceUID.")
    allow_gaps: bool = option(
        False, "Read volumes with missing slices, uneven distances or a tilted gantry.", flag="--allow-gaps"
    )
    strict: bool = option(False, "Fail a scan for any slice that is unreadable, odd or missing.", flag="--strict")

    def __post_init__(self) -> None:
        check_limits(self)
        if not re.fullmatch(f"largest|all|{UID}|{HIDDEN_UID}", self.series):
            raise SettingError(f"--series {self.series!r} is not largest, all, or a SeriesInstanceUID")
        if self.strict and self.allow_gaps:
            raise SettingError("--strict and --allow-gaps exclude each other; leave one of them")

    @property
    def meaning(self) -> dict[str, str]:
        """What a voxel depends on, as it may be written; the other settings only decide which scans are read."""
        return {"range": self.range, "series": hide_uid(self.series)}


@dataclass(frozen=True)
class Preprocessing:
    """How a scan becomes a tensor. Whatever changes a voxel stands here, and so in the cache's key and the model file."""

    width: int = option(256, "Width and height of a cached scan, in voxels.", min=16, max=2048)
    depth: int | None = option(None, "Slices of a cached scan; half the width if not said.", min=1, max=2048)
    window_low: float = option(-1150.0, "HU that becomes black; scans in grey levels are taken as already windowed.")
    window_high: float = option(350.0, "HU that becomes white.")
    crop: Literal["none", "lungs"] = option("none", "Cut the scan to the box of its lungs before it is resized.")

    def __post_init__(self) -> None:
        check_limits(self)
        if self.depth is None:
            if self.width % 2:
                raise SettingError(
                    f"--width {self.width} is odd, so half of it is no number of slices; "
                    f"choose {self.width + 1}, or say --depth"
                )
            object.__setattr__(self, "depth", self.width // 2)
        if not self.window_low < self.window_high:
            raise SettingError(
                f"the window {self.window_low:g}…{self.window_high:g} HU is empty; its low end comes first"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(D, H, W)`` in voxels."""
        assert self.depth is not None  # __post_init__ has set it
        return self.depth, self.width, self.width
