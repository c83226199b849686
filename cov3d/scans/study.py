"""A study: which scans there are, and what is known of each. From folders as COV19-CT-DB has them, or from a table."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from cov3d.console import few, natural
from cov3d.errors import Cov3dError, StudyError
from cov3d.labels import SEVERITY_TABLES, UNKNOWN, parse_presence, parse_severity
from cov3d.scans.read import find_scans, scan_name
from cov3d.scans.scan import FORMS
from cov3d.tables import read_table

TRAIN, VALIDATION, TEST = "train", "validation", "test"
PARTITIONS = {
    TRAIN: ("train", "train_cov19d"),
    VALIDATION: ("validation", "val", "validation_cov19d"),
    TEST: ("test", "test_cov19d"),
}
CLASS_FOLDERS = {"covid": 1, "non-covid": 0, "noncovid": 0, "non_covid": 0}
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
}


@dataclass(frozen=True)
class Row:
    """One scan of a study. ``presence`` is 0 or 1, ``severity`` 1…4, either may be ``UNKNOWN``."""

    scan: str
    path: Path
    presence: int = UNKNOWN
    severity: int = UNKNOWN
    split: str = ""
    patient: str = ""
    site: str = ""
    weight: float = 1.0
    mask: Path | None = None


@dataclass(frozen=True)
class Study:
    """All scans of a study, in natural order of their names."""

    source: Path
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of every scan's name, labels and split."""
        described = repr([(r.scan, r.presence, r.severity, r.split, r.patient, r.weight) for r in self.rows])
        return hashlib.sha256(described.encode("utf-8", errors="surrogateescape")).hexdigest()[:16]


def read_study(source: str | Path = ".") -> Study:
    """Read a study's folder or table.

    A folder is searched for, in this order: ``study.csv``; ``train`` and ``validation`` with ``covid`` and
    ``non-covid`` in them (COV19-CT-DB), with its severity tables; the only CSV table of scans; scans without labels.

    Raises:
        StudyError: nothing found, or rows that are wrong, all of them named.
    """
    source = Path(source)
    if source.is_file():
        return read_study_table(source)
    if not source.is_dir():
        raise StudyError(f"{source}: there is no such study; expected a folder or a table of scans")
    if (source / "study.csv").is_file():
        return read_study_table(source / "study.csv")
    if list(_class_folders(source)):
        return read_study_folders(source)
    tables = [path for path in sorted(source.glob("*.csv")) if _describes_scans(path)]
    if len(tables) == 1:
        return read_study_table(tables[0])
    scans = find_scans(source)
    if not scans:
        raise StudyError(
            f"{source}: no scans found (looked for {FORMS}, for train/covid and its like, and for one table of scans)"
        )
    return _study(source, [Row(_relative(path, source), path) for path in scans], [])


# From folders


def read_study_folders(root: Path) -> Study:
    """Read ``train|validation/{covid,non-covid}/<scan>`` with ``Name;Category`` tables of severity."""
    rows: list[Row] = []
    problems: list[str] = []
    for split, presence, folder in _class_folders(root):
        rows += [Row(_relative(path, root), path, presence, split=split) for path in find_scans(folder)]
    given: dict[str, str] = {}
    for split, name in SEVERITY_TABLES.items():
        for table in _severity_tables(root, split, name):
            rows = _with_severity(rows, split, table, given, problems)
    if not rows:
        raise StudyError(f"{root}: its class folders hold no scans (looked for {FORMS})")
    return _study(root, rows, problems)


def _class_folders(root: Path) -> Iterator[tuple[str, int, Path]]:
    """Split, presence and folder of every ``train/covid`` and its like, and of a bare ``covid``, ``non-covid``."""
    partitions = {spelling: split for split, spellings in PARTITIONS.items() for spelling in spellings}
    folders = [(partitions[f.name.lower()], f) for f in _folders(root) if f.name.lower() in partitions]
    for split, partition in [("", root), *folders]:
        for folder in _folders(partition):
            if folder.name.lower() in CLASS_FOLDERS:
                yield split, CLASS_FOLDERS[folder.name.lower()], folder


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _severity_tables(root: Path, split: str, name: str) -> list[Path]:
    candidates = [root / name, *(root / partition / name for partition in PARTITIONS[split])]
    return [path for path in candidates if path.is_file()]


def _with_severity(rows: list[Row], split: str, table: Path, given: dict[str, str], problems: list[str]) -> list[Row]:
    """The rows with the severities that a table gives them, noted in ``given``; what is wrong goes into ``problems``."""
    columns, lines = read_table(table)
    by_lower = {column.lower(): column for column in columns}
    if not {"name", "category"} <= set(by_lower):
        raise StudyError(f"{table}: expected the columns Name;Category, found {', '.join(columns)}")
    found = {row.scan: row for row in rows}
    find = _finder(rows, split)
    for number, line in enumerate(lines, 2):
        name = line[by_lower["name"]]
        where = f"{table.name} row {number} ({name})"
        called = find(name)
        if not called:
            problems.append(f"{where}: no such scan in {split}")
            continue
        row = called[0]
        if len(called) > 1:
            problems.append(f"{where}: may be {few([row.scan for row in called])}; rename one")
        elif row.scan in given:
            problems.append(f"{where}: listed twice, before in {given[row.scan]}")
        elif row.presence == 0:
            problems.append(f"{where}: has a severity, but lies in non-covid")
        else:
            given[row.scan] = f"row {number} of {table}"
            found[row.scan] = _graded(row, line[by_lower["category"]], where, problems)
    return list(found.values())


def _finder(rows: list[Row], split: str) -> Callable[[str], list[Row]]:
    """A function from a name to the scans that have it: positives first (names repeat among negatives), in either spelling."""
    exact: dict[tuple[int, str], list[Row]] = defaultdict(list)
    loose: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.split in (split, ""):
            name = scan_name(row.path)
            exact[row.presence, name].append(row)
            loose[row.presence, _spelling(name)].append(row)

    def find(name: str) -> list[Row]:
        found = (exact.get((k, name)) or loose.get((k, _spelling(name))) for k in (1, 0))
        return next((rows for rows in found if rows), [])

    return find


def _spelling(name: str) -> str:
    return re.sub(r"_(?=[0-9]+$)", "", name.lower())


def _graded(row: Row, text: str, where: str, problems: list[str]) -> Row:
    try:
        severity = parse_severity(text)
    except Cov3dError as error:
        problems.append(f"{where}: {error}")
        return row
    return replace(row, severity=severity)


# From a table


def read_study_table(path: Path) -> Study:
    """Read a table with a column ``scan`` (path relative to the table) and whatever is known of each scan.

    The index tables of Cov3d's published code (``path,split,has_covid,category``) are such tables.
    """
    columns, lines = read_table(path)
    names = _column_names(path, columns)
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 2):
        cells = {column: line[name] for column, name in names.items()}
        try:
            rows.append(_row(path.parent, cells))
        except (Cov3dError, ValueError) as error:
            problems.append(f"row {number}: {error}")
    if not lines:
        problems.append("has a header and no rows")
    return _study(path, rows, problems)


def _describes_scans(path: Path) -> bool:
    """Whether a CSV file is a study's table: it names scans and says something of them, and is no table of predictions."""
    try:
        columns = {name.lower() for name in read_table(path)[0]}
    except StudyError:
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
        raise StudyError(f"{path}: expected a column 'scan' (or path, or Name), found {', '.join(columns)}")
    return names


def _row(root: Path, cells: dict[str, str]) -> Row:
    path = _inside(root, cells["scan"])
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
        patient=cells.get("patient", ""),
        site=cells.get("site", ""),
        weight=_weight(cells.get("weight", "")),
        mask=_inside(root, cells["mask"]) if cells.get("mask") else None,
    )


def _inside(root: Path, name: str) -> Path:
    """The path of a scan that a table names; a table may not lead out of its folder (links inside it may)."""
    if not name:
        raise StudyError("names no scan")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in PurePosixPath(name).parts:
        raise StudyError(f"{name!r} leads out of the table's folder; give paths relative to the table")
    path = root / name
    if not path.exists():
        raise StudyError(f"{name!r} is not there")
    return path


def _split(text: str) -> str:
    word = text.strip().lower()
    if not word:
        return ""
    for split, spellings in PARTITIONS.items():
        if word in spellings:
            return split
    if re.fullmatch(r"[0-9]+(\.0+)?", word):  # a fold's number; fold 0 validates, as in Cov3d's index tables
        return VALIDATION if float(word) == 0 else TRAIN
    raise StudyError(f"split {text!r} is not one of train, validation, test, or a fold's number")


def _weight(text: str) -> float:
    weight = float(text) if text else 1.0
    if not 0 <= weight < float("inf"):
        raise StudyError(f"weight {text!r} is not a number of 0 or more")
    return weight


# From either


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else path.name


def _study(source: Path, rows: list[Row], problems: list[str]) -> Study:
    unique: dict[str, Row] = {}
    warnings = []
    for row in rows:
        before = unique.setdefault(row.scan, row)
        if before is row:
            continue
        if before == row:
            warnings.append(f"{row.scan}: listed twice; used once")
        else:
            problems.append(f"{row.scan}: listed twice, with different labels")
    if problems:
        shown = few(problems, "; ")
        raise StudyError(f"{source}: {len(problems)} rows are wrong: {shown}")
    ordered = sorted(unique.values(), key=lambda row: natural(row.scan))
    return Study(source, tuple(ordered), tuple(warnings))
