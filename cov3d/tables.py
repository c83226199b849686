"""Tables as text: CSV (and Excel) files read without guesses, CSV files written without traps."""

from __future__ import annotations

import csv
import io
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from numbers import Number
from pathlib import Path
from typing import Any

from cov3d.commit import commit_text
from cov3d.console import few
from cov3d.errors import StudyError
from cov3d.excel import MOST_ROWS, read_sheet

SUFFIXES = (".csv", ".xlsx")
# A spreadsheet takes a cell that starts with one of these for a formula (OWASP ASVS 1.2.10).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\0")
LINE_END = re.compile("\r\n|\r|\n")
LARGEST = 50 * 2**20  # bytes; no table of scans is so large
OLD_EXCEL, ZIP = b"\xd0\xcf\x11\xe0", b"PK\x03\x04"


def read_table(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV or Excel table; every cell is stripped text, never a guessed number.

    Returns the columns and one dictionary a row.

    Raises:
        StudyError: whatever is wrong with it, see :func:`read_numbered`.
    """
    columns, rows = read_numbered(path)
    return columns, [cells for _, cells in rows]


def read_numbered(path: str | Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a table, and each row's number in the file (the header's is mostly 1) with its cells by column.

    A CSV file's cells are separated by ``,`` ``;`` or tab. Of an Excel file the only filled sheet is read: values, and
    whole numbers without a point. Rows without any text are passed over, and so are columns without a name.

    Raises:
        StudyError: not UTF-8, not what its name says, too large, no header, a column twice, rows with another number of
            cells than the header, several sheets, or cells that Excel may have changed: dates, formulas, long numbers.
    """
    path = Path(path)
    records = [[_plain(cell) for cell in record] for record in _records(path, _bytes(path))]
    filled = [(number, record) for number, record in enumerate(records, 1) if any(record)]
    if not filled:
        raise StudyError(f"{path}: the table is empty; expected a header and rows below it")
    columns = _trimmed(filled[0][1])
    named = [name for name in columns if name]
    twice = [name for name, count in Counter(named).items() if count > 1]
    if twice:
        raise StudyError(f"{path}: the column {twice[0]!r:.100} stands twice in the header")
    ragged = [str(n) for n, record in filled if len(record) < len(columns) or len(_trimmed(record)) > len(columns)]
    if ragged:
        rows = "row" if len(ragged) == 1 else "rows"
        raise StudyError(
            f"{path}: expected {len(columns)} cells in every row, as in the header; not so {rows} {few(ragged)}"
        )
    return named, [(n, {c: cell for c, cell in zip(columns, record, strict=False) if c}) for n, record in filled[1:]]


def read_columns(path: Path, *wanted: str, optional: Sequence[str] = ()) -> list[tuple[int, tuple[str, ...]]]:
    """Each row's number and its cells of the wanted columns, however these are capitalised; of ``optional`` ones empty cells
    where the table has none.

    Raises:
        StudyError: a column is missing, or whatever else is wrong with the table.
    """
    columns, rows = read_numbered(path)
    by_lower = {column.lower(): column for column in columns}
    if not {name.lower() for name in wanted} <= set(by_lower):
        raise StudyError(f"{path}: expected the columns {' and '.join(wanted)}, found {few(columns):.300}")
    asked = [by_lower.get(name.lower(), "") for name in (*wanted, *optional)]
    return [(number, tuple(cells.get(column, "") for column in asked)) for number, cells in rows]


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a CSV file, whole or not at all. Text that a spreadsheet would run as a formula gets a leading ``'``."""
    return commit_text(path, table_line(columns) + "".join(table_line([row[c] for c in columns]) for row in rows))


def write_names(path: str | Path, names: Iterable[str]) -> Path:
    """Write names one a line, without a header, as harmless as :func:`write_table` writes them."""
    return commit_text(path, "".join(table_line([name]) for name in names))


def table_line(cells: Iterable[Any]) -> str:
    """One line of CSV, its line end included; ``None`` is an empty cell."""
    buffer = io.StringIO()
    # What is in the line's end is quoted in cells, and a bare CR would break the line.
    csv.writer(buffer, lineterminator="\r\n").writerow([_harmless(cell) for cell in cells])
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
            raise StudyError(f"{path}: is not an ordinary file; expected a table")
        if status.st_size > LARGEST:
            raise StudyError(f"{path}: holds {status.st_size >> 20} MB; a table of scans has at most {LARGEST >> 20}")
        return path.read_bytes()
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error


def _records(path: Path, data: bytes) -> Iterable[list[str]]:
    """Rows of cells, of a form that the name and the first bytes agree on."""
    named = path.suffix.lower() == ".xlsx"
    if data.startswith(OLD_EXCEL):
        raise StudyError(
            f"{path}: is an old Excel file (.xls), or one with a password; save it as .xlsx without a password, or as "
            "UTF-8 CSV"
        )
    if data.startswith(ZIP) and not named:
        raise StudyError(f"{path}: is packed, so it is no CSV text; if Excel wrote it, name it .xlsx")
    if named and data and not data.startswith(ZIP):
        raise StudyError(f"{path}: is named .xlsx and is no Excel file; if it is text, name it .csv")
    return read_sheet(path, data) if named and data else _parse(path, _decode(path, data))


# CSV


def _decode(path: Path, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise StudyError(f"{path}: is UTF-16 and not UTF-8; save the table as UTF-8 CSV")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(data[: error.start].decode("latin-1"))) + 1
        raise StudyError(f"{path}: line {line} is not UTF-8; save the table as UTF-8 CSV") from error
    if "\0" in text:
        raise StudyError(f"{path}: holds NUL bytes, so it is UTF-16 or no text at all; save the table as UTF-8 CSV")
    return text


def _parse(path: Path, text: str) -> list[list[str]]:
    header = LINE_END.split(text.lstrip(), maxsplit=1)[0]
    delimiter = max(",;\t", key=re.sub('"[^"]*"', "", header).count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        records = list(islice(reader, MOST_ROWS + 1))
    except csv.Error as error:
        raise StudyError(f"{path}: is not a CSV table: {error}") from error
    if len(records) > MOST_ROWS:
        raise StudyError(f"{path}: has more than {MOST_ROWS} rows")
    return records


# Cells


def _trimmed(record: Sequence[str]) -> list[str]:
    """A record without its empty end."""
    length = max((index for index, cell in enumerate(record, 1) if cell), default=0)
    return list(record[:length])


def _harmless(cell: Any) -> Any:
    if cell is None or isinstance(cell, Number):
        return cell
    text = str(cell)
    return "'" + text if text.lstrip("'").startswith(FORMULA_STARTS) else text


def _plain(cell: str) -> str:
    """Undo :func:`_harmless`, so that a name survives being written and read."""
    cell = cell.strip()
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA_STARTS) else cell
