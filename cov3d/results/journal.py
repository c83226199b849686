"""``predictions.csv`` as it grows: each row on the disk as it comes, and an earlier run gone on with.

Beside the table, ``predictions.csv.json`` says which models and settings made it, and of each scan what its files were,
what was forgiven in it, and where its mask is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cov3d.commit import advice_on_disk_errors, as_written, commit_json
from cov3d.config import Reading
from cov3d.console import say
from cov3d.errors import Cov3dError, ScanError, SettingError
from cov3d.predictions import COLUMNS, Prediction, read_predictions, write_predictions
from cov3d.results.masks import mask_names
from cov3d.scans.fingerprint import stat_fingerprint
from cov3d.scans.scan import GAP, LOSS, Flaw
from cov3d.tables import table_line

# Of a scan: a fingerprint of its files, the kinds of flaws that were forgiven; the name of its mask, and a hash of its folder's
# place.
Record = dict[str, Any]
FORGIVABLE: Final = (LOSS, GAP)


@dataclass(frozen=True)
class Journal:
    """Rows of an earlier run that are kept, the scans still to be done, and where their masks go, by their place."""

    rows: list[Prediction]
    todo: list[Path]
    masks: dict[str, Path]


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
    output: Path,
    paths: Sequence[Path],
    made_by: dict[str, Any],
    reading: Reading,
    resume: bool,
    columns: Sequence[str] = COLUMNS,
    masks: Path | None = None,
) -> Journal:
    """What an earlier run leaves to do; the table holds its rows that are kept.

    A scan is done again if it failed, if its files have changed since, if it may have a flaw that ``reading`` does not
    forgive, or if its mask is not in the folder ``masks``. Rows of scans that are not asked for now stay.

    Raises:
        SettingError: other models or settings made the earlier rows.
    """
    made_by = {**made_by, **reading.meaning}
    now = {place(path): _record(path, reading) for path in paths}
    kept: dict[str, Prediction] = {}
    before = _read_provenance(output, made_by) if resume and output.exists() else {}
    files = _name_masks(now, {place(path): path for path in paths}, before, masks)
    if resume and output.exists():
        drop_torn_line(output)
        rows = {place(row.path): row for row in read_predictions(output)}
        kept = {k: row for k, row in rows.items() if k not in now or _holds(row, before.get(k), now[k], files.get(k))}
    write_predictions(output, list(kept.values()), columns)
    todo = {k: record for k, record in now.items() if k not in kept}
    commit_json(_provenance_file(output), {**made_by, "scans": {**before, **todo}})
    return Journal(list(kept.values()), [path for path in paths if place(path) in todo], files)


def _name_masks(
    now: dict[str, Record], scans: dict[str, Path], before: dict[str, Record], folder: Path | None
) -> dict[str, Path]:
    """Where each scan's mask goes, also put into its record; nowhere, without a folder."""
    if folder is None:
        return {}
    here = place(folder)
    names = mask_names(scans, {k: record["mask"] for k, record in before.items() if record.get("mask_folder") == here})
    for k, name in names.items():
        now[k] |= {"mask": name, "mask_folder": here}
    return {k: folder / name for k, name in names.items()}


def place(path: str | Path) -> str:
    """Where a scan lies, however its path is spelt or written: a hash, since folders may be called as their patients.

    The end of a path may have lost its blanks: cells are read without any.
    """
    return hashlib.sha256(as_written(os.path.realpath(path)).strip().encode()).hexdigest()[:16]


@contextmanager
def appending(output: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Callable[[Prediction], None]]:
    """A function that puts a row on the disk before it returns."""
    with output.open("a", encoding="utf-8", errors="backslashreplace") as file:

        def append(row: Prediction) -> None:
            cells = row.cells()
            with advice_on_disk_errors(output):
                file.write(table_line([cells[column] for column in columns]))
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


def _record(path: Path, reading: Reading) -> Record:
    forgiven = [kind for kind in FORGIVABLE if Flaw(kind, "").forgiven(reading)]
    return {"files": _fingerprint(path), "forgiven": forgiven}


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


def _provenance_file(output: Path) -> Path:
    return output.with_name(output.name + ".json")


def learnt_wholly(output: Path) -> set[str]:
    """Fingerprints of the studies of which a model that made the table learnt every labelled scan."""
    try:
        models = json.loads(_provenance_file(output).read_text(encoding="utf-8"))["models"]
        return {str(model["learnt_all_of"]) for model in models if model.get("learnt_all_of")}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return set()


def _read_provenance(output: Path, made_by: dict[str, Any]) -> dict[str, Record]:
    """What the scans were; refused if anything but ``made_by`` made the table."""
    try:
        before = json.loads(_provenance_file(output).read_text(encoding="utf-8"))
        scans = dict(before.pop("scans"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Cov3dError(f"{output}: nobody knows which models made it; begin again with --overwrite") from error
    if before != json.loads(json.dumps(made_by)):
        raise SettingError(f"{output} was made with other models or settings; say --overwrite, or another --output")
    return {k: record for k, record in scans.items() if _is_record(record)}


def _is_record(content: Any) -> bool:
    if not isinstance(content, dict) or set(content) - {"mask", "mask_folder"} != {"files", "forgiven"}:
        return False
    mask, folder = content.get("mask", ""), content.get("mask_folder", "")
    if not (isinstance(mask, str) and isinstance(folder, str)) or Path(mask).name != mask:
        return False
    return isinstance(content["forgiven"], list) and all(isinstance(kind, str) for kind in content["forgiven"])
