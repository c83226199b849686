"""Tables as text: CSV files read without guesses and written without traps."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cov3d.commit import commit_text
from cov3d.errors import StudyError

# A spreadsheet takes a cell that starts with one of these for a formula (OWASP ASVS 1.2.10).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\0")


def read_table(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a table whose cells are separated by ``,`` ``;`` or tab; every cell is stripped text, never a guessed number.

    Returns the columns and one dictionary a row.

    Raises:
        StudyError: not UTF-8, no header, a column twice, or rows with another number of cells than the header.
    """
    path = Path(path)
    rows = _parse(path, _decode(path))
    if not rows:
        raise StudyError(f"{path}: the table is empty; expected a header and rows below it")
    columns = [cell.strip() for cell in rows[0]]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise StudyError(f"{path}: the column {twice[0]!r} stands twice in the header")
    ragged = [str(number) for number, row in enumerate(rows, 1) if row and len(row) != len(columns)]
    if ragged:
        lines = ", ".join(ragged[:5])
        raise StudyError(
            f"{path}: {len(ragged)} rows do not have {len(columns)} cells as the header does: rows {lines}"
        )
    return columns, [{c: _plain(cell) for c, cell in zip(columns, row, strict=True)} for row in rows[1:] if row]


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a CSV file, whole or not at all. Text that a spreadsheet would run as a formula gets a leading ``'``."""
    return commit_text(path, table_line(columns) + "".join(table_line([row[c] for c in columns]) for row in rows))


def table_line(cells: Iterable[Any]) -> str:
    """One line of CSV, its line end included; ``None`` is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([_harmless(cell) for cell in cells])
    return buffer.getvalue()


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise StudyError(f"{path}: line {line} is not UTF-8; save the table as UTF-8 CSV") from error


def _parse(path: Path, text: str) -> list[list[str]]:
    if "\0" in text:
        raise StudyError(f"{path}: holds NUL bytes, so it is not a text table; save it as UTF-8 CSV")
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise StudyError(f"{path}: is not a CSV table: {error}") from error


def _harmless(cell: Any) -> Any:
    if isinstance(cell, str) and cell.startswith(FORMULA_STARTS):
        return "'" + cell
    return cell


def _plain(cell: str) -> str:
    """Undo :func:`_harmless`, so that a name survives being written and read."""
    cell = cell.strip()
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_STARTS) else cell
