"""``cov3d doctor``: look at all of a machine that the work hangs on, in order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from cov3d.checkup.convolution import look_at_convolution
from cov3d.checkup.device import find_device, look_at_device
from cov3d.checkup.disk import look_at_cache, look_at_outputs
from cov3d.checkup.findings import Finding, Report
from cov3d.checkup.limits import look_at_limits
from cov3d.checkup.versions import import_error, look_at_versions
from cov3d.config import Machine


def doctor(cache: str | Path = "cache", output_dir: str | Path = "outputs", machine: Machine | None = None) -> Report:
    """Tell whether this machine can do the work, in a few seconds.

    Looked at are versions, GPU, speed and correctness of 3D convolution, cores, memory, ``/dev/shm``, open files, the
    share that a scheduler gives, and the folders of caches and of runs: room, speed, locks. Both folders are left as
    they were; one that is not there is not made. No name of the machine or of a user is in the report, nor any folder
    but these two, as they are given.
    """
    begin = time.monotonic()
    findings = tuple(_looks(Path(cache), Path(output_dir), (machine or Machine()).device))
    return Report(findings, round(time.monotonic() - begin, 1))


def _looks(cache: Path, outputs: Path, asked: str) -> Iterator[Finding]:
    yield from look_at_versions()
    device = None
    if not import_error("torch"):  # else the versions have said so
        yield from look_at_device(asked)
        device = find_device(asked)
    if device is not None:
        yield from look_at_convolution(device)
    yield from look_at_limits(gpu=device is not None and device.type == "cuda")
    yield from look_at_cache(cache)
    yield from look_at_outputs(outputs)
