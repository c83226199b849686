"""Folders of known data sets: what is recognised, what the labels mean, where the masks are, and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import smooth_volume, write_slices

from cov3d import read_study
from cov3d.errors import StudyError
from cov3d.labels import UNKNOWN
from cov3d.scans.study import Study


def scan_folders(root: Path, *names: str) -> Path:
    """Scans of one slice each."""
    for name in names:
        write_slices(root / name, smooth_volume(1, 16))
    return root


def files(root: Path, *names: str) -> Path:
    """Files without content: a study looks at names, not into scans."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_table(path: Path, lines: list[list]) -> None:
    """A table as CSV or Excel, by its suffix."""
    if path.suffix == ".csv":
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
        return
    from openpyxl import Workbook

    book = Workbook()
    for line in lines:
        book.active.append(line)
    book.save(path)


def by_scan(study: Study) -> dict[str, tuple]:
    """What is known of each scan."""
    return {row.scan: (row.presence, row.severity, row.split, row.patient) for row in study.rows}


# COV19-CT-DB


def test_cov19_ct_db_is_found_by_itself(study: Path):
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


def test_all_wrong_rows_of_a_severity_table_are_named_at_once(study: Path):
    table = study / "train_partition_covid_categories.csv"
    table.write_text("Name;Category\nct_scan_1;2\nct_scan_1;3\nct_scan_99;1\nct_scan_2;7\n")
    with pytest.raises(StudyError) as caught:
        read_study(study)
    text = str(caught.value)
    assert "3 faults: " in text
    assert "row 3 (ct_scan_1): listed twice, before in row 2 of" in text
    assert "row 4 (ct_scan_99): no such scan in train" in text
    assert "row 5 (ct_scan_2): severity '7' is not one of 1, 2, 3, 4" in text


def test_a_name_that_two_scans_have_is_not_guessed(tmp_path: Path):
    root = scan_folders(tmp_path, "train/covid/part1/ct_scan_1", "train/covid/part2/ct_scan_1")
    (root / "train_partition_covid_categories.csv").write_text("Name;Category\nct_scan_1;4\n")
    with pytest.raises(StudyError, match="may be train/covid/part1/ct_scan_1, train/covid/part2/ct_scan_1; rename one"):
        read_study(root)


TWO_TABLES = {
    "CSV and Excel": ("train_partition_covid_categories.csv", "train_partition_covid_categories.xlsx"),
    "two editions": ("train_partition_covid_categories.csv", "ICASSP_severity_train_partition.xlsx"),
    "two places": ("train_partition_covid_categories.csv", "train/train_partition_covid_categories.csv"),
}


@pytest.mark.parametrize("names", TWO_TABLES.values(), ids=TWO_TABLES)
def test_two_severity_tables_of_a_partition_are_an_error_that_names_both(tmp_path: Path, names: tuple[str, str]):
    root = scan_folders(tmp_path, "train/covid/ct_scan_1")
    for name in names:
        write_table(root / name, [["Name", "Category"], ["ct_scan_1", 4]])
    with pytest.raises(StudyError) as caught:
        read_study(root)
    assert f"{names[0]} and {names[1]} both grade the train scans" in str(caught.value)


EDITIONS = {
    "train": ("ICASSP_severity_train_partition.xlsx", "train/ICASSP_severity_train_partition.xlsx"),
    "validation": ("ICASSP_severity_validation_partition.xlsx", "val/ICASSP_severity_validation_partition.xlsx"),
}


@pytest.mark.parametrize("split, name", [(split, name) for split, names in EDITIONS.items() for name in names])
def test_the_excel_tables_of_2023_give_severities(tmp_path: Path, split: str, name: str):
    root = scan_folders(tmp_path, "train/covid/ct_scan_1", "val/covid/ct_scan_1", "val/non-covid/ct_scan_2")
    write_table(root / name, [["Name", "Category"], ["ct_scan_1", 3]])
    assert {row.split: row.severity for row in read_study(root).rows if row.presence} == {
        split: 3,
        {"train": "validation", "validation": "train"}[split]: UNKNOWN,
    }


def test_a_severity_table_without_its_columns_says_which(tmp_path: Path):
    root = scan_folders(tmp_path, "train/covid/ct_scan_1")
    (root / "train_partition_covid_categories.csv").write_text("Name;Grade\nct_scan_1;1\n")
    with pytest.raises(StudyError, match="expected the columns Name and Category, found Name, Grade"):
        read_study(root)


def test_a_bare_class_folder_takes_either_table_but_not_both(tmp_path: Path):
    root = scan_folders(tmp_path, "covid/ct_scan_1")
    (root / "train_partition_covid_categories.csv").write_text("Name;Category\nct_scan_1;4\n")
    assert read_study(root).rows[0].severity == 4
    (root / "val_partition_covid_categories.csv").write_text("Name;Category\nct_scan_1;1\n")
    with pytest.raises(StudyError, match="listed twice"):
        read_study(root)


def test_a_severity_for_a_negative_is_an_error(tmp_path: Path):
    root = scan_folders(tmp_path, "train/covid/ct_scan_1", "train/non-covid/ct_scan_2")
    (root / "train_partition_covid_categories.csv").write_text("Name;Category\nct_scan_2;1\n")
    with pytest.raises(StudyError, match="has a severity, but lies in non-covid"):
        read_study(root)


def masks_of(root: Path) -> dict[str, str]:
    """Where the masks of a study's scans lie."""
    return {row.scan: row.mask.relative_to(root).as_posix() for row in read_study(root).rows if row.mask}


def test_masks_lie_as_the_scans_do_whatever_their_form(tmp_path: Path):
    names = ("train/covid/ct_scan_1", "train/covid/part2/ct_scan_1", "validation/non-covid/ct_scan3")
    root = files(scan_folders(tmp_path, *names, "train/non-covid/ct_scan_1"), "train/covid/ct_scan_9.nii.gz")
    files(root, "masks/train/covid/ct_scan_1.nii.gz", "masks/train/covid/part2/ct_scan_1.mha")
    files(root, "masks/train/covid/ct_scan_9.nrrd")
    scan_folders(root, "masks/validation/non-covid/ct_scan3")
    study = read_study(root)
    assert [row.scan for row in study.rows] == sorted(
        [*names, "train/covid/ct_scan_9.nii.gz", "train/non-covid/ct_scan_1"]
    )
    assert masks_of(root) == {
        "train/covid/ct_scan_1": "masks/train/covid/ct_scan_1.nii.gz",
        "train/covid/part2/ct_scan_1": "masks/train/covid/part2/ct_scan_1.mha",
        "train/covid/ct_scan_9.nii.gz": "masks/train/covid/ct_scan_9.nrrd",
        "validation/non-covid/ct_scan3": "masks/validation/non-covid/ct_scan3",
    }
    assert study.warnings == ()


def test_masks_without_a_scan_are_left_out_and_said(tmp_path: Path):
    root = files(scan_folders(tmp_path, "train/covid/ct_scan_1"), "masks/train/covid/ct_scan_1.nii.gz")
    files(root, "masks/train/covid/ct_scan_2.nii.gz", "masks/train/non-covid/ct_scan_1.nii.gz")
    assert masks_of(root) == {"train/covid/ct_scan_1": "masks/train/covid/ct_scan_1.nii.gz"}
    assert read_study(root).warnings == (
        "2 masks without a scan of that name, left out: "
        "masks/train/covid/ct_scan_2.nii.gz, masks/train/non-covid/ct_scan_1.nii.gz",
    )


def test_two_masks_of_a_scan_are_named(tmp_path: Path):
    root = files(scan_folders(tmp_path, "train/covid/ct_scan_1"), "masks/train/covid/ct_scan_1.nii.gz")
    files(root, "masks/train/covid/ct_scan_1.mha")
    with pytest.raises(
        StudyError, match=r"ct_scan_1\.mha and .*ct_scan_1\.nii\.gz are both train/covid/ct_scan_1; keep one"
    ):
        read_study(root)


# STOIC


def stoic(root: Path, reference: str = "PatientID,probCOVID,probSevere\n3,1,1\n20,1,0\n007,0,0\n") -> Path:
    files(root, "data/mha/3.mha", "data/mha/20.mha", "data/mha/007.mha", "metadata/reference.csv")
    (root / "metadata/reference.csv").write_text(reference)
    return root


def test_stoic_is_called_by_patients_and_its_outcome_is_no_severity(tmp_path: Path):
    study = read_study(stoic(tmp_path))
    assert by_scan(study) == {
        "3": (1, UNKNOWN, "", "3"),
        "007": (0, UNKNOWN, "", "007"),
        "20": (1, UNKNOWN, "", "20"),
    }
    assert study.rows[-1].path == tmp_path / "data/mha/20.mha"
    assert {row.scan: row.outcome for row in study.rows} == {"3": 1, "007": 0, "20": 0}
    assert study.warnings == ()


def test_stoics_masks_are_found_by_patients(tmp_path: Path):
    root = files(stoic(tmp_path), "data/masks/3.nii.gz", "data/masks/007.mha")
    assert masks_of(root) == {"3": "data/masks/3.nii.gz", "007": "data/masks/007.mha"}
    assert read_study(root).warnings == ()
    files(root, "data/masks/99.nii.gz")
    assert "left out: data/masks/99.nii.gz" in read_study(root).warnings[0]


def test_all_faults_of_stoics_table_are_named_at_once(tmp_path: Path):
    with pytest.raises(StudyError) as caught:
        read_study(stoic(tmp_path, "PatientID,probCOVID\n3,1\n3,1\n99,0\n20,0.7\n"))
    text = str(caught.value)
    assert "3 faults: reference.csv row 3 (3): listed twice" in text
    assert "reference.csv row 4 (99): no such scan in data/mha" in text
    assert "reference.csv row 5 (20): presence '0.7' is not one of" in text


def test_a_stoic_scan_without_a_row_is_kept_without_a_label_and_said(tmp_path: Path):
    study = read_study(stoic(tmp_path, "probCOVID;patientid\n1;3\n0;20\n"))
    assert by_scan(study)["007"] == (UNKNOWN, UNKNOWN, "", "007")
    assert study.warnings == ("1 scans have no row in reference.csv, so no label: 007.mha",)


# COVID-19-20


def covid_19_20(root: Path) -> Path:
    names = ("Train/volume-covid19-A-0003", "Train/volume-covid19-A-0011")
    files(root, *(f"{name}_{kind}.nii.gz" for name in names for kind in ("ct", "seg")))
    return files(root, "Validation/volume-covid19-A-0025_ct.nii.gz")


def test_covid_19_20_is_all_covid_with_masks_in_train_and_tests_without(tmp_path: Path):
    study = read_study(covid_19_20(tmp_path))
    assert {row.scan: (row.presence, row.severity, row.split, row.mask) for row in study.rows} == {
        f"Train/volume-covid19-A-{number}_ct.nii.gz": (
            1,
            UNKNOWN,
            "train",
            tmp_path / f"Train/volume-covid19-A-{number}_seg.nii.gz",
        )
        for number in ("0003", "0011")
    } | {"Validation/volume-covid19-A-0025_ct.nii.gz": (1, UNKNOWN, "test", None)}
    assert study.warnings == ()


def test_volumes_without_masks_and_masks_without_volumes_are_all_named(tmp_path: Path):
    root = covid_19_20(tmp_path)
    (root / "Train/volume-covid19-A-0003_seg.nii.gz").unlink()
    (root / "Train/volume-covid19-A-0011_ct.nii.gz").unlink()
    with pytest.raises(StudyError) as caught:
        read_study(root)
    assert "2 faults: " in str(caught.value)
    assert "Train/volume-covid19-A-0003_ct.nii.gz: has no mask volume-covid19-A-0003_seg.nii.gz" in str(caught.value)
    assert "Train/volume-covid19-A-0011_seg.nii.gz: is a mask without its scan" in str(caught.value)


def test_a_validation_mask_that_somebody_drew_is_taken(tmp_path: Path):
    root = files(covid_19_20(tmp_path), "Validation/volume-covid19-A-0025_seg.nii.gz")
    masks = {row.split: row.mask for row in read_study(root).rows}
    assert masks["test"] == root / "Validation/volume-covid19-A-0025_seg.nii.gz"


# MosMed


def mosmed(root: Path) -> Path:
    scans = [f"studies/CT-{grade}/study_{300 + grade:04}.nii.gz" for grade in range(5)]
    return files(root, *scans, "masks/study_0301_mask.nii.gz", "LICENSE", "dataset_registry.xlsx")


def test_mosmed_grades_by_folder_and_a_few_scans_have_masks(tmp_path: Path):
    study = read_study(mosmed(tmp_path))
    labels = [(row.scan, row.presence, row.severity) for row in study.rows]
    assert labels[0] == ("studies/CT-0/study_0300.nii.gz", 0, UNKNOWN)
    assert labels[1:] == [(f"studies/CT-{k}/study_030{k}.nii.gz", 1, k) for k in (1, 2, 3, 4)]
    assert [row.mask for row in study.rows] == [None, tmp_path / "masks/study_0301_mask.nii.gz", None, None, None]
    assert study.warnings == ()


def test_mosmeds_faults_are_all_named(tmp_path: Path):
    root = files(mosmed(tmp_path), "masks/study_0999_mask.nii.gz", "studies/CT-3/study_0301.nii")
    with pytest.raises(StudyError) as caught:
        read_study(root)
    text = str(caught.value)
    assert "studies/CT-1/study_0301.nii.gz and studies/CT-3/study_0301.nii are both study_0301" in text
    assert "masks/study_0999_mask.nii.gz: is a mask without its scan" in text


def test_a_mask_among_mosmeds_scans_is_no_scan(tmp_path: Path):
    root = files(mosmed(tmp_path), "studies/CT-2/study_0302_mask.nii.gz")
    study = read_study(root)
    assert len(study.rows) == 5
    assert study.rows[2].mask == root / "studies/CT-2/study_0302_mask.nii.gz"


# Which of them, and where


@pytest.mark.parametrize("layout", [covid_19_20, mosmed])
def test_scans_where_a_layout_has_none_are_left_out_and_said(tmp_path: Path, layout):
    root = files(layout(tmp_path), "extra/one.nii.gz", "two.nii")
    study = read_study(root)
    assert len(study.rows) == len(read_study(layout(tmp_path / "clean")).rows)
    assert len(study.warnings) == 1
    assert "left out: " in study.warnings[0] and "extra/one.nii.gz" in study.warnings[0]


KNOWN = {"STOIC": stoic, "COVID-19-20": covid_19_20, "MosMed": mosmed}


@pytest.mark.parametrize("layout", KNOWN.values(), ids=KNOWN)
def test_a_folder_above_gives_the_same_study(tmp_path: Path, layout):
    layout(tmp_path / "download" / "set")
    (tmp_path / "download" / "__MACOSX").mkdir()
    (tmp_path / "download" / "outputs").mkdir()
    assert read_study(tmp_path / "download") == read_study(tmp_path / "download" / "set")


def test_a_folder_above_two_data_sets_or_other_scans_is_not_guessed(tmp_path: Path):
    stoic(tmp_path / "a")
    files(tmp_path, "b/other.nii.gz")
    with pytest.raises(StudyError, match="the data set of a, and other scans beside it; name one"):
        read_study(tmp_path)
    mosmed(tmp_path / "b")
    with pytest.raises(StudyError, match="the data set of a and of b; name one"):
        read_study(tmp_path)


def test_two_layouts_in_one_folder_are_named(tmp_path: Path):
    stoic(mosmed(tmp_path))
    with pytest.raises(StudyError, match="holds STOIC and MosMed; give each a folder"):
        read_study(tmp_path)


@pytest.mark.parametrize("name", ["study.csv", "study.xlsx"])
def test_a_studys_own_table_goes_before_the_layout(tmp_path: Path, name: str):
    root = mosmed(tmp_path)
    write_table(root / name, [["scan", "presence"], ["studies/CT-4/study_0304.nii.gz", 0]])
    assert by_scan(read_study(root)) == {"studies/CT-4/study_0304.nii.gz": (0, UNKNOWN, "", "")}


def test_a_layout_goes_before_other_tables_and_these_before_a_layout_below(tmp_path: Path):
    root = mosmed(tmp_path / "set")
    write_table(root / "some.csv", [["scan", "presence"], ["studies/CT-4/study_0304.nii.gz", 0]])
    assert len(read_study(root).rows) == 5
    write_table(tmp_path / "some.xlsx", [["scan", "presence"], ["set/studies/CT-4/study_0304.nii.gz", 0]])
    assert list(by_scan(read_study(tmp_path))) == ["set/studies/CT-4/study_0304.nii.gz"]


@pytest.mark.parametrize("layout", [covid_19_20, mosmed])
def test_a_layout_with_nothing_in_it_says_what_was_looked_for(tmp_path: Path, layout):
    root = layout(tmp_path)
    for path in list(root.rglob("*.nii.gz")):
        path.unlink()
    with pytest.raises(StudyError, match="no scans found"):
        read_study(root)
