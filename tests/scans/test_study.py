"""Studies: tables of every kind, bare folders, and what is wrong with either."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import pytest
from conftest import make_study, smooth_volume, write_nifti, write_slices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cov3d import read_study
from cov3d.errors import Cov3dError, StudyError
from cov3d.labels import UNKNOWN
from cov3d.scans.read import ask_scans, find_scans
from cov3d.scans.study import Study, read_study_table


def scan_folders(root: Path, *names: str) -> Path:
    """Scans of one slice each."""
    for name in names:
        write_slices(root / name, smooth_volume(1, 16))
    return root


def test_scans_are_in_natural_order_and_found_in_nested_downloads(tmp_path: Path):
    names = [f"part{k % 2}_set/inner/test_ct_scan_{k}" for k in (10, 2, 1, 11)]
    found = find_scans(scan_folders(tmp_path, *names))
    assert [path.name for path in found] == ["test_ct_scan_2", "test_ct_scan_10", "test_ct_scan_1", "test_ct_scan_11"]


def test_predictions_in_a_studys_folder_are_no_table_of_it(tmp_path: Path):
    root = scan_folders(tmp_path, "one")
    (root / "predictions.csv").write_text("scan,path,presence,covid_probability,severity\none,one,covid,0.9,mild\n")
    (root / "notes.csv").write_text("who,what\nme,that\n")
    assert [row.scan for row in read_study(root).rows] == ["one"]
    (root / "labels.csv").write_text("scan,presence\none,1\n")
    assert read_study(root).rows[0].presence == 1


def test_of_two_tables_of_scans_none_is_guessed(tmp_path: Path):
    root = scan_folders(tmp_path, "one")
    for name in ("a.csv", "b.csv"):
        (root / name).write_text("scan,presence\none,1\n")
    with pytest.raises(StudyError, match=r"a\.csv and b\.csv each describe scans; name the one"):
        read_study(root)
    for name in ("study.csv", "study.xlsx"):
        (root / name).write_text("scan,presence\none,1\n")
    with pytest.raises(StudyError, match=r"study\.csv and study\.xlsx each describe scans"):
        read_study(root)


def test_a_table_that_cannot_be_read_is_passed_over_and_said(tmp_path: Path):
    root = scan_folders(tmp_path, "one")
    (root / "labels.csv").write_bytes("scan,presence,site\none,1,Zürich\n".encode("latin-1"))
    (root / "~$labels.xlsx").write_bytes(b"Excel has it open")
    (root / "folder.csv").mkdir()
    os.mkfifo(root / "pipe.csv")  # opening it would block for ever
    study = read_study(root)
    assert [(row.scan, row.presence) for row in study.rows] == [("one", UNKNOWN)]
    assert study.warnings == (f"passed over {root / 'labels.csv'}: line 2 is not UTF-8; save the table as UTF-8 CSV",)


def test_a_folder_that_may_not_be_looked_into_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(StudyError, match="cannot be looked through: Permission denied"):
        read_study(tmp_path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_every_dialect_are_read(tmp_path: Path, delimiter: str, encoding: str, end: str):
    scan_folders(tmp_path, "a/007", "a/1e5", "a/NA", "a/ü", "null", "1.0")
    lines = [
        ["scan", "presence", "severity", "split", "patient", "site", "weight"],
        ["a/007", "1", "severe", "train", "NA", "north", "2"],
        ["a/1e5", "non-covid", "", "validation", "", "", ""],
        ["a/NA", " COVID ", "3.0", "2", "p2", "", ""],
        [" a/ü ", "", "", "", "null", "", ""],
        ["null", "", "", "", "1e5", "", ""],
        ["1.0", "0.0", "", "", "007", "", ""],
    ]
    path = tmp_path / "table.csv"
    path.write_bytes((end.join(delimiter.join(cells) for cells in lines) + end).encode(encoding))
    rows = {row.scan: row for row in read_study(path).rows}
    assert (rows["a/007"].presence, rows["a/007"].severity, rows["a/007"].weight) == (1, 3, 2.0)
    assert rows["a/007"].patient == "NA"
    assert (rows["a/1e5"].presence, rows["a/1e5"].split) == (0, "validation")
    assert (rows["a/NA"].presence, rows["a/NA"].severity, rows["a/NA"].split) == (1, 3, "train")
    assert rows["a/ü"].presence == UNKNOWN
    assert [rows[scan].patient for scan in ("a/ü", "null", "1.0")] == ["null", "1e5", "007"]
    assert len(rows) == 6


def test_a_quoted_header_and_blank_rows_and_columns_change_nothing(tmp_path: Path):
    scan_folders(tmp_path, "a/1", "a/2")
    path = tmp_path / "t.csv"
    path.write_text('\n"scan";"presence, as told, by hand";presence;;\na/1;x;1;;\n;;;;\n\n"a/2";"y, z";0\n  \n;;;;\n')
    assert [(row.scan, row.presence) for row in read_study(path).rows] == [("a/1", 1), ("a/2", 0)]
    path.write_text("scan,presence\n\n,\na/1,1\na/3,1\n")
    with pytest.raises(StudyError, match="1 fault: row 5: 'a/3' is not there"):
        read_study(path)


def test_the_old_codes_index_is_a_table(tmp_path: Path):
    scan_folders(tmp_path, *(f"train/covid/ct_scan_{k}" for k in range(3)), "validation/non-covid/ct_scan_0")
    (tmp_path / "study.csv").write_text(
        "path,split,has_covid,category\n"
        "train/covid/ct_scan_0,1,1,Mild\n"
        "train/covid/ct_scan_1,2,True,covid\n"
        "train/covid/ct_scan_2,4,1,Critical\n"
        "validation/non-covid/ct_scan_0,0,0,non-covid\n"
    )
    rows = read_study(tmp_path).rows
    assert [row.severity for row in rows] == [1, UNKNOWN, 4, UNKNOWN]
    assert [row.presence for row in rows] == [1, 1, 1, 0]
    assert [row.split for row in rows] == ["train", "train", "train", "validation"]


WRONG_ROWS = {
    "a/1,-1,": "presence '-1'",
    "a/1,1,-3": "severity '-3'",
    "a/1,5,": "presence '5'",
    "a/1,1,5": "severity '5'",
    "a/1,1,1.5": "severity '1.5'",
    "a/1,0,mild": "said to be non-covid and 'mild'",
    "a/2,1,": "'a/2' is not there",
    "/etc/passwd,1,": "leads out of the table's folder",
    "../a/1,1,": "leads out of the table's folder",
    "a/../../a/1,1,": "leads out of the table's folder",
    "C:\\x,1,": "leads out of the table's folder",
    "C:x,1,": "leads out of the table's folder",
    "\\\\server\\share\\x,1,": "leads out of the table's folder",
    "a\\..\\..\\x,1,": "leads out of the table's folder",
    "~,1,": "'~' is not there",
    "~root/x,1,": "'~root/x' is not there",
    "file:///etc/passwd,1,": "'file:///etc/passwd' is not there",
    "https://example.org/x.nii,1,": "'https://example.org/x.nii' is not there",
    "a\\1,1,": "is not there; write / between folders",
    "A/1,1,": "'A/1' is not there; 'a' is",
    "a/1/0.png/x,1,": "is not there",
    "x" * 300 + ",1,": "is not there",
    "a/" + "y/" * 5000 + ",1,": "is not there",
    ",1,": "names no scan",
}


@pytest.mark.parametrize("line", WRONG_ROWS, ids=lambda line: line[:30])
def test_a_wrong_row_is_named_with_its_number(tmp_path: Path, line: str):
    scan_folders(tmp_path, "a/1")
    (tmp_path / "t.csv").write_text(f"scan,presence,severity\na/1,1,mild\n{line}\n")
    with pytest.raises(StudyError) as caught:
        read_study(tmp_path / "t.csv")
    assert "row 3" in str(caught.value)
    assert WRONG_ROWS[line] in str(caught.value)
    assert len(str(caught.value)) < 600


WRONG_CELLS = {
    "split": ("half", "-1", "0.5", "train,"),
    "weight": ("-1", "nan", "inf", "1_0", "1,5", "two"),
    "mask": ("../m.nii", "nowhere.nii"),
}


@pytest.mark.parametrize("column, cell", [(column, cell) for column, cells in WRONG_CELLS.items() for cell in cells])
def test_cells_that_mean_nothing_are_refused(tmp_path: Path, column: str, cell: str):
    scan_folders(tmp_path, "a/1")
    (tmp_path / "t.csv").write_text(f"scan;{column}\na/1;{cell}\n")
    with pytest.raises(StudyError, match="1 fault: row 2: "):
        read_study(tmp_path / "t.csv")


def test_all_wrong_rows_are_counted_and_the_first_five_are_named(tmp_path: Path):
    scan_folders(tmp_path, "a/1")
    (tmp_path / "t.csv").write_text("scan\na/1\n" + "".join(f"b/{k}\n" for k in range(8)))
    with pytest.raises(StudyError) as caught:
        read_study(tmp_path / "t.csv")
    assert "8 faults: row 3: 'b/0' is not there; row 4: " in str(caught.value)
    assert str(caught.value).endswith("row 7: 'b/4' is not there; and 3 more")


def test_the_same_row_twice_is_a_warning_and_two_labels_are_an_error(tmp_path: Path):
    scan_folders(tmp_path, "a/1")
    path = tmp_path / "t.csv"
    path.write_text("scan,presence\na/1,1\na/1,1\n")
    study = read_study(path)
    assert (len(study.rows), study.warnings) == (1, ("a/1: listed twice; used once",))
    path.write_text("scan,presence\na/1,1\na/1,0\n")
    with pytest.raises(StudyError, match="listed twice, with different labels"):
        read_study(path)


def test_a_scan_and_a_link_to_it_are_one_scan(tmp_path: Path):
    scan_folders(tmp_path, "a/1")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    path = tmp_path / "t.csv"
    path.write_text("scan,presence\na/1,1\nb/1,1\n")
    study = read_study(path)
    assert [row.scan for row in study.rows] == ["a/1"]
    assert study.warnings == ("b/1: listed twice as a/1 and as b/1; used once",)
    path.write_text("scan,presence,split\na/1,1,train\nb/1,1,validation\n")
    with pytest.raises(StudyError, match="b/1: listed twice as a/1 and as b/1, with different labels"):
        read_study(path)


def test_names_that_differ_in_capitals_only_are_two_scans_where_the_disk_has_two(tmp_path: Path):
    scan_folders(tmp_path, "A/1", "a/1")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this disk does not tell capitals apart")
    (tmp_path / "t.csv").write_text("scan,presence\nA/1,1\na/1,0\n")
    assert [(row.scan, row.presence) for row in read_study(tmp_path / "t.csv").rows] == [("A/1", 1), ("a/1", 0)]


@pytest.mark.parametrize("on_disk, in_table", [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_may_be_written_otherwise_than_on_the_disk(tmp_path: Path, on_disk: str, in_table: str):
    name = "Zürich/scan_é"
    scan_folders(tmp_path, unicodedata.normalize(on_disk, name))
    (tmp_path / "t.csv").write_text(f"scan,presence\n{unicodedata.normalize(in_table, name)},1\n", encoding="utf-8")
    (row,) = read_study(tmp_path / "t.csv").rows
    assert row.presence == 1
    assert (row.path / "0.png").is_file()


def test_two_scans_whose_names_differ_in_how_accents_are_written_are_refused(tmp_path: Path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    scan_folders(tmp_path, *names)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this disk writes accents in one way")
    with pytest.raises(StudyError, match="two scans have this name, its accents written in two ways"):
        read_study(tmp_path)
    (tmp_path / "t.csv").write_text(f"scan\n{names[0]}\n{names[1]}\n", encoding="utf-8")
    with pytest.raises(StudyError, match="two scans have this name"):
        read_study(tmp_path / "t.csv")


WRONG_TABLES = {
    "no scan column": (b"name_of_it,covid\na,1\n", "expected a column 'scan' .* found name_of_it, covid"),
    "no scan column among many": (b"x," * 90000 + b"y\n", "stands twice"),
    "a column twice": (b"scan,scan\na,1\n", "'scan' stands twice"),
    "two columns of one meaning": (b"scan,path\na,1\n", "scan and path both mean scan"),
    "header only": (b"scan,presence\n", "a header and no rows"),
    "blank rows only": (b"scan,presence\n,\n ; \n\n", "expected 2 cells|a header and no rows"),
    "empty": (b"", "empty"),
    "only blanks": (b" \n\t\n ;; \r\n", "empty"),
    "a row too long": (b"scan,presence\na/1,1,7\n", "expected 2 cells in every row, as in the header; not so row 2"),
    "a row too short": (b"scan,presence\na/1\n", "expected 2 cells in every row, as in the header; not so row 2"),
    "Latin-1": ("scan,site\na/1,Zürich\n".encode("latin-1"), "line 2 is not UTF-8"),
    "Latin-1 with CR": ("scan,site\r\ra/1,Zürich\r".encode("latin-1"), "line 3 is not UTF-8"),
    "UTF-16": ("scan,site\n".encode("utf-16"), "is UTF-16 .* save the table as UTF-8"),
    "UTF-16 without a mark": ("scan,site\n".encode("utf-16-le"), "save the table as UTF-8"),
    "NUL": (b"scan,site\na/1,\0\n", "NUL"),
    "a renamed Excel file": (b"PK\x03\x04\x00\x00", "if Excel wrote it, name it .xlsx"),
    "a renamed old Excel file": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "is an old Excel file"),
    "an open quote": (b'scan,presence\n"a/1,1\n', "not a CSV table"),
    "a cell of 10 MB": (b"scan,site\na/1," + b"x" * 10_000_000 + b"\n", "not a CSV table: field larger"),
}


def test_a_table_far_too_large_is_refused_before_it_is_held(tmp_path: Path):
    path = tmp_path / "t.csv"
    with path.open("wb") as file:
        file.truncate(51 * 2**20)
    with pytest.raises(StudyError, match="holds 51 MB; a table of scans has at most 50"):
        read_study(path)
    path.write_bytes(b"\n" * (2**20 + 1))
    with pytest.raises(StudyError, match="has more than 1048576 rows"):
        read_study(path)


@pytest.mark.parametrize("fault", WRONG_TABLES)
def test_a_table_that_is_none_says_why(tmp_path: Path, fault: str):
    content, cause = WRONG_TABLES[fault]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=cause):
        read_study(path)


def test_a_bare_folder_is_scans_without_labels(tmp_path: Path):
    scan_folders(tmp_path, "one/7", "two")
    write_nifti(tmp_path / "three.nii.gz", smooth_volume().astype("int16"))
    rows = read_study(tmp_path).rows
    assert [row.scan for row in rows] == ["one/7", "three.nii.gz", "two"]
    assert {row.presence for row in rows} == {UNKNOWN}


def test_a_folder_without_scans_says_what_was_looked_for(tmp_path: Path):
    with pytest.raises(StudyError, match="no scans found"):
        read_study(tmp_path)
    with pytest.raises(StudyError, match="there is no such study"):
        read_study(tmp_path / "nowhere")
    with pytest.raises(Cov3dError, match="no scans found"):
        ask_scans([tmp_path])


def test_a_loop_of_links_ends_and_linked_scans_are_found(tmp_path: Path):
    scan_folders(tmp_path / "elsewhere", "ct_scan_1")
    root = tmp_path / "study"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "up").symlink_to(root)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to("loop")
    assert [path.relative_to(root).as_posix() for path in find_scans(root)] == ["linked/ct_scan_1"]


def test_a_scan_asked_for_twice_is_answered_once(tmp_path: Path):
    scan_folders(tmp_path, "a/1", "a/2")
    assert len(ask_scans([tmp_path, tmp_path / "a" / "1", tmp_path / "a"])) == 2


def test_the_fingerprint_follows_labels(tmp_path: Path):
    root = make_study(tmp_path / "s")
    before = read_study(root).fingerprint
    assert read_study(root).fingerprint == before
    (root / "val_partition_covid_categories.csv").unlink()
    assert read_study(root).fingerprint != before


# Mutated tables

TABLES = (
    b"scan,presence,severity,split,patient,site,weight,mask\na/1,1,severe,train,p,s,2,m.nii\nb,non-covid,,0,q,,,\n",
    b'\xef\xbb\xbf"scan";presence;weight\r\n"a/1";1;0.5\r\nb;covid;"1"\r\n',
    "path\tfold\tcategory\na/1\t3\tMild\nü\t0\tnon-covid\n".encode(),
)
CELLS = (
    *(
        "",
        " ",
        "'",
        '""',
        "..",
        "../b",
        "/",
        "~",
        "C:",
        "//b",
        "file://b",
        "b/",
        "./b",
        "B",
        "a",
        "a/1/",
        "a/" * 300,
        "m.nii",
    ),
    *("-1", "9" * 400, "1e999", "nan", "1_0", "0", "1", "4", "5", "2.0", "covid", "Severe", "test", "x" * 5000),
    *("é", "e\u0301", "u\u0308", "ü", "\u202e", "١", "scan", "split", "weight", "mask", "patient_id"),
)
BYTES = (
    *(b"\0", b'"', b"'", b",", b";", b"\t", b"\r", b"\n", b"\\", b",," * 50, b"\n\n", b"\r\r\n"),
    *(b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
)
AT = st.integers(0, 99)
NEW_CELLS = st.lists(st.tuples(AT, st.one_of(st.sampled_from(CELLS), st.text(max_size=3))), max_size=3)
NEW_BYTES = st.lists(
    st.tuples(AT, st.integers(0, 3), st.one_of(st.sampled_from(BYTES), st.binary(max_size=2))), max_size=2
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scans of :data:`TABLES`."""
    root = scan_folders(tmp_path_factory.mktemp("mutated"), "a/1", "b", "ü")
    (root / "m.nii").touch()
    return root


@settings(max_examples=2000, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(TABLES), NEW_CELLS, NEW_BYTES)
def test_a_mutated_table_is_a_study_or_a_sentence(place: Path, table: bytes, new_cells, new_bytes):
    cells = re.split(b"([,;\t\r\n]+)", table)
    for at, cell in new_cells:
        cells[2 * at % len(cells)] = cell.encode()
    table = b"".join(cells)
    for at, length, new in new_bytes:
        start = at % (len(table) + 1)
        table = table[:start] + new + table[start + length :]
    path = place / "mutated.csv"
    path.write_bytes(table)
    try:
        study = read_study_table(path)
    except Cov3dError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 3000
    else:
        assert isinstance(study, Study) and study.rows
        assert all(row.path.resolve().is_relative_to(place.resolve()) for row in study.rows)
