"""What DICOM headers add to a study: further series, and which scans are of one patient, named nowhere."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from conftest import smooth_volume, write_slices

from cov3d.config import Reading, Training
from cov3d.errors import StudyError
from cov3d.forms import write_dicom
from cov3d.scans.series import every_series, with_patients
from cov3d.scans.study import Row, Study, read_study
from cov3d.training.split import split_rows

HU = (smooth_volume(12, 16).astype("int16") * 6 - 1000).clip(-1000, 500)


def scan(folder: Path, patient: str, seed: int, **elements: object) -> Path:
    write_dicom(folder, HU, (2.0, 1.0, 1.0), seed=seed)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PatientID = patient
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.save_as(file)
    return folder


def study(root: Path, patients: list[str]) -> Study:
    for k, patient in enumerate(patients):
        scan(root / f"scan_{k}", patient, seed=k)
    return read_study(root)


def test_scans_of_one_patient_are_known_as_such_by_numbers(tmp_path: Path):
    write_slices(tmp_path / "slices", smooth_volume(3))
    found = with_patients(study(tmp_path, ["DOE-1", "ROE-7", "DOE-1", ""]))
    assert {row.scan: row.patient for row in found.rows} == {
        "scan_0": "dicom-1",
        "scan_1": "dicom-2",
        "scan_2": "dicom-1",
        "scan_3": "",
        "slices": "",
    }
    assert "DOE" not in repr(found)


def test_a_patient_that_the_table_names_stays(tmp_path: Path):
    row = Row("a", scan(tmp_path / "a", "DOE-1", 0), patient="7")
    assert with_patients(Study(tmp_path, (row,))).rows == (row,)


def known(tmp_path: Path, *scans: tuple[str, str]) -> dict[str, str]:
    """The patients of a study whose scans have an id in their headers and one, or none, in the table."""
    rows = [Row(f"s{k}", scan(tmp_path / f"s{k}", header, k), patient=told) for k, (header, told) in enumerate(scans)]
    found = with_patients(Study(tmp_path, tuple(rows)))
    assert "DOE" not in repr(found)
    return {row.scan: row.patient for row in found.rows}


def test_a_patient_that_the_table_names_once_has_all_scans_whose_headers_say_so(tmp_path: Path):
    patients = known(tmp_path, ("DOE-1", "p7"), ("DOE-2", ""), ("DOE-1", ""), ("DOE-2", ""), ("", ""))
    assert patients == {"s0": "p7", "s1": "dicom-1", "s2": "p7", "s3": "dicom-1", "s4": ""}


def test_where_the_table_names_two_the_others_keep_their_number(tmp_path: Path):
    patients = known(tmp_path, ("DOE-1", "p7"), ("DOE-1", "p8"), ("DOE-1", ""), ("DOE-1", ""), ("DOE-2", ""))
    assert patients == {"s0": "p7", "s1": "p8", "s2": "dicom-1", "s3": "dicom-1", "s4": "dicom-2"}


def test_a_patient_known_by_table_and_header_is_refused_on_both_sides(tmp_path: Path):
    rows = tuple(
        Row(f"s{k}", scan(tmp_path / f"s{k}", "DOE-1", k), presence=1, split=split, patient=told)
        for k, (split, told) in enumerate((("train", "p7"), ("validation", "")))
    )
    with pytest.raises(StudyError, match=r"1 patients have scans both .* \(s0, s1\)"):
        split_rows(with_patients(Study(tmp_path, rows)).rows, Training())


def test_an_id_that_all_scans_share_is_a_placeholder(tmp_path: Path):
    found = with_patients(study(tmp_path, ["ANON"] * 4))
    assert {row.patient for row in found.rows} == {""}
    assert found.warnings == ("4 DICOM scans share a PatientID with so many others that it is taken for a placeholder",)


def test_a_patient_on_both_sides_is_refused_by_the_scans_names(tmp_path: Path):
    found = with_patients(study(tmp_path, ["DOE-1", "ROE-7", "DOE-1"]))
    splits = ("train", "train", "validation")
    rows = [
        Row(r.scan, r.path, presence=1, split=s, patient=r.patient) for r, s in zip(found.rows, splits, strict=True)
    ]
    with pytest.raises(StudyError, match=r"1 patients have scans both .* \(scan_0, scan_2\)") as caught:
        split_rows(rows, Training())
    assert "DOE" not in str(caught.value)


def test_every_series_of_a_scan_is_a_row_of_one_patient(tmp_path: Path):
    scan(tmp_path / "a", "DOE-1", 0)
    for file in scan(tmp_path / "b", "DOE-1", 1).iterdir():
        file.rename(tmp_path / "a" / file.name)
    (tmp_path / "b").rmdir()
    write_slices(tmp_path / "slices", smooth_volume(3))
    found = read_study(tmp_path)
    assert every_series(found, Reading()) is found
    every = every_series(found, Reading(series="all"))
    assert [row.scan for row in every.rows] == ["a#1", "a#2", "slices"]
    assert [row.patient for row in with_patients(every).rows] == ["dicom-1", "dicom-1", ""]
    assert every_series(every, Reading(series="all")) == every
