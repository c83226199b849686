"""What a cache lacks, made in worker processes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from cov3d.commit import sweep
from cov3d.config import Machine
from cov3d.console import few, natural, plural, progress, say
from cov3d.errors import Cov3dError
from cov3d.scans.drives import check_drive, drives_of
from cov3d.scans.entry import Entry, check_entry, current_entry, make_entry
from cov3d.scans.lists import write_lists
from cov3d.scans.workers import Job, each


def fill(
    folder: Path,
    stage: str,
    jobs: Mapping[str, Job],
    machine: Machine,
    others: Mapping[str, Job] | None = None,
    verify: bool = False,
) -> tuple[dict[str, Entry], dict[str, str], int]:
    """Make the entries that are missing or out of date, with ``verify`` also those that are damaged; write the lists.

    ``others`` are the jobs of other runs that do the rest of the same work. Returns entries and causes of failure by scan,
    and how many entries were made.

    Raises:
        Cov3dError: the folder cannot be written.
    """
    damaged = _damaged(jobs, machine) if verify else set()
    entries = {scan: entry for scan, job in jobs.items() if scan not in damaged and (entry := current_entry(job))}
    missing = {scan: job for scan, job in jobs.items() if scan not in entries}
    failures: dict[str, str] = {}
    try:
        _make(missing, machine, stage, entries, failures)
    except BaseException:
        with contextlib.suppress(Cov3dError):  # what happened first is to be told
            _end(folder, stage, failures, jobs, others or {})
        raise
    _end(folder, stage, failures, jobs, others or {})
    return entries, failures, len(missing) - len(failures)


def _make(
    missing: Mapping[str, Job], machine: Machine, stage: str, entries: dict[str, Entry], failures: dict[str, str]
) -> None:
    scans = list(missing)
    drives = drives_of(Path(job["path"]) for job in missing.values())
    with progress(len(scans), stage) as step:
        for outcome in each(make_entry, list(missing.values()), machine):
            scan = scans[outcome.index]
            if outcome.error:
                check_drive(Path(missing[scan]["path"]), drives, "run the same command again: what is made is kept")
                failures[scan] = outcome.error
            else:
                entries[scan] = outcome.answer
            step(scan)


def _end(
    folder: Path, stage: str, failures: Mapping[str, str], jobs: Mapping[str, Job], others: Mapping[str, Job]
) -> None:
    """Remove what workers that were stopped left half-written, and write the lists."""
    sweep(folder)
    write_lists(folder, stage, failures, jobs, others)


def _damaged(jobs: Mapping[str, Job], machine: Machine) -> set[str]:
    """Scans whose tensors are not what was written."""
    scans, found = list(jobs), set()
    with progress(len(scans), "verify") as step:
        for outcome in each(check_entry, list(jobs.values()), machine):
            if outcome.error or outcome.answer["damaged"]:
                found.add(scans[outcome.index])
            step(scans[outcome.index])
    if found:
        names = few(sorted(found, key=natural))
        say(f"note: {plural(len(found), 'tensor')} gone, cut or changed since made; they are made again: {names}")
    return found
