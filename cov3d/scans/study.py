"""A study: which scans there are, and what is known of each."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cov3d.console import few, natural
from cov3d.errors import StudyError
from cov3d.labels import UNKNOWN
from cov3d.scans.read import find_scans
from cov3d.scans.scan import SUPPORTED

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# How the parts of a study are called, in folders' names and in tables.
PARTITIONS = {
    TRAIN: ("train", "train_cov19d"),
    VALIDATION: ("validation", "val", "validation_cov19d"),
    TEST: ("test", "test_cov19d"),
}
CLASS_FOLDERS = {"covid": 1, "non-covid": 0, "noncovid": 0, "non_covid": 0}
LONGEST_PROBLEM = 300  # characters; a name in a damaged table may be as long as the table


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
    fold: int | None = None  # of the study's own cross-validation
    outcome: int = UNKNOWN  # 0 or 1: what became of the patient, as STOIC's probSevere

    @property
    def person(self) -> str:
        """Whose scan it is, as far as known: scans of one person stay on one side of a split."""
        return f"patient {self.patient}" if self.patient else f"scan {self.scan}"


@dataclass(frozen=True)
class Study:
    """All scans of a study, in natural order of their names."""

    source: Path
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of every scan's name, labels and split."""
        facts = [(r.scan, r.presence, r.severity, r.split, r.patient, r.weight) for r in self.rows]
        folds = [r.fold for r in self.rows]
        further = [known for known in (folds, [r.outcome for r in self.rows]) if set(known) - {None, UNKNOWN}]
        described = repr((facts, *further) if further else facts)
        return hashlib.sha256(described.encode("utf-8", errors="surrogateescape")).hexdigest()[:16]


@dataclass
class Findings:
    """What a layout or a table says: rows, what is wrong with it, and what its user should know."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_study(source: str | Path = ".") -> Study:
    """Read a study's folder or table.

    A folder is searched for, in this order: ``study.csv`` or ``study.xlsx``; the layout of a known data set, see
    :mod:`cov3d.scans.layouts`; the only table of scans; the layout of a known data set in one of its folders, if all
    scans lie there; scans without labels.

    Raises:
        StudyError: nothing found, more than one thing found, or rows that are wrong, all of them named.
    """
    source = Path(source)
    if source.is_file():
        return read_study_table(source)
    if not source.is_dir():
        raise StudyError(f"{source}: there is no such study; expected a folder or a table of scans")
    try:
        return _read_folder(source)
    except OSError as error:
        raise StudyError(f"{source}: cannot be looked through: {error.strerror}") from error


def read_study_table(path: str | Path) -> Study:
    """Read a table with a column ``scan`` (path relative to the table) and whatever is known of each scan.

    The index tables of Cov3d's published code (``path,split,has_covid,category``) are such tables.

    Raises:
        StudyError: whatever is wrong with the table, all wrong rows named.
    """
    from cov3d.scans.study_table import read_rows

    return _study(Path(path), read_rows(Path(path)))


def _read_folder(folder: Path) -> Study:
    # Layouts and tables are made of rows, so they import this file.
    from cov3d.scans.layouts import find_layout, find_layout_below
    from cov3d.scans.study_table import find_table, named_table

    if named := named_table(folder):
        return read_study_table(named)
    if layout := find_layout(folder):
        return _study(folder, layout)
    table, unread = find_table(folder)
    if table:
        return read_study_table(table)
    if below := find_layout_below(folder):
        return _study(*below)
    rows = [Row(name_below(path, folder), path) for path in find_scans(folder)]
    return _study(folder, Findings(rows, warnings=unread))


def name_below(path: Path, root: Path) -> str:
    """A scan's name in the study at ``root``: its path from there."""
    return path.relative_to(root).as_posix() if path != root else path.name


def _study(source: Path, findings: Findings) -> Study:
    warnings = list(findings.warnings)
    problems = list(findings.problems)
    rows = _once(findings.rows, warnings, problems)
    if problems:
        noun = "fault" if len(problems) == 1 else "faults"
        shown = few([problem[:LONGEST_PROBLEM] for problem in problems], "; ")
        raise StudyError(f"{source}: {len(problems)} {noun}: {shown}")
    if not rows:
        raise StudyError(
            f"{source}: no scans found (looked for {SUPPORTED}; for train/covid and its like; for one table of scans)"
        )
    return Study(source, tuple(sorted(rows, key=lambda row: natural(row.scan))), tuple(warnings))


def _once(rows: Sequence[Row], warnings: list[str], problems: list[str]) -> list[Row]:
    """Each scan once: one that comes again with the same labels is left out, with others it is a problem.

    Two rows mean the same scan if they lead to the same files: through a link, or where the disk does not tell capitals
    apart. Two scans may not have names that differ only in how Unicode writes an accent.
    """
    by_name: dict[str, Row] = {}
    by_place: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        near = by_place[_composed(os.path.realpath(row.path)).casefold()]
        twin = next((other for other in near if _same(other.path, row.path)), None)
        if twin is None:
            near.append(row)
            if by_name.setdefault(_composed(row.scan), row) is not row:
                problems.append(f"{row.scan}: two scans have this name, its accents written in two ways; rename one")
            continue
        also = f" as {twin.scan} and as {row.scan}" if twin.scan != row.scan else ""
        if replace(twin, scan=row.scan, path=row.path) == row:
            warnings.append(f"{row.scan}: listed twice{also}; used once")
        else:
            problems.append(f"{row.scan}: listed twice{also}, with different labels")
    return [row for near in by_place.values() for row in near]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except OSError:  # gone in the meantime; reading it will say so
        return False
