"""A study's table: one row a scan, with whatever is known of it."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import normalize

from cov3d.console import few
from cov3d.errors import Cov3dError, StudyError
from cov3d.labels import UNKNOWN, parse_outcome, parse_presence, parse_severity
from cov3d.scans.dicom_files import ADDRESS
from cov3d.scans.study import CLASS_FOLDERS, PARTITIONS, TRAIN, VALIDATION, Findings, Row
from cov3d.tables import SUFFIXES, read_numbered, read_table

# A table's columns, and the names that other programs give them.
COLUMNS = {
    "scan": ("scan", "path", "name"),
    "presence": ("presence", "has_covid", "covid"),
    "severity": ("severity", "category"),
    "split": ("split", "fold"),
    "patient": ("patient", "patient_id"),
    "site": ("site",),
    "weight": ("weight",),
    "mask": ("mask",),
    "outcome": ("outcome",),
}


def read_rows(path: Path) -> Findings:
    """The rows of a table with a column ``scan``; what is wrong with any row stands in its problems.

    Raises:
        StudyError: it is no table, or has no column of scans.
    """
    columns, lines = read_numbered(path)
    names = _column_names(path, columns)
    findings = Findings()
    for number, line in lines:
        try:
            findings.rows.append(_row(path.parent, {column: line[name] for column, name in names.items()}))
        except Cov3dError as error:
            findings.problems.append(f"row {number}: {error}")
    if not lines:
        findings.problems.append("has a header and no rows")
    return findings


def named_table(folder: Path) -> Path | None:
    """``study.csv`` or ``study.xlsx`` in a folder.

    Raises:
        StudyError: both are there.
    """
    return _only(folder, [path for path in _tables(folder) if path.stem == "study"])


def find_table(folder: Path) -> tuple[Path | None, list[str]]:
    """The only table in a folder that describes scans; and which tables cannot be read, so that nobody knows, and why.

    Raises:
        StudyError: there are two.
    """
    unread: list[str] = []
    return _only(folder, [path for path in _tables(folder) if _describes_scans(path, unread)]), unread


def _tables(folder: Path) -> list[Path]:
    hidden = (".", "~$")  # Excel leaves ~$name.xlsx beside an open file
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [path for path in files if not path.name.startswith(hidden)]


def _only(folder: Path, tables: list[Path]) -> Path | None:
    if len(tables) > 1:
        names = few([path.name for path in tables], " and ")
        raise StudyError(f"{folder}: {names} each describe scans; name the one that you mean, or keep one")
    return tables[0] if tables else None


def _describes_scans(path: Path, unread: list[str]) -> bool:
    """Whether a table names scans and says something of them, and is no table of predictions."""
    try:
        columns = {name.lower() for name in read_table(path)[0]}
    except StudyError as error:
        unread.append(f"passed over {error}")
        return False
    labels = {name for column in ("presence", "severity", "split") for name in COLUMNS[column]}
    return bool(columns & set(COLUMNS["scan"]) and columns & labels and "covid_probability" not in columns)


def _column_names(path: Path, columns: list[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for column, synonyms in COLUMNS.items():
        found = [name for name in columns if name.lower() in synonyms]
        if len(found) > 1:
            raise StudyError(f"{path}: {' and '.join(found)} both mean {column}; keep one of them")
        if found:
            names[column] = found[0]
    if "scan" not in names:
        raise StudyError(f"{path}: expected a column 'scan' (or path, or Name), found {few(columns):.300}")
    return names


def _row(root: Path, cells: dict[str, str]) -> Row:
    path = _scan_inside(root, cells["scan"])
    category = cells.get("severity", "")
    presence = parse_presence(cells.get("presence", ""))
    if category.lower() in CLASS_FOLDERS:  # the old index writes the class where no severity is known
        said, severity = CLASS_FOLDERS[category.lower()], UNKNOWN
    else:
        severity = parse_severity(category)
        said = 1 if severity != UNKNOWN else UNKNOWN
    if said != UNKNOWN and presence not in (UNKNOWN, said):
        raise StudyError(f"{cells['scan']!r} is said to be {'covid' if presence else 'non-covid'} and {category!r}")
    return Row(
        scan=PurePosixPath(cells["scan"]).as_posix(),
        path=path,
        presence=presence if said == UNKNOWN else said,
        severity=severity,
        split=_split(cells.get("split", "")),
        fold=_fold(cells.get("split", "")),
        patient=cells.get("patient", ""),
        site=cells.get("site", ""),
        weight=_weight(cells.get("weight", "")),
        outcome=parse_outcome(cells.get("outcome", "")),
        mask=_inside(root, cells["mask"]) if cells.get("mask") else None,
    )


def _scan_inside(root: Path, name: str) -> Path:
    """The path of a scan that a table names: a file, a folder, or with ``folder#2`` the second largest series of one."""
    try:
        return _inside(root, name)
    except StudyError:
        address = ADDRESS.fullmatch(name)
        if address is None:
            raise
        source = _inside(root, address["source"])
        return source.with_name(f"{source.name}#{address['series']}")


def _inside(root: Path, name: str) -> Path:
    """The path of a file or folder that a table names; a table may not lead out of its folder (links inside it may)."""
    if not name:
        raise StudyError("names no scan")
    windows = PureWindowsPath(name)  # it takes both / and \\ for a separator, and knows drives
    if windows.anchor or ".." in windows.parts:
        raise StudyError(f"{name!r} leads out of the table's folder; give paths relative to the table")
    path = root
    for part in PurePosixPath(name).parts:
        path = path / part if _is_there(path / part) else _alike(path, part, name)
    return path


def _alike(folder: Path, wanted: str, name: str) -> Path:
    """The entry of a folder whose name is ``wanted`` but for how Unicode writes its accents, as macOS changes them.

    Raises:
        StudyError: there is none; one that differs in capitals only is named.
    """
    try:
        entries = list(folder.iterdir())
    except OSError:  # the folder is none, or not ours to look into
        entries = []
    composed = normalize("NFC", wanted)
    for entry in entries:
        if normalize("NFC", entry.name) == composed:
            return entry
    close = [entry.name for entry in entries if normalize("NFC", entry.name).casefold() == composed.casefold()]
    hint = f"; {close[0]!r} is" if close else "; write / between folders" if "\\" in name else ""
    raise StudyError(f"{name[:100]!r} is not there{hint}")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no disk has names so long
        return False


def _split(text: str) -> str:
    word = text.strip().lower()
    if not word:
        return ""
    for split, spellings in PARTITIONS.items():
        if word in spellings:
            return split
    if (fold := _fold(text)) is not None:  # fold 0 validates, as in Cov3d's index tables
        return TRAIN if fold else VALIDATION
    raise StudyError(f"split {text!r} is not one of train, validation, test, or a fold's number")


def _fold(text: str) -> int | None:
    """The number of a fold, if a split is one; Excel writes it as 3.0."""
    return int(float(text)) if re.fullmatch(r"[0-9]{1,4}(\.0+)?", text.strip()) else None


def _weight(text: str) -> float:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf") or "_" in text:  # Python reads 1_0 as ten
        raise StudyError(f"weight {text!r} is not a number of 0 or more")
    return weight
