"""``predictions.csv`` as it grows: each row on the disk as it comes, and an earlier run gone on with.

Beside the table, ``predictions.csv.json`` says which models and settings made it, and what each scan's files were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cov3d.commit import advice_on_disk_errors, as_written, commit_json
from cov3d.console import say
from cov3d.errors import Cov3dError, ScanError, SettingError
from cov3d.predictions import COLUMNS, Prediction, read_predictions, write_predictions
from cov3d.scans.fingerprint import stat_fingerprint
from cov3d.tables import table_line


def check_output(output: Path, resume: bool, overwrite: bool) -> None:
    """Raise a SettingError for an output that cannot be, or that exists and is not to be touched."""
    if output.is_dir():
        raise SettingError(f"--output {output} is a folder; name a file, such as {output / 'predictions.csv'}")
    if resume and overwrite:
        raise SettingError("--resume keeps what is there and --overwrite does not; say one of them")
    if output.exists() and not (resume or overwrite):
        raise SettingError(
            f"{output} exists; say --resume to go on with it, --overwrite to begin again, or another --output"
        )


def open_journal(
    output: Path, paths: Sequence[Path], made_by: dict[str, Any], resume: bool
) -> tuple[list[Prediction], list[Path]]:
    """Rows of an earlier run that are kept, and the scans still to be done.

    A scan is done again if it failed, or if its files have changed since. Rows of scans that are not asked for now stay.

    Raises:
        SettingError: other models or settings made the earlier rows.
    """
    prints = {place(path): _fingerprint(path) for path in paths}
    kept: dict[str, Prediction] = {}
    before: dict[str, str] = {}
    if resume and output.exists():
        before = _read_provenance(output, made_by)
        drop_torn_line(output)
        rows = {place(row.path): row for row in read_predictions(output)}
        kept = {k: row for k, row in rows.items() if k not in prints or _holds(row, before.get(k), prints[k])}
    write_predictions(output, list(kept.values()))
    commit_json(_provenance_file(output), {**made_by, "scans": {**before, **prints}})
    return list(kept.values()), [path for path in paths if place(path) not in kept]


def place(path: str | Path) -> str:
    """Where a scan lies, however its path is spelt or written: a hash, since folders may be called as their patients.

    The end of a path may have lost its blanks: cells are read without any.
    """
    return hashlib.sha256(as_written(os.path.realpath(path)).strip().encode()).hexdigest()[:16]


@contextmanager
def appending(output: Path) -> Iterator[Callable[[Prediction], None]]:
    """A function that puts a row on the disk before it returns."""
    with output.open("a", encoding="utf-8", errors="backslashreplace") as file:

        def append(row: Prediction) -> None:
            cells = row.cells()
            with advice_on_disk_errors(output):
                file.write(table_line([cells[column] for column in COLUMNS]))
                file.flush()
                os.fsync(file.fileno())

        yield append


def drop_torn_line(path: Path) -> None:
    """Cut off what a killed run left of a last line."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    while data.count(b'"', 0, whole) % 2:  # a line's end within quotes, of a name, is none
        whole = data.rfind(b"\n", 0, whole - 1) + 1
    if whole < len(data):
        say(f"note: {path} ended within a line; that scan is done again")
        with path.open("r+b") as file:
            file.truncate(whole)


def _holds(row: Prediction, before: str | None, now: str) -> bool:
    return row.covid is not None and before == now


def _fingerprint(path: Path) -> str:
    try:
        return stat_fingerprint(path)
    except (ScanError, OSError):
        return "unreadable"  # its row will say why


def _provenance_file(output: Path) -> Path:
    return output.with_name(output.name + ".json")


def _read_provenance(output: Path, made_by: dict[str, Any]) -> dict[str, str]:
    """What the scans' files were; refused if anything but ``made_by`` made the table."""
    try:
        before = json.loads(_provenance_file(output).read_text(encoding="utf-8"))
        scans = dict(before.pop("scans"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Cov3dError(f"{output}: nobody knows which models made it; begin again with --overwrite") from error
    if before != json.loads(json.dumps(made_by)):
        raise SettingError(f"{output} was made with other models or settings; say --overwrite, or another --output")
    return scans
