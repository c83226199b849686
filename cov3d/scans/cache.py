"""The cache: every scan of a study as a tensor on disk, made once.

``cache/<D>x<H>x<W>-<key>/<scan id>.pt`` holds one uint8 tensor ``(1, D, H, W)``; beside it ``<scan id>.json`` says what
it was made from and vouches for it. ``manifest.csv`` gathers these for people, ``failures.csv`` lists what failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cov3d.commit import TEMPORARY_PREFIX, check_writable, commit_json
from cov3d.config import Machine, Preprocessing, Reading, recorded
from cov3d.console import natural, progress, say
from cov3d.errors import Cov3dError, ScanError, SettingError
from cov3d.scans.dicom_files import split_address
from cov3d.scans.entry import Entry, current_entry, entry_job, make_entry, read_entry, read_tensor
from cov3d.scans.study import Row
from cov3d.scans.workers import Job, each
from cov3d.tables import write_table

# Raise it when the same scan and settings give other voxels than before.
CACHE_VERSION = 2
MANIFEST = ("scan", "source", "fingerprint", "file", "sha256", "slices", "spacing", "warnings", "seconds")
FAILURES = ("scan", "stage", "file", "message")


@dataclass(frozen=True)
class Cache:
    """A filled cache: what is in it, what failed, and what each entry is made from."""

    folder: Path
    entries: dict[str, Entry]  # by scan
    failures: dict[str, str]  # by scan: the cause
    made: int
    jobs: dict[str, Job]  # by scan
    verified: set[str] = field(default_factory=set)

    def load(self, scan: str) -> torch.Tensor:
        """The tensor of a scan, uint8 ``(1, D, H, W)``; made again if its file is gone or has changed since it was made.

        Raises:
            Cov3dError: it cannot be made again.
        """
        tensor = self._read(scan)
        if tensor is None:
            self._make_again(scan)
            tensor = self._read(scan)
        if tensor is None:
            raise Cov3dError(f"{self._file(scan)}: is not as it was written a moment ago; is the disk sound?")
        self.verified.add(scan)
        return tensor

    def _read(self, scan: str) -> torch.Tensor | None:
        return read_tensor(self.jobs[scan], self.entries[scan], verify=scan not in self.verified)  # once a run

    def _make_again(self, scan: str) -> None:
        """Here and not in a worker process: a loader's process may have none of its own."""
        what = f"{self._file(scan)} is gone or has changed since it was made"
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
    return root / f"{depth}x{height}x{width}-{hashlib.sha256(described.encode()).hexdigest()[:10]}"


def _described(settings: Preprocessing, reading: Reading) -> dict[str, Any]:
    """What a cached voxel depends on."""
    return {"version": CACHE_VERSION, **recorded(settings), **reading.meaning}


def fill_cache(
    rows: Sequence[Row],
    settings: Preprocessing,
    root: str | Path = "cache",
    machine: Machine | None = None,
    reading: Reading | None = None,
) -> Cache:
    """Make what the cache lacks, in worker processes, and list what cannot be made.

    A scan is made again when its files have changed; a scan that failed, or has a flaw that is not forgiven any more, is
    tried again.

    Raises:
        Cov3dError: the cache cannot be written.
        SettingError: the cache would lie inside a scan.
    """
    machine, reading = machine or Machine(), reading or Reading()
    folder = cache_folder(Path(root), settings, reading)
    _check_apart(rows, Path(root))
    check_writable(folder)
    _sweep(folder)
    commit_json(folder / "settings.json", _described(settings, reading))
    jobs = {row.scan: entry_job(row.scan, row.path, folder, settings, reading) for row in rows}
    entries = {scan: entry for scan, job in jobs.items() if (entry := current_entry(job))}
    missing = [scan for scan in jobs if scan not in entries]
    failures: dict[str, str] = {}
    try:
        with progress(len(missing), "preprocess") as step:
            for outcome in each(make_entry, [jobs[scan] for scan in missing], machine.processes, machine.timeout):
                scan = missing[outcome.index]
                if outcome.error:
                    failures[scan] = outcome.error
                else:
                    entries[scan] = outcome.answer
                step(scan)
    finally:
        _write_lists(folder, rows, failures)
    return Cache(folder, entries, failures, len(missing) - len(failures), jobs)


def _check_apart(rows: Sequence[Row], root: Path) -> None:
    inside = Path(os.path.realpath(root))
    for row in rows:
        source, _ = split_address(row.path)
        scan = Path(os.path.realpath(source))
        if scan == inside or (scan in inside.parents and source.is_dir()):
            raise SettingError(f"--cache {root} lies inside the scan {source}; choose a folder beside the data")


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half-written; a running one's temporary files are younger than an hour."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if time.time() - leftover.stat().st_mtime > 3600:
            leftover.unlink(missing_ok=True)


def _write_lists(folder: Path, rows: Sequence[Row], failures: dict[str, str]) -> None:
    """``manifest.csv`` from every entry of the folder (other studies' too), ``failures.csv`` from this run."""
    entries = [entry for file in folder.glob("*.json") if (entry := read_entry(file))]
    entries.sort(key=lambda entry: natural(entry["scan"]))
    write_table(folder / "manifest.csv", MANIFEST, [_manifest_row(entry) for entry in entries])
    paths = {row.scan: row.path for row in rows}
    failed = [
        {"scan": scan, "stage": "preprocess", "file": paths[scan].name, "message": failures[scan]}
        for scan in sorted(failures, key=natural)
    ]
    write_table(folder / "failures.csv", FAILURES, failed)


def _manifest_row(entry: Entry) -> dict[str, Any]:
    spacing = " ".join(f"{mm:.4g}" for mm in entry["spacing"]) if entry["spacing"] else ""
    return {**entry, "spacing": spacing, "warnings": "; ".join(entry["warnings"])}
