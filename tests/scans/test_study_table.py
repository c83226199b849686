"""Tables that name one series of a DICOM scan, as ``infer --series all`` calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_volume

from cov3d.config import Machine, Preprocessing, Reading
from cov3d.errors import StudyError
from cov3d.forms import write_dicom
from cov3d.scans.cache import fill_cache
from cov3d.scans.preprocess import preprocess
from cov3d.scans.read import read
from cov3d.scans.series import every_series
from cov3d.scans.study import read_study

HU = (smooth_volume(12, 16).astype("int16") * 6 - 1000).clip(-1000, 500)
TINY = Preprocessing(width=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scan of two series of one patient, the second upside down and of fewer slices."""
    import pydicom

    write_dicom(tmp_path / "scans" / "a", HU, (2.0, 1.0, 1.0), seed=0)
    write_dicom(tmp_path / "other", HU[:8, ::-1], (2.0, 1.0, 1.0), seed=1)
    first = pydicom.dcmread(next((tmp_path / "scans" / "a").iterdir()))
    for file in (tmp_path / "other").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PatientID, dataset.StudyInstanceUID = first.PatientID, first.StudyInstanceUID
        dataset.save_as(tmp_path / "scans" / "a" / f"b{file.name}")
        file.unlink()
    return tmp_path / "scans" / "a"


def test_a_table_may_name_single_series_and_each_is_read(folder: Path, tmp_path: Path):
    table = tmp_path / "study.csv"
    table.write_text("scan,presence\nscans/a#1,1\nscans/a#2,0\n")
    study = read_study(table)
    assert [(row.scan, row.path.name, row.presence) for row in study.rows] == [
        ("scans/a#1", "a#1", 1),
        ("scans/a#2", "a#2", 0),
    ]
    cache = fill_cache(study.rows, TINY, tmp_path / "cache", Machine(workers=1))
    assert cache.failures == {}
    for name, hu in (("scans/a#1", HU), ("scans/a#2", HU[:8, ::-1])):
        alone = write_dicom(tmp_path / name.replace("/", "-"), hu, (2.0, 1.0, 1.0))
        np.testing.assert_array_equal(cache.load(name), preprocess(read(alone), TINY))
    assert every_series(study, Reading(series="all")) == study  # a series has no series


@pytest.mark.parametrize(
    "cell, said",
    [
        ("scans/b#2", "'scans/b' is not there"),
        ("scans/A#2", "'scans/A' is not there; 'a' is"),
        ("scans/a#0", "'scans/a#0' is not there"),
        ("scans/a#2/b", "'scans/a#2/b' is not there"),
        ("../scans/a#2", "leads out of the table's folder"),
    ],
)
def test_an_address_whose_scan_is_not_there_is_a_fault(folder: Path, tmp_path: Path, cell: str, said: str):
    (tmp_path / "study.csv").write_text(f"scan,presence\n{cell},1\n")
    with pytest.raises(StudyError, match="row 2: ") as caught:
        read_study(tmp_path)
    assert said in str(caught.value)


def test_a_folder_that_is_called_like_a_series_is_itself(folder: Path, tmp_path: Path):
    write_dicom(tmp_path / "scans" / "a#2", HU[:5], (2.0, 1.0, 1.0), seed=2)
    (tmp_path / "study.csv").write_text("scan,presence\nscans/a#2,1\n")
    (row,) = read_study(tmp_path).rows
    assert len(read(row.path).slices) == 5
