"""A scan, or its mask, in the cache: a tensor's file, and the JSON beside it that says what from and vouches for it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch

from cov3d.commit import commit, commit_json
from cov3d.config import Preprocessing, Reading, from_dict, to_dict
from cov3d.errors import ScanError
from cov3d.scans.boundary import patiently
from cov3d.scans.fingerprint import check_unchanged, content_fingerprint, stat_fingerprint
from cov3d.scans.mask import mask_remarks, prepare_mask, read_mask
from cov3d.scans.preprocess import prepare
from cov3d.scans.read import read
from cov3d.scans.scan import Flaw, Scan
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


def mask_job(job: Job, mask: Path, labels: str = "") -> Job:
    """What is needed to make the entry of its mask, in which the values ``labels`` are lesion."""
    return {**job, "mask": str(mask), "labels": labels}


def entry_stem(scan: str, path: Path) -> str:
    """A file name for a scan: no scan's name can lead it out of the cache, and no two scans share it, of other studies too."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", scan).strip(".-")[-80:]
    where = f"{scan}\n{os.path.realpath(path)}".encode("utf-8", errors="surrogateescape")
    return f"{readable}-{hashlib.sha256(where).hexdigest()[:12]}"


def make_entry(job: Job) -> tuple[Entry, tuple[bytes, ...]]:
    """Preprocess one scan, or its mask, into the cache: the tensor first, then the entry. Runs in a worker."""
    begin = time.monotonic()
    before, content = _of_files(stat_fingerprint, job), _of_files(content_fingerprint, job)
    entry = _touched(job, before, content)
    if entry is None:
        array, scan, remarks = _mask_made(job) if "mask" in job else _made(job)
        _check_unchanged(job, before)
        made_from = {"fingerprint": before, "content": content, "slices": len(scan.slices), "spacing": scan.spacing}
        entry = _write(job, array, {**made_from, "flaws": scan.flaws}, remarks, begin)
    commit_json(_entry_file(job), entry)
    return entry, ()


def check_entry(job: Job) -> tuple[dict[str, bool], tuple[bytes, ...]]:
    """Whether a scan has an entry whose tensor is not what was written, read whole. Runs in a worker."""
    entry = read_entry(_entry_file(job))
    return {"damaged": entry is not None and read_tensor(job, entry) is None}, ()


def keep_entry(job: Job, array: np.ndarray, volume: Entry) -> Entry:
    """Put a tensor that a program computed into the cache, as one of the scan's files that ``volume`` was made from.

    Raises:
        ValueError: it is not uint8 ``(1, D, H, W)`` of the job's settings.
    """
    if (array.dtype, array.shape) != (np.uint8, (1, *_shape(job))):
        raise ValueError(f"expected uint8 {(1, *_shape(job))}, got {array.dtype} {array.shape}")
    entry = _write(job, array, volume, (), time.monotonic())
    commit_json(_entry_file(job), entry)
    return entry


def renewed_entry(job: Job) -> Entry | None:
    """The entry of a scan whose files were touched and not changed, made current."""
    if read_entry(_entry_file(job)) is None:
        return None  # nothing to renew; files are not read for it
    try:
        entry = _touched(job, _of_files(stat_fingerprint, job), _of_files(content_fingerprint, job))
    except ScanError:
        return None
    if entry is not None:
        commit_json(_entry_file(job), entry)
    return entry


def _made(job: Job) -> tuple[np.ndarray, Scan, tuple[str, ...]]:
    """A scan's tensor, what became of the scan on the way, and what is to be said."""
    array, prepared = prepare(_read(job), _settings(job))
    return array, prepared, prepared.remarks


def _mask_made(job: Job) -> tuple[np.ndarray, Scan, tuple[str, ...]]:
    """The same of its mask."""
    whole = _read(job)
    with _about_mask(job):
        mask = read_mask(job["mask"], whole, job["labels"])
    _, prepared = prepare(whole, _settings(job))
    array = prepare_mask(mask, prepared, _settings(job))
    return array, prepared, mask_remarks(mask, array)


def _read(job: Job) -> Scan:
    return read(Path(job["path"]), from_dict(Reading, job["reading"], "job"))


@contextmanager
def _about_mask(job: Job) -> Iterator[None]:
    """What is wrong with a mask fails its scan."""
    try:
        yield
    except ScanError as error:
        raise ScanError(job["path"], f"its mask {Path(job['mask']).name}: {error.cause}") from error


def _of_files(look: Callable[[Path], str], job: Job) -> str:
    """A fingerprint of the files that an entry is made from: the scan's, and the mask's."""
    scan = look(Path(job["path"]))
    if "mask" not in job:
        return scan
    with _about_mask(job):
        return f"{scan} {look(Path(job['mask']))}"


def _check_unchanged(job: Job, before: str) -> None:
    scan, *mask = before.split(" ")
    check_unchanged(Path(job["path"]), scan)
    if mask:
        with _about_mask(job):
            check_unchanged(Path(job["mask"]), mask[0])


def _touched(job: Job, fingerprint: str, content: str) -> Entry | None:
    """The entry that is there, with a new fingerprint, if files were touched and not changed."""
    old = read_entry(_entry_file(job))
    if old and _forgiven(old, job) and old["content"] == content and read_tensor(job, old) is not None:
        return {**old, "fingerprint": fingerprint}
    return None


def _entry_file(job: Job) -> Path:
    return Path(job["folder"]) / f"{entry_stem(job['scan'], Path(job['path']))}.json"


def _write(job: Job, array: np.ndarray, made_from: Entry, remarks: Sequence[str], begin: float) -> Entry:
    """Write a tensor's file; returns the entry that vouches for it, to be written after it."""
    file = _entry_file(job).with_suffix(".pt")
    return {
        "scan": job["scan"],
        "source": Path(job["mask"] if "mask" in job else job["path"]).name,
        "fingerprint": made_from["fingerprint"],
        "content": made_from["content"],
        "file": file.name,
        **_save(file, array),
        "slices": made_from["slices"],
        "spacing": made_from["spacing"],
        "warnings": list(remarks),
        "flaws": made_from["flaws"],
        "seconds": round(time.monotonic() - begin, 3),
    }


def _save(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write a tensor; what vouches for it is of what was to be written, whatever lies on the disk by then."""
    file = io.BytesIO()
    torch.save(torch.from_numpy(array), file)
    data = file.getbuffer()
    commit(path, lambda out: out.write(data))
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def current_entry(job: Job) -> Entry | None:
    """The entry of a scan, if it is there, its file of the right size, and made from the files as they are."""
    entry = read_entry(_entry_file(job))
    if entry is None or not _is_whole(Path(job["folder"], entry["file"]), entry) or not _forgiven(entry, job):
        return None
    try:
        current = _of_files(stat_fingerprint, job)
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


def _settings(job: Job) -> Preprocessing:
    return from_dict(Preprocessing, job["settings"], "job")


def _shape(job: Job) -> tuple[int, int, int]:
    return _settings(job).shape


def _forgiven(entry: Entry, job: Job) -> bool:
    """Whether a scan with these flaws would be read today."""
    reading = from_dict(Reading, job["reading"], "job")
    return all(Flaw(*flaw).forgiven(reading) for flaw in entry["flaws"])


def _is_whole(file: Path, entry: Entry) -> bool:
    return file.is_file() and file.stat().st_size == entry["bytes"]
