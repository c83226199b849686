"""``predictions.csv`` as it grows: each row on the disk as it comes, and an earlier run gone on with.

Beside the table stands its provenance. A table without a row may be anybody's, so a run first empties it, then says who
makes it, then answers: whenever it is killed, the two fit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cov3d.commit import advice_on_disk_errors, as_written
from cov3d.config import Reading
from cov3d.console import say
from cov3d.errors import ScanError, SettingError
from cov3d.predictions import COLUMNS, Prediction, read_predictions, write_predictions
from cov3d.results.claim import Claim, unclaimed
from cov3d.results.masks import mask_names
from cov3d.results.provenance import Provenance, Record, place, read_provenance, share_of, write_provenance
from cov3d.scans.fingerprint import stat_fingerprint
from cov3d.scans.scan import GAP, LOSS, Flaw
from cov3d.shards import WHOLE, Shard
from cov3d.tables import table_line

FORGIVABLE: Final = (LOSS, GAP)


@dataclass(frozen=True)
class Asked:
    """The scans that were asked for, and which share of them this run answers."""

    paths: Sequence[Path]
    shard: Shard = WHOLE

    @property
    def mine(self) -> list[Path]:
        """This run's share."""
        return self.shard.of(self.paths)


@dataclass(frozen=True)
class Journal:
    """Rows of an earlier run that are kept, the scans still to be done, and where their masks go, by their place."""

    rows: list[Prediction]
    todo: list[Path]
    masks: dict[str, Path]


def check_output(output: Path, resume: bool, overwrite: bool) -> None:
    """Raise a SettingError for an output that cannot be, or that exists and is not to be touched.

    Raises:
        Cov3dError: another run is writing it.
    """
    if output.is_dir():
        raise SettingError(f"--output {output} is a folder; name a file, such as {output / 'predictions.csv'}")
    if resume and overwrite:
        raise SettingError("--resume keeps what is there and --overwrite does not; say one of them")
    with unclaimed(output):
        if output.exists() and not (resume or overwrite):
            raise SettingError(
                f"{output} exists; say --resume to go on with it, --overwrite to begin again, or another --output"
            )


def open_journal(
    claim: Claim,
    asked: Asked,
    made_by: Mapping[str, Any],
    reading: Reading,
    resume: bool,
    columns: Sequence[str] = COLUMNS,
    masks: Path | None = None,
) -> Journal:
    """What an earlier run leaves to do; the table holds its rows that are kept.

    A scan is done again if it failed, if its files have changed since, if it may have a flaw that ``reading`` does not
    forgive, or if its mask is not in the folder ``masks``. Rows of scans that are not asked for now stay, but for those that
    are in another share now.

    Raises:
        SettingError: other models or settings made the earlier rows.
        Cov3dError: another run is writing the table.
    """
    made_by, output = {**made_by, **reading.meaning}, claim.path
    everyone = {place(path): path for path in asked.paths}
    now = {place(path): _record(path, reading) for path in asked.mine}
    rows, before = _read_earlier(output, made_by) if resume and is_filled(output) else ({}, {})
    files = _name_masks(now, everyone, before, masks)
    stale = _stale(rows, everyone)
    kept = {k: row for k, row in rows.items() if k not in now and k not in stale}
    kept |= {k: rows[k] for k in now if k in rows and _holds(rows[k], before.get(k), now[k], files.get(k))}
    write_predictions(output, list(kept.values()), columns)
    claim.renew()
    todo = {k: record for k, record in now.items() if k not in kept}
    records = {k: before[k] for k in kept if k in before} | todo
    paths = {k: row.path for k, row in kept.items()} | {k: everyone[k].as_posix() for k in todo}
    share = share_of(asked.shard, everyone, _forgiven(reading))
    write_provenance(output, Provenance(made_by, records, share), paths)
    return Journal(list(kept.values()), [everyone[k] for k in todo], files)


def _read_earlier(output: Path, made_by: Mapping[str, Any]) -> tuple[dict[str, Prediction], Mapping[str, Record]]:
    """Rows of an earlier run and their records, by the scan's place; refused if anything but ``made_by`` made them."""
    drop_torn_line(output)
    rows = {place(row.path): row for row in read_predictions(output)}
    if not rows:
        return {}, {}
    before = read_provenance(output)
    if before.made_by != json.loads(json.dumps(made_by)):
        raise SettingError(f"{output} was made with other models or settings; say --overwrite, or another --output")
    return rows, before.records


def _stale(rows: Mapping[str, Prediction], everyone: Mapping[str, Path]) -> set[str]:
    """Rows of scans that are asked for, in whatever share; and of folders that were not there, as long as their drive was not."""
    folders = {folder for path in everyone.values() for folder in path.parents}
    return {*everyone, *(k for k in map(place, folders) if k in rows and rows[k].error)}


def _name_masks(
    now: dict[str, Record], scans: Mapping[str, Path], before: Mapping[str, Record], folder: Path | None
) -> dict[str, Path]:
    """Where each scan's mask goes, also put into its record; nowhere, without a folder.

    Names are given to all ``scans``: those of other shares lie in the same folder.
    """
    if folder is None:
        return {}
    here = place(folder)
    names = mask_names(scans, {k: record["mask"] for k, record in before.items() if record.get("mask_folder") == here})
    for k, record in now.items():
        record |= {"mask": names[k], "mask_folder": here}
    return {k: folder / name for k, name in names.items()}


@contextmanager
def appending(output: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Callable[[Prediction], None]]:
    """A function that puts a row on the disk before it returns; one that the disk does not take whole is taken off again."""
    with output.open("ab", buffering=0) as file:

        def append(row: Prediction) -> None:
            cells = row.cells()
            line = as_written(table_line([cells[column] for column in columns])).encode()
            with advice_on_disk_errors(output):
                _append(file.fileno(), line)

        yield append


def _append(descriptor: int, line: bytes) -> None:
    end = os.fstat(descriptor).st_size
    try:
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


def is_filled(output: Path) -> bool:
    """Whether there is a table; an empty file is the claim of a run that was killed at once."""
    return output.exists() and output.stat().st_size > 0


def is_torn(path: Path) -> bool:
    """Whether a table ends within a line."""
    data = path.read_bytes()
    return _whole_lines(data) < len(data)


def drop_torn_line(path: Path) -> None:
    """Cut off what a killed run left of a last line."""
    if is_torn(path):
        say(f"note: {path} ended within a line; that scan is done again")
        with path.open("r+b") as file:
            file.truncate(_whole_lines(path.read_bytes()))


def _whole_lines(data: bytes) -> int:
    """How many bytes are whole lines."""
    whole = data.rfind(b"\n") + 1
    while data.count(b'"', 0, whole) % 2:  # a line's end within quotes, of a name, is none
        whole = data.rfind(b"\n", 0, whole - 1) + 1
    return whole


def _record(path: Path, reading: Reading) -> Record:
    return {"files": _fingerprint(path), "forgiven": _forgiven(reading)}


def _forgiven(reading: Reading) -> list[str]:
    return [kind for kind in FORGIVABLE if Flaw(kind, "").forgiven(reading)]


def _holds(row: Prediction, before: Record | None, now: Record, mask: Path | None) -> bool:
    """Whether an answer would be given again. Flaws are warned of: without a warning nothing was forgiven."""
    if not row.answered or before is None or before["files"] != now["files"]:
        return False
    if mask is not None and not (before.get("mask_folder") == now["mask_folder"] and mask.is_file()):
        return False
    return not row.warning or set(before["forgiven"]) <= set(now["forgiven"])


def _fingerprint(path: Path) -> str:
    try:
        return stat_fingerprint(path)
    except (ScanError, OSError):
        return "unreadable"  # its row will say why
