"""Studies: folders as COV19-CT-DB has them, tables of every kind, and what is wrong with either."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_study, smooth_volume, write_nifti, write_slices

from cov3d import read_study
from cov3d.errors import Cov3dError, StudyError
from cov3d.labels import UNKNOWN
from cov3d.scans.read import ask_scans, find_scans


def scan_folders(root: Path, *names: str) -> Path:
    """Scans of one slice each."""
    for name in names:
        write_slices(root / name, smooth_volume(1, 16))
    return root


def test_the_folder_layout_is_found_by_itself(study: Path):
    rows = {row.scan: row for row in read_study(study).rows}
    assert len(rows) == 16
    row = rows["train/covid/ct_scan_2"]
    assert (row.presence, row.severity, row.split) == (1, 3, "train")
    assert rows["train/covid/ct_scan0"].severity == 1
    assert rows["train/covid/ct_scan_3"].severity == UNKNOWN  # positive, and nobody graded it
    assert rows["validation/non-covid/ct_scan_1"].presence == 0


def test_either_name_of_the_partitions_will_do(tmp_path: Path):
    root = scan_folders(tmp_path, "train_cov19d/covid/ct_scan_1", "validation_cov19d/non-covid/ct_scan_1")
    assert [(row.split, row.presence) for row in read_study(root).rows] == [("train", 1), ("validation", 0)]


@pytest.mark.parametrize("place", [".", "train"])
@pytest.mark.parametrize("written, folder", [("ct_scan_7", "ct_scan7"), ("ct_scan7", "ct_scan_7")])
def test_the_severity_table_may_spell_and_lie_otherwise(tmp_path: Path, place: str, written: str, folder: str):
    root = scan_folders(tmp_path, f"train/covid/{folder}", "train/non-covid/ct_scan_7")
    (root / place / "train_partition_covid_categories.csv").write_text(f"Name;Category\n{written};4\n")
    assert {row.severity for row in read_study(root).rows} == {4, UNKNOWN}


def test_both_spellings_in_one_folder_are_two_scans(tmp_path: Path):
    root = scan_folders(tmp_path, "train/covid/ct_scan_7", "train/covid/ct_scan7")
    (root / "train_partition_covid_categories.csv").write_text("Name;Category\nct_scan_7;1\nct_scan7;2\n")
    assert {row.path.name: row.severity for row in read_study(root).rows} == {"ct_scan_7": 1, "ct_scan7": 2}


def test_scans_are_in_natural_order_and_found_in_nested_downloads(tmp_path: Path):
    names = [f"part{k % 2}_set/inner/test_ct_scan_{k}" for k in (10, 2, 1, 11)]
    found = find_scans(scan_folders(tmp_path, *names))
    assert [path.name for path in found] == ["test_ct_scan_2", "test_ct_scan_10", "test_ct_scan_1", "test_ct_scan_11"]


def test_all_wrong_rows_of_a_severity_table_are_named_at_once(study: Path):
    table = study / "train_partition_covid_categories.csv"
    table.write_text("Name;Category\nct_scan_1;2\nct_scan_1;3\nct_scan_99;1\nct_scan_2;7\n")
    with pytest.raises(StudyError) as caught:
        read_study(study)
    text = str(caught.value)
    assert "3 rows are wrong" in text
    assert "row 3 (ct_scan_1): listed twice, before in row 2 of" in text
    assert "row 4 (ct_scan_99): no such scan in train" in text
    assert "row 5 (ct_scan_2): severity '7' is not one of 1, 2, 3, 4" in text


def test_a_name_that_two_scans_have_is_not_guessed(tmp_path: Path):
    root = scan_folders(tmp_path, "train/covid/part1/ct_scan_1", "train/covid/part2/ct_scan_1")
    (root / "train_partition_covid_categories.csv").write_text("Name;Category\nct_scan_1;4\n")
    with pytest.raises(StudyError, match="may be train/covid/part1/ct_scan_1, train/covid/part2/ct_scan_1; rename one"):
        read_study(root)


def test_two_tables_may_not_grade_one_scan(tmp_path: Path):
    root = scan_folders(tmp_path, "train/covid/ct_scan_1")
    for place, category in ((root, 4), (root / "train", 2)):
        (place / "train_partition_covid_categories.csv").write_text(f"Name;Category\nct_scan_1;{category}\n")
    with pytest.raises(StudyError, match="listed twice, before in row 2"):
        read_study(root)


def test_a_bare_class_folder_takes_either_table_but_not_both(tmp_path: Path):
    root = scan_folders(tmp_path, "covid/ct_scan_1")
    (root / "train_partition_covid_categories.csv").write_text("Name;Category\nct_scan_1;4\n")
    assert read_study(root).rows[0].severity == 4
    (root / "val_partition_covid_categories.csv").write_text("Name;Category\nct_scan_1;1\n")
    with pytest.raises(StudyError, match="listed twice"):
        read_study(root)


def test_predictions_in_a_studys_folder_are_no_table_of_it(tmp_path: Path):
    root = scan_folders(tmp_path, "one")
    (root / "predictions.csv").write_text("scan,path,presence,covid_probability,severity\none,one,covid,0.9,mild\n")
    (root / "notes.csv").write_text("who,what\nme,that\n")
    assert [row.scan for row in read_study(root).rows] == ["one"]
    (root / "labels.csv").write_text("scan,presence\none,1\n")
    assert read_study(root).rows[0].presence == 1


def test_a_severity_for_a_negative_is_an_error(tmp_path: Path):
    root = scan_folders(tmp_path, "train/covid/ct_scan_1", "train/non-covid/ct_scan_2")
    (root / "train_partition_covid_categories.csv").write_text("Name;Category\nct_scan_2;1\n")
    with pytest.raises(StudyError, match="has a severity, but lies in non-covid"):
        read_study(root)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_every_dialect_are_read(tmp_path: Path, delimiter: str, encoding: str, end: str):
    scan_folders(tmp_path, "a/007", "a/1e5", "a/NA", "a/ü")
    lines = [
        ["scan", "presence", "severity", "split", "patient", "site", "weight"],
        ["a/007", "1", "severe", "train", "NA", "north", "2"],
        ["a/1e5", "non-covid", "", "validation", "", "", ""],
        ["a/NA", " COVID ", "3.0", "2", "p2", "", ""],
        ["a/ü", "", "", "", "", "", ""],
    ]
    path = tmp_path / "table.csv"
    path.write_bytes((end.join(delimiter.join(cells) for cells in lines) + end).encode(encoding))
    rows = {row.scan: row for row in read_study(path).rows}
    assert (rows["a/007"].presence, rows["a/007"].severity, rows["a/007"].weight) == (1, 3, 2.0)
    assert rows["a/007"].patient == "NA"
    assert (rows["a/1e5"].presence, rows["a/1e5"].split) == (0, "validation")
    assert (rows["a/NA"].presence, rows["a/NA"].severity, rows["a/NA"].split) == (1, 3, "train")
    assert rows["a/ü"].presence == UNKNOWN


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
    "a/1,5,": "presence '5'",
    "a/1,1,5": "severity '5'",
    "a/1,0,mild": "said to be non-covid and 'mild'",
    "a/2,1,": "'a/2' is not there",
    "/etc/passwd,1,": "leads out of the table's folder",
    "../a/1,1,": "leads out of the table's folder",
    "C:\\x,1,": "leads out of the table's folder",
    ",1,": "names no scan",
}


@pytest.mark.parametrize("line", WRONG_ROWS)
def test_a_wrong_row_is_named_with_its_number(tmp_path: Path, line: str):
    scan_folders(tmp_path, "a/1")
    (tmp_path / "t.csv").write_text(f"scan,presence,severity\na/1,1,mild\n{line}\n")
    with pytest.raises(StudyError) as caught:
        read_study(tmp_path / "t.csv")
    assert "row 3" in str(caught.value)
    assert WRONG_ROWS[line] in str(caught.value)


def test_the_same_row_twice_is_a_warning_and_two_labels_are_an_error(tmp_path: Path):
    scan_folders(tmp_path, "a/1")
    path = tmp_path / "t.csv"
    path.write_text("scan,presence\na/1,1\na/1,1\n")
    study = read_study(path)
    assert (len(study.rows), study.warnings) == (1, ("a/1: listed twice; used once",))
    path.write_text("scan,presence\na/1,1\na/1,0\n")
    with pytest.raises(StudyError, match="listed twice, with different labels"):
        read_study(path)


WRONG_TABLES = {
    "no scan column": (b"name_of_it,covid\na,1\n", "expected a column 'scan'"),
    "a column twice": (b"scan,scan\na,1\n", "stands twice"),
    "two columns of one meaning": (b"scan,path\na,1\n", "both mean scan"),
    "header only": (b"scan,presence\n", "no rows"),
    "empty": (b"", "empty"),
    "ragged": (b"scan,presence\na/1,1,7\n", "do not have 2 cells"),
    "Latin-1": ("scan,site\na/1,Zürich\n".encode("latin-1"), "line 2 is not UTF-8"),
    "UTF-16": ("scan,site\n".encode("utf-16"), "not UTF-8|NUL"),
    "a renamed Excel file": (b"PK\x03\x04\x00\x00", "NUL|CSV"),
    "an open quote": (b'scan,presence\n"a/1,1\n', "not a CSV table"),
}


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
