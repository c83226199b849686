"""One scan in the cache: a tensor's file, and the JSON beside it that says what it was made from and vouches for it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
import zipfile
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch

from cov3d.commit import commit, commit_json
from cov3d.config import Preprocessing, Reading, from_dict, to_dict
from cov3d.errors import ScanError
from cov3d.scans.boundary import patiently
from cov3d.scans.fingerprint import check_unchanged, content_fingerprint, sha256, stat_fingerprint
from cov3d.scans.preprocess import prepare
from cov3d.scans.read import read
from cov3d.scans.scan import Flaw
from cov3d.scans.workers import Job

Entry = dict[str, Any]
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("scan", "source", "fingerprint", "content", "file", "sha256"), str),
    **dict.fromkeys(("bytes", "slices"), int),
    **dict.fromkeys(("warnings", "flaws"), list),
    "spacing": (list, NoneType),
    "seconds": (int, float),
}


def entry_job(scan: str, path: Path, folder: Path, settings: Preprocessing, reading: Reading) -> Job:
    """What is needed to make an entry, as plain values."""
    ways = {"settings": to_dict(settings), "reading": to_dict(reading)}
    return {"scan": scan, "path": str(path), "folder": str(folder), **ways}


def entry_stem(scan: str, path: Path) -> str:
    """A file name for a scan: no scan's name can lead it out of the cache, and no two scans share it, of other studies too."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", scan).strip(".-")[-80:]
    where = f"{scan}\n{os.path.realpath(path)}".encode("utf-8", errors="surrogateescape")
    return f"{readable}-{hashlib.sha256(where).hexdigest()[:12]}"


def make_entry(job: Job) -> tuple[Entry, tuple[bytes, ...]]:
    """Preprocess one scan into the cache: the tensor first, then the entry that vouches for it. Runs in a worker."""
    begin = time.monotonic()
    path, folder = Path(job["path"]), Path(job["folder"])
    stem = entry_stem(job["scan"], path)
    before = stat_fingerprint(path)
    content = content_fingerprint(path)
    reading = from_dict(Reading, job["reading"], "job")
    old = read_entry(folder / f"{stem}.json")
    if old and _forgiven(old, reading) and old["content"] == content and _is_sound(folder, old):
        entry = {**old, "fingerprint": before}  # files were touched, not changed
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


def current_entry(job: Job) -> Entry | None:
    """The entry of a scan, if it is there, its file of the right size, and made from the scan's files as they are."""
    path, folder = Path(job["path"]), Path(job["folder"])
    entry = read_entry(folder / f"{entry_stem(job['scan'], path)}.json")
    if entry is None or not _is_whole(folder, entry) or not _forgiven(entry, from_dict(Reading, job["reading"], "job")):
        return None
    try:
        current = stat_fingerprint(path)
    except ScanError:
        return None  # it will be read, and then fail with its cause
    return entry if entry["fingerprint"] == current else None


def read_entry(path: Path) -> Entry | None:
    """An entry, if it is one; it vouches for the file of its own name only."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or set(content) != set(KINDS) or content["file"] != f"{path.stem}.pt":
        return None
    return content if all(isinstance(content[name], kind) for name, kind in KINDS.items()) else None


def read_tensor(job: Job, entry: Entry, verify: bool = True) -> torch.Tensor | None:
    """The tensor of an entry, uint8 ``(1, D, H, W)``; None if its file is gone, or not what was written.

    With ``verify`` its SHA-256 is looked at: a flipped bit is a wrong voxel, and nobody else would notice.
    """
    try:
        data = patiently((Path(job["folder"]) / entry["file"]).read_bytes)
    except OSError:
        return None
    if verify and hashlib.sha256(data).hexdigest() != entry["sha256"]:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch would unpack what is packed, to any size
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
        tensor = None if packed else torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # torch has many words for a damaged file
        return None
    fits = isinstance(tensor, torch.Tensor) and (tensor.dtype, tensor.shape) == (torch.uint8, (1, *_shape(job)))
    return tensor if fits else None


def _shape(job: Job) -> tuple[int, int, int]:
    return from_dict(Preprocessing, job["settings"], "job").shape


def _forgiven(entry: Entry, reading: Reading) -> bool:
    """Whether a scan with these flaws would be read today."""
    return all(Flaw(*flaw).forgiven(reading) for flaw in entry["flaws"])


def _is_whole(folder: Path, entry: Entry) -> bool:
    file = folder / entry["file"]
    return file.is_file() and file.stat().st_size == entry["bytes"]


def _is_sound(folder: Path, entry: Entry) -> bool:
    """Whether an entry's file is to the bit what was written."""
    return _is_whole(folder, entry) and sha256(folder / entry["file"]) == entry["sha256"]
