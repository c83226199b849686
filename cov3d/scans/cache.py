"""The cache: every scan of a study as a tensor on disk, made once.

``cache/<D>x<H>x<W>-<key>/<scan id>.pt`` holds one uint8 tensor ``(1, D, H, W)``; beside it ``<scan id>.json`` says what
it was made from and vouches for it. ``manifest.csv`` gathers these for people, ``failures.csv`` lists what failed.
Masks lie in a folder beside it, ``…-masks``, as tensors of the same shape and geometry: 0 … 255 is how likely a voxel is
lesion.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cov3d.commit import check_writable, sweep
from cov3d.config import Machine, Preprocessing, Reading, parse_labels, recorded
from cov3d.console import say
from cov3d.errors import Cov3dError, ScanError, SettingError
from cov3d.scans.dicom_files import split_address
from cov3d.scans.entry import (
    Entry,
    current_entry,
    entry_job,
    keep_entry,
    make_entry,
    mask_job,
    read_tensor,
    renewed_entry,
)
from cov3d.scans.filling import fill
from cov3d.scans.lists import write_settings
from cov3d.scans.study import Row
from cov3d.scans.workers import Job
from cov3d.shards import WHOLE, Shard

# Raise it when the same scan, or its mask, and settings give other voxels than before.
CACHE_VERSION = 2


@dataclass(frozen=True)
class Cache:
    """A filled cache: what is in it, what failed, and what each entry is made from."""

    folder: Path
    entries: dict[str, Entry]  # by scan
    failures: dict[str, str]  # by scan: the cause
    made: int
    jobs: dict[str, Job]  # by scan
    verified: set[str] = field(default_factory=set)
    computed: bool = False  # its tensors were computed by a program that alone can make them again

    def load(self, scan: str) -> torch.Tensor:
        """The tensor of a scan, uint8 ``(1, D, H, W)``; made again if its file is gone or has changed since it was made.

        Raises:
            Cov3dError: it cannot be made again, or was computed.
        """
        tensor = self._read(scan)
        if tensor is None:
            self._make_again(scan)
            tensor = self._read(scan)
        if tensor is None:
            raise Cov3dError(f"{self._file(scan)}: is not as it was written a moment ago; is the disk sound?")
        self.verified.add(scan)
        return tensor

    def keep(self, scan: str, array: np.ndarray, volume: Entry) -> None:
        """Put a computed tensor, uint8 ``(1, D, H, W)``, into a cache of such, whole or not at all.

        ``volume`` is the scan's entry in the cache of volumes from which it was computed: when the scan's files change,
        both are out of date.

        Raises:
            Cov3dError: it cannot be written.
            ValueError: it has another type or shape.
        """
        self.entries[scan] = keep_entry(self.jobs[scan], array, volume)

    def _read(self, scan: str) -> torch.Tensor | None:
        return read_tensor(self.jobs[scan], self.entries[scan], verify=scan not in self.verified)  # once a run

    def _make_again(self, scan: str) -> None:
        """Here and not in a worker process: a loader's process may have none of its own."""
        what = f"{self._file(scan)} is gone or has changed since it was made"
        if self.computed:
            raise Cov3dError(f"{what}; run the same command again, which computes it anew")
        say(f"note: {what}; it is made again")
        self.verified.discard(scan)
        try:
            self.entries[scan], _ = make_entry(self.jobs[scan])
        except ScanError as error:
            raise Cov3dError(f"{what}, and the scan it was made from cannot be read: {error.cause}") from error

    def _file(self, scan: str) -> Path:
        return self.folder / self.entries[scan]["file"]


def cache_folder(root: Path, settings: Preprocessing, reading: Reading | None = None) -> Path:
    """Where scans of these settings lie: every setting that changes a voxel, and the cache's version, is in the name."""
    described = json.dumps(_described(settings, reading or Reading()), sort_keys=True)
    depth, height, width = settings.shape
    return root / f"{depth}x{height}x{width}-{_short_hash(described)}"


def _described(settings: Preprocessing, reading: Reading) -> dict[str, Any]:
    """What a cached voxel depends on."""
    return {"version": CACHE_VERSION, **recorded(settings), **reading.meaning}


def fill_cache(
    rows: Sequence[Row],
    settings: Preprocessing,
    root: str | Path = "cache",
    machine: Machine | None = None,
    reading: Reading | None = None,
    shard: Shard = WHOLE,
    verify: bool = False,
) -> Cache:
    """Make what the cache lacks, in worker processes, and list what cannot be made.

    A scan is made again when its files have changed, or its tensor's size; a scan that failed, or has a flaw that is not
    forgiven any more, is tried again. With ``verify`` every tensor is read, and made again if it is not what was written. Of
    the rows only the ``shard`` is made, verified and returned. Several runs may fill one cache at the same time.

    Raises:
        Cov3dError: the cache cannot be written.
        SettingError: the cache would lie inside a scan.
    """
    reading = reading or Reading()
    folder = cache_folder(Path(root), settings, reading)
    every = {row.scan: entry_job(row.scan, row.path, folder, settings, reading) for row in rows}
    _open(folder, rows, Path(root), _described(settings, reading))
    jobs = {scan: every[scan] for scan in shard.of(list(every))}
    others = {scan: job for scan, job in every.items() if scan not in jobs}
    return Cache(folder, *fill(folder, "preprocess", jobs, machine or Machine(), others, verify), jobs)


def fill_masks(
    rows: Sequence[Row],
    settings: Preprocessing,
    root: str | Path = "cache",
    machine: Machine | None = None,
    reading: Reading | None = None,
    labels: str = "",
) -> Cache:
    """The same for the masks of the rows that have one: each lies on the scan's tensor of the same settings.

    ``labels``, as ``1,3``, are the values that are lesion; without, masks hold 0 and 1. A mask is made again when the scan's
    files or its own have changed. What is wrong with a mask is a failure of its scan.

    Raises:
        Cov3dError: the cache cannot be written.
        SettingError: the cache would lie inside a scan or a mask, or labels are no numbers.
    """
    reading = reading or Reading()
    rows = [row for row in rows if row.mask is not None]
    labels = ",".join(map(str, parse_labels(labels)))
    folder = masks_folder(Path(root), settings, reading, f"labels {labels}" if labels else "")
    jobs = {
        row.scan: mask_job(entry_job(row.scan, row.path, folder, settings, reading), row.mask, labels)
        for row in rows
        if row.mask is not None
    }
    _open(folder, rows, Path(root), {**_described(settings, reading), "mask_labels": labels})
    return Cache(folder, *fill(folder, "mask", jobs, machine or Machine()), jobs)


def pseudo_cache(
    rows: Sequence[Row],
    settings: Preprocessing,
    root: str | Path,
    reading: Reading | None,
    made_by: str,
) -> Cache:
    """Masks that a program computes, such as a teacher's, and puts here by :meth:`Cache.keep`; those that are kept already.

    ``made_by`` says all that a voxel depends on beside the scan: which network, which threshold. Entries are there for scans
    whose files are as they were; whatever is missing is to be computed.

    Raises:
        Cov3dError: the cache cannot be written.
        SettingError: the cache would lie inside a scan.
    """
    reading = reading or Reading()
    folder = masks_folder(Path(root), settings, reading, made_by)
    jobs = {row.scan: entry_job(row.scan, row.path, folder, settings, reading) for row in rows}
    _open(folder, rows, Path(root), {**_described(settings, reading), "made_by": made_by})
    found = {scan: current_entry(job) or renewed_entry(job) for scan, job in jobs.items()}
    return Cache(folder, {scan: entry for scan, entry in found.items() if entry}, {}, 0, jobs, computed=True)


def masks_folder(root: Path, settings: Preprocessing, reading: Reading | None = None, made_by: str = "") -> Path:
    """Where the masks lie of scans of these settings; those of other labels, or by a program, in folders of their own."""
    volumes = cache_folder(root, settings, reading)
    return volumes.with_name(f"{volumes.name}-masks{f'-{_short_hash(made_by)}' if made_by else ''}")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()[:10]


def _open(folder: Path, rows: Sequence[Row], root: Path, described: dict[str, Any]) -> None:
    """Make the folder, or take what is there, and write into it what its tensors depend on."""
    _check_apart(rows, root)
    check_writable(folder)
    sweep(folder)
    write_settings(folder, described)


def _check_apart(rows: Sequence[Row], root: Path) -> None:
    inside = Path(os.path.realpath(root))
    sources = [("scan", split_address(row.path)[0]) for row in rows]
    sources += [("mask", row.mask) for row in rows if row.mask is not None]
    for kind, source in sources:
        real = Path(os.path.realpath(source))
        if real == inside or (real in inside.parents and source.is_dir()):
            raise SettingError(f"--cache {root} lies inside the {kind} {source}; choose a folder beside the data")
