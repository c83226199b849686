"""The cache: every scan of a study as a tensor on disk, made once.

``cache/<D>x<H>x<W>-<key>/<scan id>.pt`` holds one uint8 tensor ``(1, D, H, W)``; beside it ``<scan id>.json`` says what
it was made from and vouches for it. ``manifest.csv`` gathers these for people, ``failures.csv`` lists what failed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cov3d.commit import TEMPORARY_PREFIX, check_writable, commit, commit_json
from cov3d.config import Machine, Preprocessing, Reading, from_dict, to_dict
from cov3d.console import natural, progress
from cov3d.errors import Cov3dError, ScanError, SettingError
from cov3d.scans.fingerprint import check_unchanged, content_fingerprint, sha256, stat_fingerprint
from cov3d.scans.preprocess import prepare
from cov3d.scans.read import read
from cov3d.scans.scan import Flaw
from cov3d.scans.study import Row
from cov3d.scans.workers import each
from cov3d.tables import write_table

# Raise it when the same scan and settings give other voxels than before.
CACHE_VERSION = 2
MANIFEST = ("scan", "source", "fingerprint", "file", "sha256", "slices", "spacing", "warnings", "seconds")
FAILURES = ("scan", "stage", "file", "message")


@dataclass(frozen=True)
class Cache:
    """A filled cache: what is in it, and what failed."""

    folder: Path
    entries: dict[str, dict[str, Any]]  # by scan
    failures: dict[str, str]  # by scan: the cause
    made: int
    verified: set[str] = field(default_factory=set)

    def load(self, scan: str) -> torch.Tensor:
        """The tensor of a scan, uint8 ``(1, D, H, W)``.

        Raises:
            Cov3dError: the file is gone, or its SHA-256 is not its entry's.
        """
        file = self.folder / self.entries[scan]["file"]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise Cov3dError(f"{file}: is gone from the cache ({error.strerror}); run again") from error
        if scan not in self.verified:  # once a run: a flipped bit is a wrong voxel, and nobody else would notice
            if hashlib.sha256(data).hexdigest() != self.entries[scan]["sha256"]:
                raise Cov3dError(f"{file}: has changed since it was made; delete it and run again")
            self.verified.add(scan)
        tensor = torch.load(io.BytesIO(data), weights_only=True)
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.uint8 or tensor.ndim != 4:
            raise Cov3dError(f"{file}: not a tensor of this cache; delete it and run again")
        return tensor


def cache_folder(root: Path, settings: Preprocessing, reading: Reading | None = None) -> Path:
    """Where scans of these settings lie: every setting that changes a voxel, and the cache's version, is in the name."""
    described = json.dumps(_described(settings, reading or Reading()), sort_keys=True)
    depth, height, width = settings.shape
    return root / f"{depth}x{height}x{width}-{hashlib.sha256(described.encode()).hexdigest()[:10]}"


def _described(settings: Preprocessing, reading: Reading) -> dict[str, Any]:
    """What a cached voxel depends on."""
    return {"version": CACHE_VERSION, **to_dict(settings), **reading.meaning}


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
    entries: dict[str, dict[str, Any]] = {}
    missing: list[Row] = []
    for row in rows:
        entry = _entry(folder, row, reading)
        if entry is None:
            missing.append(row)
        else:
            entries[row.scan] = entry
    ways = {"folder": str(folder), "settings": to_dict(settings), "reading": to_dict(reading)}
    jobs = [{"scan": row.scan, "path": str(row.path), **ways} for row in missing]
    failures: dict[str, str] = {}
    try:
        with progress(len(jobs), "preprocess") as step:
            for outcome in each(make_entry, jobs, machine.processes, machine.timeout):
                row = missing[outcome.index]
                if outcome.error:
                    failures[row.scan] = outcome.error
                else:
                    entries[row.scan] = outcome.answer
                step(row.scan)
    finally:
        _write_lists(folder, rows, failures)
    return Cache(folder, entries, failures, made=len(jobs) - len(failures))


def make_entry(job: dict[str, Any]) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    """Preprocess one scan into the cache: the tensor first, then the entry that vouches for it. Runs in a worker."""
    begin = time.monotonic()
    path, folder = Path(job["path"]), Path(job["folder"])
    stem = entry_stem(job["scan"], path)
    before = stat_fingerprint(path)
    content = content_fingerprint(path)
    reading = from_dict(Reading, job["reading"], "job")
    old = _read_json(folder / f"{stem}.json")
    if (
        old and _forgiven(old, reading) and old.get("content") == content and _is_whole(folder, old)
    ):  # files were touched, not changed
        entry = {**old, "fingerprint": before}
    else:
        array, scan = prepare(read(path, reading), from_dict(Preprocessing, job["settings"], "job"))
        check_unchanged(path, before)
        entry = {
            "scan": job["scan"],
            "source": path.name,
            "fingerprint": before,
            "content": content,
            "file": f"{stem}.pt",
            **_save(folder / f"{stem}.pt", array),
            "slices": len(scan.slices),
            "spacing": scan.spacing,
            "warnings": list(scan.remarks),
            "flaws": scan.flaws,
            "seconds": round(time.monotonic() - begin, 3),
        }
    commit_json(folder / f"{stem}.json", entry)
    return entry, ()


def _save(path: Path, array: np.ndarray) -> dict[str, Any]:
    commit(path, lambda file: torch.save(torch.from_numpy(array), file))
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def entry_stem(scan: str, path: Path) -> str:
    """A file name for a scan: no scan's name can lead it out of the cache, and no two scans share it, of other studies too."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", scan).strip(".-")[-80:]
    where = f"{scan}\n{path.resolve()}".encode("utf-8", errors="surrogateescape")
    return f"{readable}-{hashlib.sha256(where).hexdigest()[:12]}"


def _entry(folder: Path, row: Row, reading: Reading) -> dict[str, Any] | None:
    """The entry of a scan, if it is there, whole, and made from the files as they are."""
    entry = _read_json(folder / f"{entry_stem(row.scan, row.path)}.json")
    if entry is None or not _is_whole(folder, entry) or not _forgiven(entry, reading):
        return None
    try:
        current = stat_fingerprint(row.path)
    except (ScanError, OSError):
        return None  # it will be read, and then fail with its cause
    return entry if entry["fingerprint"] == current else None


def _forgiven(entry: dict[str, Any], reading: Reading) -> bool:
    """Whether a scan with these flaws would be read today."""
    return all(Flaw(*flaw).forgiven(reading) for flaw in entry["flaws"])


def _is_whole(folder: Path, entry: dict[str, Any]) -> bool:
    file = folder / entry["file"]
    return file.is_file() and file.stat().st_size == entry["bytes"]


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"file", "bytes", "fingerprint", "flaws"} <= set(content) else None


def _check_apart(rows: Sequence[Row], root: Path) -> None:
    inside = root.resolve()
    for row in rows:
        scan = row.path.resolve()
        if scan == inside or (scan in inside.parents and row.path.is_dir()):
            raise SettingError(f"--cache {root} lies inside the scan {row.path}; choose a folder beside the data")


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half-written; a running one's temporary files are younger than an hour."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if time.time() - leftover.stat().st_mtime > 3600:
            leftover.unlink(missing_ok=True)


def _write_lists(folder: Path, rows: Sequence[Row], failures: dict[str, str]) -> None:
    """``manifest.csv`` from every entry of the folder (other studies' too), ``failures.csv`` from this run."""
    entries = [entry for file in folder.glob("*.json") if (entry := _read_json(file))]
    entries.sort(key=lambda entry: natural(entry["scan"]))
    write_table(folder / "manifest.csv", MANIFEST, [_manifest_row(entry) for entry in entries])
    paths = {row.scan: row.path for row in rows}
    failed = [
        {"scan": scan, "stage": "preprocess", "file": paths[scan].name, "message": failures[scan]}
        for scan in sorted(failures, key=natural)
    ]
    write_table(folder / "failures.csv", FAILURES, failed)


def _manifest_row(entry: dict[str, Any]) -> dict[str, Any]:
    spacing = " ".join(f"{mm:.4g}" for mm in entry["spacing"]) if entry["spacing"] else ""
    return {**entry, "spacing": spacing, "warnings": "; ".join(entry["warnings"])}
