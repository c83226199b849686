"""DICOM as hospitals have it: which images are the scan, their order and spacing from positions only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hospital import GAPS, HU, SPACING, add, edit, hounsfield, in_order, put, raw, without
from pydicom.dataset import Dataset
from pydicom.uid import XRayRadiationDoseSRStorage, generate_uid

from cov3d import Preprocessing, preprocess, read
from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.forms import write_dicom
from cov3d.scans.read import ask_scans, scan_files

# The four that other readers get wrong


def coronal_localizer(folder: Path) -> None:
    add(
        folder,
        "localizer.dcm",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ImagePositionPatient=[-10, -60, 20],
    )


def unmarked_localizer(folder: Path) -> None:
    add(folder, "coronal.dcm", ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[-10, -60, 20])


def scrambled_numbers(folder: Path) -> None:
    numbers = np.random.default_rng(0).permutation(40)
    edit(folder, lambda dataset, index: setattr(dataset, "InstanceNumber", int(numbers[index])))


def no_numbers(folder: Path) -> None:
    edit(folder, lambda dataset, index: delattr(dataset, "InstanceNumber"))


RIGHT = {
    "good": lambda folder: None,
    "localizer": coronal_localizer,
    "unmarked localizer": unmarked_localizer,
    "scrambled InstanceNumber": scrambled_numbers,
    "no InstanceNumber": no_numbers,
}


@pytest.mark.parametrize("case", RIGHT)
def test_spacing_and_order_come_from_positions_alone(series: Path, case: str):
    RIGHT[case](series)
    scan = read(series)
    assert scan.spacing == pytest.approx(SPACING)
    np.testing.assert_array_equal(scan.voxels, HU)
    said = "; ".join(scan.remarks)
    assert ("set aside" in said) == ("localizer" in case)
    assert "InstanceNumber" not in said


def test_missing_slices_are_refused_with_the_numbers_or_read_in_their_places(series: Path):
    settings = Preprocessing(width=24, depth=40)
    expected = preprocess(read(series), settings).astype(int)
    for file in in_order(series)[20:25]:
        file.unlink()
    with pytest.raises(
        ScanError, match=r"5 slices missing: 4\.20 mm between .* the others are 0\.70 mm apart; say --allow"
    ):
        read(series)
    scan = read(series, GAPS)
    assert scan.spacing == pytest.approx(SPACING)
    assert "5 slices missing" in scan.remarks[0]
    bridged = preprocess(scan, settings).astype(int)
    assert np.abs(bridged - expected)[0, :18].max() <= 2  # no other slice moves
    assert np.abs(bridged - expected)[0, 28:].max() <= 2


def test_other_readers_are_wrong_where_this_one_is_right(series: Path):
    """Why cov3d has a reader of its own: the figures of the documentation."""
    unmarked_localizer(series)
    stacked = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series)))
    assert stacked.GetSize()[2] == 41
    assert abs(stacked.GetSpacing()[2] - 0.7) > 0.1
    assert read(series).spacing[0] == pytest.approx(0.7)


# A second source


def test_the_volume_is_highdicoms(series: Path):
    volume = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in in_order(series)])
    volume = volume.to_patient_orientation("FPL")
    np.testing.assert_array_equal(read(series).voxels, volume.array)
    assert read(series).spacing == pytest.approx(volume.spacing)


TURNS = {
    "as usual": ([1, 0, 0, 0, 1, 0], lambda hu: hu),
    "prone": ([-1, 0, 0, 0, -1, 0], lambda hu: hu[:, ::-1, ::-1]),
    "mirrored": ([-1, 0, 0, 0, 1, 0], lambda hu: hu[:, :, ::-1]),
    "upside down": ([1, 0, 0, 0, -1, 0], lambda hu: hu[:, ::-1]),
    "lying on the side": ([0, 1, 0, 1, 0, 0], lambda hu: hu.transpose(0, 2, 1)),
    "on the other side": ([0, -1, 0, 1, 0, 0], lambda hu: hu.transpose(0, 2, 1)[:, ::-1]),
    "five degrees oblique": ([np.cos(0.087), np.sin(0.087), 0, -np.sin(0.087), np.cos(0.087), 0], lambda hu: hu),
}


@pytest.mark.parametrize("feet_first", [False, True])
@pytest.mark.parametrize("turn", TURNS)
def test_slices_are_turned_as_the_patient_lies(series: Path, turn: str, feet_first: bool):
    orientation, turned = TURNS[turn]
    sign = 1 if feet_first else -1
    places = put(ImageOrientationPatient=orientation)

    def change(dataset: Dataset, index: int) -> None:
        places(dataset, index)
        dataset.ImagePositionPatient = [0, 0, sign * 0.7 * index]

    expected = turned(HU)[:: -1 if feet_first else 1]
    np.testing.assert_array_equal(read(edit(series, change)).voxels, expected)


def test_an_oblique_series_is_read_along_the_nearest_axes_with_a_warning(series: Path):
    c, s = np.cos(np.deg2rad(30)), np.sin(np.deg2rad(30))
    scan = read(edit(series, put(ImageOrientationPatient=[c, s, 0, -s, c, 0])))
    assert any("30 degrees off" in remark for remark in scan.remarks)


# Which stack is the scan


def dose_report(folder: Path) -> None:
    add(folder, "dose.dcm", SOPClassUID=XRayRadiationDoseSRStorage, Modality="SR")


def secondary_capture(folder: Path) -> None:
    add(folder, "capture.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")


def duplicate(folder: Path) -> None:
    shutil.copy(in_order(folder)[3], folder / "copy.dcm")


def other_series(folder: Path) -> None:
    for k in reversed(range(4)):  # from the last, so that slice k is still the series' own
        add(folder, f"other{k}.dcm", k, SeriesInstanceUID="1.2.3")


def junk(folder: Path) -> None:
    for name in ("Thumbs.db", ".DS_Store", "._1.dcm", "DICOMDIR", "report.pdf", "README"):
        (folder / name).write_bytes(b"junk")


BESIDE = {
    "dose report": (dose_report, "X-Ray Radiation Dose SR Storage (1)"),
    "secondary capture": (secondary_capture, "Secondary Capture Image Storage (1)"),
    "duplicate": (duplicate, "duplicate (1)"),
    "localizer": (coronal_localizer, "localizer (1)"),
    "coronal": (unmarked_localizer, "coronal image (1)"),
    "other series": (other_series, "image of another series (4)"),
    "junk": (junk, ""),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_is_not_of_the_scan_is_set_aside_and_named(series: Path, case: str):
    put_there, said = BESIDE[case]
    put_there(series)
    scan = read(series)
    np.testing.assert_array_equal(scan.voxels, HU)
    assert [remark for remark in scan.remarks if "set aside" in remark] == ([f"set aside: {said}"] if said else [])


@pytest.mark.parametrize(
    "elements, said",
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]}, "projection of many slices (40)"),
        ({"RescaleType": "MGML"}, "of values that are no HU (40)"),
    ],
)
def test_what_is_no_measured_hu_is_set_aside(series: Path, elements: dict, said: str):
    larger = write_dicom(series.with_name("larger"), HU, SPACING, seed=1)
    first = pydicom.dcmread(in_order(series)[0])
    edit(larger, put(PatientID=first.PatientID, StudyInstanceUID=first.StudyInstanceUID, **elements))
    for file in larger.iterdir():
        file.rename(series / file.name)
    scan = read(series)
    np.testing.assert_array_equal(scan.voxels, HU)
    assert f"set aside: {said}" in scan.remarks


def test_the_series_can_be_chosen(series: Path):
    other_series(series)
    np.testing.assert_array_equal(read(series, Reading(series="1.2.3")).voxels, HU[:4])
    with pytest.raises(ScanError, match="no CT image of the series"):
        read(series, Reading(series="1.2.4"))


def test_every_series_is_a_scan_of_its_own_if_asked_for(series: Path):
    other_series(series)
    every = Reading(series="all")
    addresses = ask_scans([series], every)
    assert [path.name for path in addresses] == ["series#1", "series#2"]
    assert [len(read(path, every).slices) for path in addresses] == [40, 4]
    assert set(scan_files(addresses[1])) == set(scan_files(series))
    with pytest.raises(ScanError, match="has no series 3; it has 2"):
        read(series.with_name("series#3"), every)


def test_a_larger_series_with_a_gap_is_not_taken_for_a_regular_one(series: Path, tmp_path: Path):
    gap = write_dicom(tmp_path / "gap", hounsfield(50), SPACING, seed=1)
    for file in in_order(gap)[20:23]:
        file.unlink()
    first = pydicom.dcmread(in_order(series)[0])
    edit(gap, put(PatientID=first.PatientID, StudyInstanceUID=first.StudyInstanceUID))
    for file in gap.iterdir():
        shutil.copy(file, series)
    scan = read(series)
    np.testing.assert_array_equal(scan.voxels, HU)
    assert "another series (47)" in scan.remarks[0]


def test_a_tiny_regular_series_does_not_stand_in_for_the_scan(series: Path):
    other_series(series)
    in_order(series)[20].unlink()
    with pytest.raises(ScanError, match="1 slice missing"):
        read(series)


def test_of_two_series_as_long_the_measured_one_is_taken(series: Path):
    other = write_dicom(series.with_name("other"), HU[::-1], SPACING, seed=1)
    first = pydicom.dcmread(in_order(series)[0])
    names = {name: getattr(first, name) for name in ("PatientID", "StudyInstanceUID")}
    for uid in ("1.2.3", "9.9.9"):  # whatever comes first by its UID
        edit(other, put(**names, SeriesInstanceUID=uid, ImageType=["DERIVED", "SECONDARY", "AXIAL"]))
        for file in other.iterdir():
            shutil.copy(file, series)
        np.testing.assert_array_equal(read(series).voxels, HU)


def test_images_nearer_than_any_slices_are_one_place(series: Path):
    z = float(pydicom.dcmread(in_order(series)[7]).ImagePositionPatient[2])
    add(
        series,
        "near.dcm",
        7,
        ImagePositionPatient=[*pydicom.dcmread(in_order(series)[7]).ImagePositionPatient[:2], z + 0.05],
    )
    scan = read(series)
    np.testing.assert_array_equal(scan.voxels, HU)
    assert "set aside: duplicate (1)" in scan.remarks


def test_two_acquisitions_over_the_same_places_are_not_interleaved(series: Path):
    two_phases(series)
    for file in series.glob("phase*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.AcquisitionNumber = 2
        dataset.save_as(file)
    edit_others = [file for file in series.glob("*.dcm") if not file.name.startswith("phase")]
    for file in edit_others:
        dataset = pydicom.dcmread(file)
        dataset.AcquisitionNumber = 1
        dataset.save_as(file)
    scan = read(series)
    np.testing.assert_array_equal(scan.voxels, HU)
    assert "image of another acquisition (40)" in scan.remarks[0]


def test_two_acquisitions_between_each_other_are_not_interleaved(series: Path):
    def change(dataset: Dataset, index: int) -> None:
        dataset.AcquisitionNumber = index % 2

    scan = read(edit(series, change))
    np.testing.assert_array_equal(scan.voxels, HU[::2])
    assert scan.spacing[0] == pytest.approx(1.4)
    assert "image of another acquisition (20)" in scan.remarks[0]


def test_a_series_whose_slices_differ_in_size_is_refused(series: Path):
    edit(series, put(PixelSpacing=[0.5, 0.5]), slice(30, 40))
    with pytest.raises(ScanError, match="10 images of its series differ from the other 30 in size or spacing"):
        read(series)


# What is refused


def tilted(dataset: Dataset, index: int) -> None:
    angle = np.deg2rad(20)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, np.cos(angle), -np.sin(angle)]
    dataset.ImagePositionPatient = [0, 0, -0.7 * index]


def uneven(dataset: Dataset, index: int) -> None:
    dataset.ImagePositionPatient = [0, 0, -0.7 * index - 0.3 * (index % 3)]


def sideways(dataset: Dataset, index: int) -> None:
    dataset.ImagePositionPatient = [6.0 if index == 20 else 0.0, 0, -0.7 * index]


@pytest.mark.parametrize(
    "change, said",
    [
        (tilted, "the gantry was tilted: slices move 20.0 degrees"),
        (uneven, "unevenly spaced: 0.10 to 1.00 mm"),
        (sideways, "moved sideways by up to 6.0 mm"),
    ],
    ids=["tilted", "uneven", "sideways"],
)
def test_uneven_geometry_is_refused_with_the_numbers_or_read_as_it_is(series: Path, change: Callable, said: str):
    edit(series, change)
    with pytest.raises(ScanError, match=f"{said}.*--allow-gaps"):
        read(series)
    scan = read(series, GAPS)
    assert said in scan.remarks[0]
    np.testing.assert_array_equal(scan.voxels, HU)


def test_a_step_to_the_side_that_stays_is_said(series: Path):
    def change(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [4.0 if index >= 20 else 0.0, 0, -20.0 * index]

    with pytest.raises(ScanError, match=r"moved sideways by up to 4\.0 mm"):
        read(edit(series, change))


def two_phases(folder: Path) -> None:
    for k, file in enumerate(in_order(folder)):
        dataset = pydicom.dcmread(file)
        dataset.PixelData = (dataset.pixel_array // 2).tobytes()
        dataset.SOPInstanceUID = generate_uid()
        dataset.save_as(folder / f"phase{k}.dcm")


def two_patients(folder: Path) -> None:
    add(folder, "other.dcm", PatientID="ANOTHER", SeriesInstanceUID="1.2.3")


def with_(**elements: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder, put(**elements))


def axes(*orientation: float) -> Callable[[Path], object]:
    def change(dataset: Dataset, index: int) -> None:
        dataset.ImageOrientationPatient = list(orientation)
        dataset.ImagePositionPatient = list(0.7 * index * np.cross(orientation[:3], orientation[3:]))

    return lambda folder: edit(folder, change)


REFUSED = {
    "two phases at the same places": (two_phases, "several different images at 40 places"),
    "two patients": (two_patients, "images of several patients"),
    "no positions": (without("ImagePositionPatient"), "without ImagePositionPatient or ImageOrientationPatient"),
    "no orientation": (without("ImageOrientationPatient"), "without ImagePositionPatient or ImageOrientation"),
    "no spacing": (without("PixelSpacing"), "without PixelSpacing in mm"),
    "a comma in the spacing": (raw("PixelSpacing", b"0,7\\0,7 "), "says PixelSpacing in something else than 2 numbers"),
    "no spacing at all": (with_(PixelSpacing=[0, 0]), "without PixelSpacing in mm"),
    "slope 0": (with_(RescaleSlope=0), "RescaleSlope 0"),
    "MR": (with_(Modality="MR"), "not of modality CT (40)"),
    "MR class": (with_(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "MR Image Storage (40)"),
    "coronal": (axes(1, 0, 0, 0, 0, -1), "holds only coronal images"),
    "sagittal": (axes(0, 1, 0, 0, 0, -1), "holds only sagittal images"),
    "huge": (with_(Rows=65535, Columns=65535), "which no chest CT has (40)"),
    "colour": (with_(SamplesPerPixel=3), "colour picture (40)"),
    "no axes": (with_(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "an orientation that cannot be"),
    "far apart": (with_(PixelSpacing=[90, 90]), "is not plausible"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_scan_is_refused_in_words(series: Path, case: str):
    change, cause = REFUSED[case]
    change(series)
    with pytest.raises(ScanError) as caught:
        read(series)
    assert cause in str(caught.value)
    assert "ANOTHER" not in str(caught.value)


@pytest.mark.parametrize("step, said", [(0.625, 0.625), (1.25, 1.25), (0.7, 0.7)])
def test_positions_written_in_tenths_of_a_millimetre_are_even(series: Path, step: float, said: float):
    def change(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [0, 0, f"{-step * index:.1f}"]

    assert read(edit(series, change)).spacing[0] == pytest.approx(said, rel=0.02)


def test_what_a_scan_with_a_gap_covers_is_from_its_first_to_its_last_slice(series: Path):
    for file in in_order(series)[10:30]:
        file.unlink()
    assert "covers only 28 mm of the body" in read(series, GAPS).remarks


@pytest.mark.parametrize("reading", [Reading(), GAPS], ids=["plain", "allow-gaps"])
@pytest.mark.parametrize("z", ["5000", "1e300"])
def test_a_slice_metres_away_is_refused(series: Path, z: str, reading: Reading):
    first = in_order(series)[0]
    dataset = pydicom.dcmread(first)
    dataset.ImagePositionPatient = [0, 0, z]
    dataset.save_as(first)
    if z == "5000":
        with pytest.raises(ScanError, match=r"its slices lie over 5\.0 m; mend"):
            read(series, reading)
    else:
        assert "lies more than 10 m from" in read(series, reading).remarks[0]


def test_a_strict_reading_is_not_advised_what_excludes_it(series: Path):
    in_order(series)[20].unlink()
    with pytest.raises(ScanError, match="say --allow-gaps instead of --strict"):
        read(series, Reading(strict=True))


def test_a_patients_id_may_have_blanks_around_it(series: Path):
    edit(series, put(PatientID=" AB 1"), slice(0, 20))
    edit(series, put(PatientID="AB 1"), slice(20, 40))
    np.testing.assert_array_equal(read(series).voxels, HU)


# Real scans


def test_real_dicom_equals_its_nifti(shared: Path):
    pairs = (("cip_ct64/dicom", "cip_ct64/ct-64.nii.gz"), ("ibsi_phantom/dicom/image", "ibsi_phantom/nifti/image"))
    for dicom, nifti in pairs:
        settings = Preprocessing(width=64)
        expected = preprocess(read(shared / nifti), settings)
        np.testing.assert_array_equal(preprocess(read(shared / dicom), settings), expected)


def test_real_series_has_the_spacing_of_its_positions_and_not_its_thickness(shared: Path):
    scan = read(shared / "lungfcp_0006_15slices")
    assert scan.spacing[0] == pytest.approx(1.0)  # SliceThickness says 2
    assert "covers only 15 mm of the body" in scan.remarks


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
@pytest.mark.parametrize("patient", ["A048383", "A098752"])
def test_real_reformats_are_refused(shared: Path, patient: str, plane: str):
    folder = shared / "covid_ny_sbu_single_slices" / patient / plane
    for file in folder.iterdir():
        with pytest.raises(ScanError, match=f"only {plane} images"):
            read(file)
    with pytest.raises(ScanError, match="several patients or studies"):  # two dates
        read(folder)
