"""A cache's two lists for people: what is in it, and what failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cov3d.commit import as_written, commit_json
from cov3d.console import natural
from cov3d.errors import StudyError
from cov3d.locks import locked
from cov3d.scans.entry import Entry, current_entry, read_entry
from cov3d.scans.workers import Job
from cov3d.tables import read_table, write_table

SETTINGS = "settings.json"
MANIFEST = ("scan", "source", "fingerprint", "file", "sha256", "slices", "spacing", "warnings", "seconds")
FAILURES = ("scan", "stage", "file", "message")


def write_settings(folder: Path, described: Mapping[str, Any]) -> None:
    """Write what a cache's tensors depend on, if it is not there: runs on one cache take turns by a lock on this file."""
    try:
        if json.loads((folder / SETTINGS).read_text(encoding="utf-8")) == described:
            return
    except (OSError, ValueError, RecursionError):
        pass
    commit_json(folder / SETTINGS, described)


def write_lists(
    folder: Path, stage: str, failures: Mapping[str, str], jobs: Mapping[str, Job], others: Mapping[str, Job]
) -> None:
    """``manifest.csv`` from every entry of the folder (other studies' too), ``failures.csv`` from this run.

    What failed in runs that do ``others``, the other shares of the work, stays as long as it has no entry. Several runs may
    write at the same time: each reads what the one before has written.
    """
    with locked(folder / SETTINGS):
        entries = [entry for file in folder.glob("*.json") if (entry := read_entry(file))]
        entries.sort(key=lambda entry: natural(entry["scan"]))
        write_table(folder / "manifest.csv", MANIFEST, [_manifest_row(entry) for entry in entries])
        failed = [
            {"scan": scan, "stage": stage, "file": Path(jobs[scan]["path"]).name, "message": message}
            for scan, message in failures.items()
        ]
        failed += _still_failed(folder / "failures.csv", others)
        failed.sort(key=lambda row: natural(row["scan"]))
        write_table(folder / "failures.csv", FAILURES, failed)


def _manifest_row(entry: Entry) -> dict[str, Any]:
    spacing = " ".join(f"{mm:.4g}" for mm in entry["spacing"]) if entry["spacing"] else ""
    return {**entry, "spacing": spacing, "warnings": "; ".join(entry["warnings"])}


def _still_failed(file: Path, others: Mapping[str, Job]) -> list[dict[str, str]]:
    """The rows of those of the others that have no entry."""
    by_name = {as_written(scan).strip(): job for scan, job in others.items()}
    if not by_name:
        return []
    try:
        columns, rows = read_table(file)
    except StudyError:  # not there yet, or somebody changed it
        return []
    if tuple(columns) != FAILURES:
        return []
    return [row for row in rows if row["scan"] in by_name and current_entry(by_name[row["scan"]]) is None]
