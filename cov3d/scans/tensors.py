"""Scans as tensors without a cache: read in worker processes, handed over in memory, as inference wants them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cov3d.config import Machine, Preprocessing, Reading, from_dict, to_dict
from cov3d.scans.fingerprint import check_unchanged, stat_fingerprint
from cov3d.scans.frame import Frame, frame_of
from cov3d.scans.preprocess import prepare
from cov3d.scans.read import read
from cov3d.scans.workers import each


@dataclass(frozen=True)
class Tensors:
    """A scan as uint8 ``(1, D, H, W)``, once for each preprocessing that was asked for; or the cause of its failure.

    ``frames`` say of each array how it lies in the scan, if that was asked for, too.
    """

    index: int
    arrays: tuple[np.ndarray, ...]
    warnings: tuple[str, ...]
    seconds: float
    error: str
    frames: tuple[Frame, ...] = ()


def read_tensors(
    paths: Sequence[Path],
    wanted: Sequence[Preprocessing],
    reading: Reading,
    machine: Machine,
    frames: bool = False,
) -> Iterator[Tensors]:
    """Read and preprocess scans in worker processes; they come in the order in which they are ready."""
    ways = {"reading": to_dict(reading), "settings": [to_dict(settings) for settings in wanted], "frames": frames}
    jobs = [{"path": str(path), **ways} for path in paths]
    for outcome in each(make_tensors, jobs, machine):
        arrays = tuple(
            np.frombuffer(bytearray(part), np.uint8).reshape(1, *settings.shape)
            for part, settings in zip(outcome.parts, wanted, strict=False)
        )
        answer = outcome.answer
        yield Tensors(
            outcome.index,
            arrays,
            tuple(answer.get("warnings", ())),
            answer.get("seconds", 0.0),
            outcome.error,
            tuple(map(Frame.from_dict, answer.get("frames", ()))),
        )


def make_tensors(job: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Preprocess one scan in every way that is wanted. Runs in a worker."""
    begin = time.monotonic()
    path = Path(job["path"])
    before = stat_fingerprint(path)
    scan = read(path, from_dict(Reading, job["reading"], "job"))
    parts, remarks, frames = [], {}, []
    for way in job["settings"]:
        settings = from_dict(Preprocessing, way, "job")
        array, prepared = prepare(scan, settings)
        parts.append(array.tobytes())
        remarks.update(dict.fromkeys(prepared.remarks))
        if job.get("frames"):
            frames.append(frame_of(scan, prepared, settings).to_dict())
    check_unchanged(path, before)
    return {"warnings": list(remarks), "seconds": time.monotonic() - begin, "frames": frames}, parts
