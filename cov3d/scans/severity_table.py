"""A table of severities as COV19-CT-DB has them, ``Name;Category``, and which scans its names mean."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cov3d.console import few
from cov3d.errors import Cov3dError
from cov3d.labels import parse_severity
from cov3d.scans.read import scan_name
from cov3d.scans.study import Findings, Row
from cov3d.tables import read_columns


def grade(found: Findings, split: str, table: Path, given: dict[str, str]) -> None:
    """Give the rows the severities of a table, noted in ``given``; what is wrong goes into the problems."""
    lines = read_columns(table, "Name", "Category")
    place = {row.scan: index for index, row in enumerate(found.rows)}
    find = _finder(found.rows, split)
    for number, (name, category) in lines:
        where = f"{table.name} row {number} ({name})"
        called = find(name)
        if not called:
            found.problems.append(f"{where}: no such scan in {split}")
            continue
        row = called[0]
        if len(called) > 1:
            found.problems.append(f"{where}: may be {few([row.scan for row in called])}; rename one")
        elif row.scan in given:
            found.problems.append(f"{where}: listed twice, before in {given[row.scan]}")
        elif row.presence == 0:
            found.problems.append(f"{where}: has a severity, but lies in non-covid")
        else:
            given[row.scan] = f"row {number} of {table}"
            found.rows[place[row.scan]] = _graded(row, category, where, found.problems)


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
