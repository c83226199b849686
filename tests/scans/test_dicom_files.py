"""Where DICOM files lie, how they are named, zipped, linked, damaged: none is lost without a word."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hospital import GAPS, HU, SPACING, edit, hounsfield, in_order, put
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cov3d import Preprocessing, preprocess, read
from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.forms import write_dicom
from cov3d.scans.read import ask_scans, find_scans, scan_files


def renamed(folder: Path, name: Callable[[int], str]) -> Path:
    for index, file in enumerate(sorted(folder.glob("*.dcm"))):
        target = folder / name(index)
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    return folder


NAMES = {
    "no extension": lambda k: f"IM{k:04d}",
    "numbers": lambda k: f"1.2.840.{k}",
    "IMA": lambda k: f"{k}.IMA",
    "upper case": lambda k: f"{k}.DCM",
    "nested": lambda k: f"part{k // 10}/{k}.dcm",
}


@pytest.mark.parametrize("way", NAMES)
def test_files_are_found_however_they_are_named(series: Path, way: str):
    renamed(series, NAMES[way])
    np.testing.assert_array_equal(read(series).voxels, HU)
    assert find_scans(series.parent) == [series]
    assert len(scan_files(series)) == 40


def test_an_unlisted_ending_is_looked_into(series: Path):
    """Half of the files as one archive names them, half as another."""
    for index, file in enumerate(sorted(series.glob("*.dcm"))):
        file.rename(file.with_suffix((".dcm", ".CT", ".bak", ".img")[index % 4]))
    np.testing.assert_array_equal(read(series).voxels, HU)
    next(series.glob("*.CT")).write_bytes(b"")
    with pytest.raises(ScanError, match=r"\.CT is empty"):
        read(series, Reading(strict=True))


@pytest.mark.parametrize("content", [b"", bytes(5000)], ids=["empty", "zeros"])
def test_a_lost_file_without_an_ending_is_missed(series: Path, content: bytes):
    renamed(series, NAMES["no extension"])
    last = max(series.iterdir(), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))
    last.write_bytes(content)
    assert "1 file unreadable and left out" in read(series).remarks[0]
    with pytest.raises(ScanError, match="--strict refuses"):
        read(series, Reading(strict=True))


def without_preamble(series: Path) -> Path:
    for file in series.glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        bare = Dataset()
        bare.update(dataset)
        pydicom.dcmwrite(file, bare, implicit_vr=True, little_endian=True)
    return series


@pytest.mark.parametrize("ending", [".dcm", "", ".img"])
def test_files_without_a_preamble_are_read_if_they_say_what_they_are(series: Path, ending: str):
    for index, file in enumerate(sorted(without_preamble(series).glob("*.dcm"))):
        file.rename(series / f"IM{index}{ending}")
    np.testing.assert_array_equal(read(series).voxels, HU)
    assert find_scans(series.parent) == [series]


def test_slices_beside_dicom_are_ambiguous(series: Path):
    (series / "0.jpg").write_bytes(b"")
    with pytest.raises(ScanError, match="holds several scans"):
        read(series)


def test_nothing_that_may_have_been_a_scan_vanishes(series: Path, tmp_path: Path):
    zipped(series, tmp_path / "beside.zip").rename(series / "beside.zip")
    (tmp_path / "cut.zip").write_bytes((series / "beside.zip").read_bytes()[:3000])
    (tmp_path / "scan.tar.gz").write_bytes(b"")
    (tmp_path / "lost").mkdir()
    names = ["cut.zip", "lost", "scan.tar.gz", "series", "series/beside.zip"]
    asked = {path.relative_to(tmp_path).as_posix(): path for path in ask_scans([tmp_path])}
    assert list(asked) == names
    for name, said in (("cut.zip", "truncated zip"), ("scan.tar.gz", "unpack it"), ("lost", "no scan found")):
        with pytest.raises(ScanError, match=said):
            read(asked[name])


# Studies in several folders


def test_a_study_as_hospitals_export_it_is_one_scan(tmp_path: Path):
    """A folder for each series: scout, scan, reformats."""
    export = tmp_path / "export"
    scan = write_dicom(export / "SE1", HU, SPACING, seed=0)
    first = pydicom.dcmread(in_order(scan)[0])
    scout = write_dicom(export / "SE0", HU[:3], SPACING, seed=1)
    edit(scout, put(StudyInstanceUID=first.StudyInstanceUID, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    assert find_scans(tmp_path) == [scout, scan]  # of two patients
    edit(scout, put(PatientID=first.PatientID))
    assert find_scans(tmp_path) == [export]
    np.testing.assert_array_equal(read(export).voxels, HU)
    other = write_dicom(export / "SE2", HU, SPACING, seed=2)
    assert find_scans(tmp_path) == [scout, scan, other]  # of another study: nobody can take them for one


def moved(series: Path, folder: Path, which: slice) -> Path:
    """Some files of a series, by their places, in another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in in_order(series)[which]:
        file.rename(folder / file.name)
    return folder


def scout_of(series: Path, folder: Path) -> Path:
    """A localizer of the same study and patient."""
    first = pydicom.dcmread(in_order(series)[0])
    own = {name: getattr(first, name) for name in ("StudyInstanceUID", "PatientID")}
    return edit(
        write_dicom(folder, HU[:3], SPACING, seed=1), put(**own, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    )


def test_a_series_in_several_folders_is_one_scan_whatever_lies_beside_it(series: Path, tmp_path: Path):
    study = tmp_path / "patient"
    scout_of(series, study / "scout")
    for k in range(4):
        moved(series, study / "ct" / f"part{k}", slice(0, 10))
    series.rmdir()
    assert find_scans(tmp_path) == [study]
    assert find_scans(study) == [study]  # named itself: it still is one
    scan = read(study)
    np.testing.assert_array_equal(scan.voxels, HU)
    assert "set aside: localizer (3)" in scan.remarks


def test_what_goes_on_in_a_folder_below_belongs_to_the_scan(series: Path, tmp_path: Path):
    moved(series, series / "more", slice(25, 40))
    assert find_scans(tmp_path) == find_scans(series) == [series]
    np.testing.assert_array_equal(read(series).voxels, HU)
    assert len(scan_files(series)) == 40
    other = write_dicom(series / "other", HU, SPACING, seed=2)  # of another patient: nobody can take them for one
    assert find_scans(tmp_path) == [series, series / "more", other]
    np.testing.assert_array_equal(read(series).voxels, HU[:25])


def test_linked_folders_of_a_series_are_followed(series: Path, tmp_path: Path):
    study = tmp_path / "study" / "patient"
    study.mkdir(parents=True)
    for name, which in (("a", slice(0, 20)), ("b", slice(0, 20))):
        (study / name).symlink_to(moved(series, tmp_path / f"store-{name}", which))
    assert find_scans(tmp_path / "study") == [study]
    np.testing.assert_array_equal(read(study).voxels, HU)


def test_two_copies_of_a_scan_in_the_folder_that_was_asked_for_stay_two(series: Path, tmp_path: Path):
    shutil.copytree(series, tmp_path / "copy")
    assert find_scans(tmp_path) == [tmp_path / "copy", series]


def test_two_studies_in_a_folder_are_not_guessed_from(series: Path):
    edit(series, put(StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.3"), slice(0, 5))
    with pytest.raises(ScanError, match="several patients or studies"):
        read(series)


def spread(series: Path, study: Path, **elements: object) -> Path:
    """The series in two folders of a study."""
    edit(series, put(**elements))
    moved(series, study / "a", slice(0, 20))
    moved(series, study / "b", slice(0, 20))
    series.rmdir()
    return study


def test_a_series_of_nobody_in_several_folders_is_one_scan_too(series: Path, tmp_path: Path):
    study = spread(series, tmp_path / "study", PatientID="")
    assert find_scans(tmp_path) == find_scans(study) == [study]


def test_blanks_around_an_id_do_not_part_a_series_over_folders(series: Path, tmp_path: Path):
    edit(series, put(PatientID=" AB 1"), slice(0, 20))
    edit(series, put(PatientID="AB 1"), slice(20, 40))
    moved(series, tmp_path / "study" / "a", slice(0, 20))
    moved(series, tmp_path / "study" / "b", slice(0, 20))
    series.rmdir()
    assert find_scans(tmp_path) == [tmp_path / "study"]


def test_a_damaged_first_file_does_not_part_a_series(series: Path, tmp_path: Path):
    study = spread(series, tmp_path / "study")
    for folder in (study / "a", study / "b"):
        min(folder.iterdir()).write_bytes(b"")
    assert find_scans(tmp_path) == [study]


def test_series_mixed_over_folders_are_one_scan_where_the_study_is_named(series: Path, tmp_path: Path):
    """The first and last files of the folders are of different series."""
    other = write_dicom(tmp_path / "other", hounsfield(30), SPACING, seed=1)
    first = pydicom.dcmread(in_order(series)[0])
    edit(other, put(PatientID=first.PatientID, StudyInstanceUID=first.StudyInstanceUID))
    study = tmp_path / "study"
    for folder in ("a", "b"):
        ends = in_order(other if folder == "a" else series)[:2]
        inside = in_order(series if folder == "a" else other)[:15]
        (study / folder).mkdir(parents=True)
        for name, file in zip(["0.dcm", "z.dcm", *(f"m{k}.dcm" for k in range(15))], [*ends, *inside], strict=True):
            file.rename(study / folder / name)
    assert find_scans(study) == [study]


# Zips and bounds


def zipped(folder: Path, path: Path, prefix: str = "export/../../", **options: object) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return path


def test_a_zip_is_read_in_memory_and_nothing_leaves_it(series: Path, tmp_path: Path):
    path = zipped(series, tmp_path / "scan.zip")
    before = set(tmp_path.rglob("*"))
    np.testing.assert_array_equal(read(path).voxels, HU)
    assert set(tmp_path.rglob("*")) == before
    shutil.rmtree(series)
    assert find_scans(tmp_path) == [path]


def test_a_zip_that_promises_too_much_is_refused(series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = zipped(series, tmp_path / "scan.zip")
    monkeypatch.setattr("cov3d.scans.dicom_zip.LARGEST_ARCHIVE", 10_000)
    with pytest.raises(ScanError, match="more than the 20000 files and"):
        read(path)


def test_a_zip_without_dicom_is_no_scan(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(b"x")
    path = zipped(tmp_path / "a", tmp_path / "slices.zip")
    assert path in find_scans(tmp_path)  # it costs a row, and does not vanish
    with pytest.raises(ScanError, match="holds no DICOM files; unpack it"):
        read(path)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_a_damaged_zip_is_an_error_or_loses_named_files(series: Path, tmp_path: Path, place: float):
    path = zipped(series, tmp_path / "scan.zip")
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x55
    path.write_bytes(data)
    try:
        scan = read(path, GAPS)
    except ScanError:
        return
    assert "unreadable" in scan.remarks[0] or np.array_equal(scan.voxels, HU)


def test_a_deflated_file_that_inflates_without_end_is_refused(series: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cov3d.scans.dicom_headers.LARGEST_FILE", 10_000_000)
    bomb = in_order(series)[3]
    dataset = pydicom.dcmread(bomb)
    dataset.add_new(0x00091010, "OB", bytes(20_000_000))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(bomb)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ScanError, match="inflates to more than"):
        read(series, Reading(strict=True))


def test_a_file_larger_than_any_image_is_not_opened(series: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cov3d.scans.dicom_files.LARGEST_FILE", 5_000)
    with in_order(series)[-1].open("ab") as file:
        file.write(bytes(5_000))
    assert "is larger than" in read(series).remarks[0]


# Damage


DAMAGE = {
    "cut in its pixels": lambda data: data[:-100],
    "cut in its header": lambda data: data[:700],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a web page": lambda data: b"<html>" + bytes(500),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_never_only_moves_its_neighbours(series: Path, damage: str):
    settings = Preprocessing(width=24, depth=40)
    whole = preprocess(read(series), settings).astype(int)
    file = in_order(series)[20]
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    try:
        tensor = preprocess(read(series), settings)
    except ScanError as error:
        assert "1 slice missing" in str(error)
        tensor = preprocess(read(series, GAPS), settings)
    assert np.abs(tensor - whole)[0, :18].max() <= 2
    assert np.abs(tensor - whole)[0, 24:].max() <= 2
    with pytest.raises(ScanError):
        preprocess(read(series, Reading(strict=True)), settings)


def test_a_damaged_file_is_named_where_no_gap_tells(series: Path):
    in_order(series)[-1].write_bytes(b"")
    name = next(file.name for file in series.iterdir() if not file.stat().st_size)
    scan = read(series)
    assert scan.remarks[0] == f"1 file unreadable and left out ({name} is empty (zero bytes); copy it again)"


def test_a_gap_names_the_file_that_may_be_missing_there(series: Path):
    file = in_order(series)[20]
    file.write_bytes(b"")
    with pytest.raises(ScanError, match=rf"1 slice missing: .*; 1 file unreadable and left out \({file.name} is empty"):
        read(series)


def test_more_than_a_tenth_damaged_fails_the_scan(series: Path):
    for file in in_order(series)[:5]:
        file.write_bytes(b"")
    with pytest.raises(ScanError, match="5 of 40 slices cannot be read"):
        read(series)


def test_a_cut_copy_does_not_stand_in_for_a_whole_one(series: Path):
    file = in_order(series)[7]
    for name in ("0.dcm", "z.dcm"):  # before and after it
        (series / name).write_bytes(file.read_bytes()[:-200])
    np.testing.assert_array_equal(read(series).voxels, HU)


def test_half_a_scan_without_geometry_is_no_scan(series: Path):
    edit(series, lambda dataset, index: delattr(dataset, "PixelSpacing"), slice(24, 40))
    with pytest.raises(ScanError, match=r"16 of 40 slices cannot be read .* is without PixelSpacing"):
        read(series)


def test_a_sequence_nested_without_end_is_an_error_and_no_crash(series: Path):
    deep = Dataset()
    for _ in range(200):
        outer = Dataset()
        outer.ReferencedStudySequence = [deep]
        deep = outer
    edit(series, put(ReferencedStudySequence=[deep]), slice(5))
    assert len(read(series).slices) >= 35


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("content", [b"", bytes(5000), b"<html>no", b"random"], ids=["empty", "zeros", "html", "other"])
def test_numbered_files_that_are_no_dicom_any_more_are_missed(
    series: Path, tmp_path: Path, content: bytes, packed: bool
):
    for index, file in enumerate(in_order(series)):
        file.rename(series / f"IM{index:04d}")
    (series / "README").write_bytes(b"hello")
    for index in (37, 38, 39):
        (series / f"IM{index:04d}").write_bytes(content)
    path = zipped(series, tmp_path / "scan.zip") if packed else series
    assert read(path).remarks[0].startswith("3 files unreadable and left out (IM0037 ")


UNREAD = ["a/slice_001.jpg", "a/1.tif", "a/1 (1).jpg", "a/1.dcm.gz", "y.nii.bz2", "x.hdr", "x.nhdr"]


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_in_a_form_that_is_not_read_costs_a_row(series: Path, tmp_path: Path, name: str):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    lost = file if file.parent == tmp_path else file.parent
    assert set(ask_scans([tmp_path])) == {series, lost}
    with pytest.raises(ScanError, match=r"no scan found|no form of scan"):
        read(lost)
