"""Excel tables: cells as text without guesses, and what is wrong said by its cell."""

from __future__ import annotations

import datetime
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpyxl import Workbook
from openpyxl.styles import Font

from cov3d.errors import StudyError
from cov3d.tables import read_table


def workbook(path: Path, *lines: list, **sheets: list[list]) -> Path:
    """A workbook of one sheet of lines, and further sheets by name."""
    book = Workbook()
    for name, rows in {"Sheet": lines, **sheets}.items():
        sheet = book.active if name == "Sheet" else book.create_sheet(name)
        for line in rows:
            sheet.append(line)
    book.save(path)
    return path


def parts(path: Path) -> dict[str, bytes]:
    """The files packed in a workbook."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def with_rows(path: Path, xml: bytes) -> Path:
    """A workbook with a header ``scan, presence`` and further rows as Excel might write them."""
    content = parts(workbook(path, ["scan", "presence"]))
    sheet = "xl/worksheets/sheet1.xml"
    content[sheet] = content[sheet].replace(b"</sheetData>", xml + b"</sheetData>")
    return packed(path, content)


CELLS = [
    (3, "3"),
    (-2, "-2"),
    (0.25, "0.25"),
    (10**15 - 1, "999999999999999"),
    ("007", "007"),
    ("1e5", "1e5"),
    ("3.0", "3.0"),
    ("NA", "NA"),
    (" a ", "a"),
    ("zwei\nZeilen", "zwei\nZeilen"),
    ("ü", "ü"),
    (None, ""),
]


@pytest.mark.parametrize("value, text", CELLS, ids=repr)
def test_a_cell_comes_as_what_it_shows(tmp_path: Path, value: object, text: str):
    path = workbook(tmp_path / "t.xlsx", ["scan", "what"], ["a", value])
    assert read_table(path) == (["scan", "what"], [{"scan": "a", "what": text}])


@pytest.mark.parametrize("number, text", [(b"3.0", "3"), (b"1E5", "100000"), (b"-0.0", "0"), (b"1.50", "1.5")])
def test_a_whole_number_has_no_point_however_the_file_writes_it(tmp_path: Path, number: bytes, text: str):
    path = with_rows(tmp_path / "t.xlsx", b'<row r="2"><c r="A2"><v>%s</v></c></row>' % number)
    assert read_table(path)[1][0]["scan"] == text


def test_truth_values_come_as_excel_shows_them(tmp_path: Path):
    _, rows = read_table(workbook(tmp_path / "t.xlsx", ["scan", "covid"], ["a", True], ["b", False]))
    assert [row["covid"] for row in rows] == ["TRUE", "FALSE"]


def test_text_that_begins_with_an_equals_sign_is_text(tmp_path: Path):
    path = with_rows(tmp_path / "t.xlsx", b'<row r="2"><c r="A2" t="inlineStr"><is><t>=1+1</t></is></c></row>')
    assert read_table(path)[1] == [{"scan": "=1+1", "presence": ""}]


def test_a_formula_comes_as_its_saved_value(tmp_path: Path):
    row = b'<row r="2"><c r="A2" t="str"><f>"a"&amp;"b"</f><v>ab</v></c><c r="B2"><f>1-0</f><v>1</v></c></row>'
    assert read_table(with_rows(tmp_path / "t.xlsx", row))[1] == [{"scan": "ab", "presence": "1"}]


def test_shared_strings_are_read_as_excel_writes_them(tmp_path: Path):
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    content = parts(with_rows(tmp_path / "t.xlsx", b'<row r="2"><c r="A2" t="s"><v>1</v></c></row>'))
    content["xl/sharedStrings.xml"] = (
        f'<sst xmlns="{main}"><si><t>x</t></si><si><r><t>a</t></r><r><t>b</t></r></si></sst>'.encode()
    )
    kind = b"application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    override = b'<Override PartName="/xl/sharedStrings.xml" ContentType="' + kind + b'"/></Types>'
    content["[Content_Types].xml"] = content["[Content_Types].xml"].replace(b"</Types>", override)
    assert read_table(packed(tmp_path / "t.xlsx", content))[1][0]["scan"] == "ab"


def test_empty_rows_columns_and_sheets_change_nothing(tmp_path: Path):
    book = Workbook()
    sheet = book.active
    for row, line in ((3, ["scan", "presence"]), (4, ["a", 1]), (7, ["b", 0])):
        for column, value in enumerate(line, 2):
            sheet.cell(row, column, value)
    for place in ("G4", "C90", "ZZ90"):
        sheet[place].font = Font(bold=True)  # a cell that is there, and empty
    book.create_sheet("empty")
    book.save(tmp_path / "t.xlsx")
    columns, rows = read_table(tmp_path / "t.xlsx")
    assert columns == ["scan", "presence"]
    assert rows == [{"scan": "a", "presence": "1"}, {"scan": "b", "presence": "0"}]


def test_a_wrong_size_in_the_file_loses_no_row(tmp_path: Path):
    content = parts(workbook(tmp_path / "t.xlsx", ["scan"], ["a"], ["b"]))
    sheet = "xl/worksheets/sheet1.xml"
    assert b'<dimension ref="A1:A3"' in content[sheet]
    content[sheet] = content[sheet].replace(b'ref="A1:A3"', b'ref="A1"')
    assert len(read_table(packed(tmp_path / "t.xlsx", content))[1]) == 2


WRONG_CELLS = {
    "a date": (datetime.date(2023, 2, 1), "cell B3 holds a date or time"),
    "a time": (datetime.time(3, 4), "cell B3 holds a date or time"),
    "a duration": (datetime.timedelta(hours=30), "cell B3 holds a date or time"),
    "a formula without a value": ("=1+2", "cell B3 holds a formula without a saved value"),
    "a number that Excel rounds": (10**15, "cell B3 holds a number that Excel may have rounded"),
}


@pytest.mark.parametrize("fault", WRONG_CELLS)
def test_a_cell_that_excel_may_have_changed_is_named(tmp_path: Path, fault: str):
    value, cause = WRONG_CELLS[fault]
    path = workbook(tmp_path / "t.xlsx", ["scan", "patient"], ["a", "p"], ["b", value])
    with pytest.raises(StudyError, match=cause):
        read_table(path)


def test_all_wrong_cells_are_named_at_once(tmp_path: Path):
    row = b'<row r="2"><c r="A2" t="e"><v>#N/A</v></c><c r="B2"><f>1</f></c></row>'
    with pytest.raises(StudyError, match="cell A2 holds the error #N/A; cell B2 holds a formula"):
        read_table(with_rows(tmp_path / "t.xlsx", row))


def test_two_filled_sheets_are_named_and_one_is_enough_wherever_it_is(tmp_path: Path):
    path = workbook(tmp_path / "t.xlsx", ["scan"], ["a"], Notes=[["for", "you"]], Empty=[])
    with pytest.raises(StudyError, match="the sheets 'Sheet', 'Notes' are filled; keep one of them"):
        read_table(path)
    assert read_table(workbook(tmp_path / "u.xlsx", Second=[["scan"], ["a"]]))[1] == [{"scan": "a"}]


def test_rows_are_ragged_or_columns_doubled_as_in_csv(tmp_path: Path):
    with pytest.raises(StudyError, match="not so row 3"):
        read_table(workbook(tmp_path / "t.xlsx", ["scan"], ["a"], ["b", 7]))
    with pytest.raises(StudyError, match="'scan' stands twice"):
        read_table(workbook(tmp_path / "t.xlsx", ["scan", "scan"], ["a", 7]))


def _workbook_bytes(tmp_path: Path) -> bytes:
    return workbook(tmp_path / "source.xlsx", ["scan"], ["a"]).read_bytes()


WRONG_FILES: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "CSV named .xlsx": ("t.xlsx", lambda _: b"scan,presence\na,1\n", "is no Excel file; if it is text, name it .csv"),
    "Excel named .csv": ("t.csv", _workbook_bytes, "if Excel wrote it, name it .xlsx"),
    "old Excel": ("t.xls", lambda _: b"\xd0\xcf\x11\xe0" + bytes(99), r"save it as \.xlsx without a password"),
    "a password": ("t.xlsx", lambda _: b"\xd0\xcf\x11\xe0" + bytes(99), r"save it as \.xlsx without a password"),
    "empty": ("t.xlsx", lambda _: b"", "the table is empty"),
    "a sheet of nothing": ("t.xlsx", lambda p: workbook(p / "e.xlsx").read_bytes(), "the table is empty"),
    "torn": ("t.xlsx", lambda p: _workbook_bytes(p)[:900], "damaged or no Excel file .BadZipFile"),
    "another archive": ("t.xlsx", lambda p: packed(p / "z", {"a": b"b"}).read_bytes(), "damaged or no Excel file"),
}


@pytest.mark.parametrize("fault", WRONG_FILES)
def test_a_file_that_is_not_what_its_name_says_is_told_so(tmp_path: Path, fault: str):
    name, content, cause = WRONG_FILES[fault]
    path = tmp_path / name
    path.write_bytes(content(tmp_path))
    with pytest.raises(StudyError, match=cause):
        read_table(path)


def test_without_openpyxl_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = workbook(tmp_path / "t.xlsx", ["scan"], ["a"])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(StudyError, match=r"pip install 'cov3d\[excel\]'"):
        read_table(path)


def laughing(path: Path) -> Path:
    """A billion laughs: an entity made of entities made of entities."""
    content = parts(with_rows(path, b'<row r="2"><c t="inlineStr"><is><t>&k;</t></is></c></row>'))
    entities = [b'<!ENTITY %c "%s">' % (98 + k, b"ha" * 10 if k == 0 else b"&%c;" % (97 + k) * 10) for k in range(10)]
    sheet = "xl/worksheets/sheet1.xml"
    content[sheet] = b"<!DOCTYPE worksheet [" + b"".join(entities) + b"]>" + content[sheet]
    return packed(path, content)


BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "200 MB of zeros": (
        lambda path: packed(path, {**parts(workbook(path, ["scan"])), "xl/a.bin": bytes(201 * 2**20)}),
        "unpacks to 201 MB; a table of scans has at most 200",
    ),
    "a million cells": (
        lambda path: with_rows(path, b"<row>" + b"<c/>" * 1_100_000 + b"</row>"),
        "XML tags; a table of scans has at most 1000000",
    ),
    "a row at the world's end": (
        lambda path: with_rows(path, b'<row r="99999999999"><c><v>1</v></c></row>'),
        "more than 1048576 rows or 256 columns",
    ),
    "a column too many": (
        lambda path: with_rows(path, b'<row r="2"><c r="IW2"><v>1</v></c></row>'),
        "more than 1048576 rows or 256 columns",
    ),
    "laughs": (laughing, "damaged or no Excel file .ParseError"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_that_promises_much_is_refused(tmp_path: Path, bomb: str):
    make, cause = BOMBS[bomb]
    path = make(tmp_path / "t.xlsx")
    assert path.stat().st_size < 300_000
    with pytest.raises(StudyError, match=cause):
        read_table(path)


# Mutated workbooks


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workbook(tmp_path_factory.mktemp("mutated") / "t.xlsx", ["scan", "presence"], ["a", 1], ["b", "covid"])


EDITS = st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 8), st.binary(max_size=4)), min_size=1, max_size=4)


@settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(("packed", "xl/worksheets/sheet1.xml", "xl/workbook.xml", "[Content_Types].xml")), EDITS)
def test_a_mutated_workbook_is_a_table_or_a_sentence(small: Path, where: str, edits: list[tuple[int, int, bytes]]):
    content = parts(small)
    data = small.read_bytes() if where == "packed" else content[where]
    for start, length, new in edits:
        data = data[: start % len(data)] + new + data[start % len(data) + length :]
    path = small.with_name("mutated.xlsx")
    if where == "packed":
        path.write_bytes(data)
    else:
        packed(path, {**content, where: data})
    try:
        columns, rows = read_table(path)
    except StudyError as error:
        assert str(path) in str(error)
    else:
        assert all(set(row) == set(columns) for row in rows)
