"""The rows of an Excel workbook as text, without guesses and within bounds."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cov3d.console import few
from cov3d.errors import StudyError

# What a table of scans never needs, refused before it is parsed: a small file can promise any size.
LARGEST = 200 * 2**20  # bytes, of all that is packed in the file
MOST_TAGS = 1_000_000  # of XML; a cell has two to four, and each takes up to 600 bytes of memory
MOST_ROWS = 2**20  # Excel has no more
MOST_COLUMNS = 256
MOST_DIGITS = 15  # Excel rounds longer numbers


def read_sheet(path: Path, data: bytes) -> list[list[str]]:
    """The rows of the only filled sheet of a workbook, each as many cells of text as the widest; blank rows are empty.

    Values are read, not formulas; whole numbers come without a point. ``path`` is for the errors.

    Raises:
        StudyError: openpyxl is missing, the workbook is damaged or far larger than a table of scans is, several sheets
            are filled, or cells are such that Excel may have changed what was typed: dates, formulas without a value,
            errors, numbers of more than fifteen digits.
    """
    try:
        import openpyxl
    except ImportError as error:
        advice = "pip install 'cov3d[excel]', or save the table as UTF-8 CSV"
        raise StudyError(f"{path}: Excel files are read by openpyxl, which is not installed; {advice}") from error
    try:
        _check_packed(path, data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions that a table does not need
            options = {"read_only": True, "keep_links": False}
            values = openpyxl.load_workbook(io.BytesIO(data), data_only=True, **options)
            formulas = openpyxl.load_workbook(io.BytesIO(data), data_only=False, **options)
            sheets = list(zip(values.worksheets, formulas.worksheets, strict=True))
            filled = [pair for pair in sheets if any(_rows(path, *pair))]
            if len(filled) > 1:
                names = few([repr(sheet.title) for sheet, _ in filled])
                raise StudyError(f"{path}: the sheets {names} are filled; keep one of them")
            return _sheet_text(path, _rows(path, *filled[0])) if filled else []
    except StudyError:
        raise
    except Exception as error:  # openpyxl raises almost anything on a damaged file
        raise StudyError(f"{path}: is damaged or no Excel file ({type(error).__name__}); save it again") from error


def _check_packed(path: Path, data: bytes) -> None:
    """Raise a StudyError for a workbook that is far larger than it looks."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)  # zipfile gives no more than a member promises
        if size > LARGEST:
            raise StudyError(f"{path}: unpacks to {size >> 20} MB; a table of scans has at most {LARGEST >> 20}")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise StudyError(f"{path}: is packed as no Excel file is; save it again")
        tags = 0
        for member in members:
            with archive.open(member) as file:
                while block := file.read(2**20):
                    tags += block.count(b"<")
        if tags > MOST_TAGS:
            raise StudyError(f"{path}: holds {tags} XML tags; a table of scans has at most {MOST_TAGS}")


def _rows(path: Path, values: Any, formulas: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Rows of a sheet, each to its last filled cell: the cell with its value, and the same with its formula."""
    for sheet in (values, formulas):
        sheet.reset_dimensions()  # what a file says of its size may be wrong, and rows would be missing
    cells = (sheet.iter_rows(max_col=MOST_COLUMNS + 1) for sheet in (values, formulas))
    last, length = None, 0
    for number, (row, written) in enumerate(zip(*cells, strict=True), 1):
        if written is not last:  # rows that are not in the file are one tuple, and there may be a million
            last = written
            length = next((k for k in range(len(written), 0, -1) if written[k - 1].value is not None), 0)
        if number > MOST_ROWS or length > MOST_COLUMNS:
            raise StudyError(f"{path}: has more than {MOST_ROWS} rows or {MOST_COLUMNS} columns")
        yield list(zip(row[:length], written, strict=False))


def _sheet_text(path: Path, cells: Iterable[list[tuple[Any, Any]]]) -> list[list[str]]:
    problems: list[str] = []
    rows = [[_cell_text(cell, formula, problems) for cell, formula in row] for row in cells]
    if problems:
        raise StudyError(f"{path}: {few(problems, '; ')}")
    width = max(map(len, rows))
    return [row + [""] * (width - len(row)) if row else row for row in rows]


def _cell_text(cell: Any, formula: Any, problems: list[str]) -> str:
    """A cell's value as text; ``formula`` is the same cell with its formula instead."""
    value = cell.value
    if value is None:
        if formula.data_type == "f":
            problems.append(f"cell {formula.coordinate} holds a formula without a saved value; put its value there")
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if cell.data_type == "e":
        problems.append(f"cell {cell.coordinate} holds the error {value}")
    elif isinstance(value, int | float):
        if abs(value) < 10**MOST_DIGITS:
            return str(int(value) if value == int(value) else value)
        problems.append(f"cell {cell.coordinate} holds a number that Excel may have rounded; write it as text")
    elif not isinstance(value, str):
        problems.append(f"cell {cell.coordinate} holds a date or time; write it as text")
    return str(value)
