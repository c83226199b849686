"""DICOM as hospitals have it: order and spacing from positions only, whatever else lies in the folder."""

from __future__ import annotations

import copy
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import smooth_volume
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    XRayRadiationDoseSRStorage,
    generate_uid,
)

from cov3d import Preprocessing, preprocess, read
from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.forms import write_dicom
from cov3d.scans import dicom_pixels
from cov3d.scans.read import ask_scans, find_scans, scan_files

SPACING = (0.7, 0.9, 0.8)
GAPS = Reading(allow_gaps=True)


def hounsfield(slices: int = 40, side: int = 24) -> np.ndarray:
    """HU from −1000 to 500, no two slices alike, rows fewer than columns."""
    return (smooth_volume(slices, side)[:, : side - 6].astype(np.int16) * 6 - 1000).clip(-1000, 500).astype(np.int16)


HU = hounsfield()


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A good series of 40 slices, .7 mm apart."""
    return write_dicom(tmp_path / "series", HU, SPACING, seed=0)


def in_order(folder: Path) -> list[Path]:
    """The series' files from head to feet."""
    return sorted(folder.glob("*.dcm"), key=lambda file: -float(pydicom.dcmread(file).ImagePositionPatient[2]))


def edit(folder: Path, change: Callable[[Dataset, int], object], only: slice = slice(None)) -> Path:
    """Change the headers of a series, slice 0 at the head."""
    for index, file in list(enumerate(in_order(folder)))[only]:
        dataset = pydicom.dcmread(file)
        change(dataset, index)
        dataset.save_as(file)
    return folder


def put(**elements: object) -> Callable[[Dataset, int], object]:
    """A change that sets elements to the same value in every header."""

    def change(dataset: Dataset, index: int) -> None:
        for name, value in elements.items():
            setattr(dataset, name, value)

    return change


def add(folder: Path, name: str, index: int = 0, **elements: object) -> Path:
    """A further file like slice ``index``, with other elements and an identity of its own."""
    dataset = pydicom.dcmread(in_order(folder)[index])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for element, value in elements.items():
        setattr(dataset, element, value)
    dataset.save_as(folder / name)
    return folder / name


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


# Pixels


# What GDCM encodes, by its names.
GDCM = {
    JPEGLossless: "JPEGLosslessProcess14",
    JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    JPEG2000Lossless: "JPEG2000Lossless",
}


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless,
     JPEGLSLossless, JPEGLossless, JPEGLosslessSV1],
    ids=lambda uid: uid.keyword,
)  # fmt: skip
def test_every_transfer_syntax_gives_the_same_voxels(series: Path, syntax: pydicom.uid.UID):
    for file in series.glob("*.dcm"):
        rewrite(file, syntax)
    np.testing.assert_array_equal(read(series).voxels, HU)


def rewrite(file: Path, syntax: pydicom.uid.UID) -> None:
    """Store a file's pixels in another transfer syntax: by pydicom where it can, else by GDCM's own encoder."""
    if syntax in GDCM:
        import gdcm

        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, GDCM[syntax])))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == syntax
        return
    dataset = pydicom.dcmread(file)
    if syntax.is_compressed and not syntax.is_deflated:
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(file, dataset, little_endian=syntax != ExplicitVRBigEndian,
                     implicit_vr=syntax == ImplicitVRLittleEndian)  # fmt: skip


def test_a_transfer_syntax_that_cannot_be_decoded_is_named(series: Path):
    for file in series.glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
        dataset.save_as(file)
    with pytest.raises(ScanError, match=r"High-Throughput JPEG 2000 .* cannot be decoded here"):
        read(series)


def test_monochrome1_is_not_inverted(series: Path):
    np.testing.assert_array_equal(read(edit(series, put(PhotometricInterpretation="MONOCHROME1"))).voxels, HU)


def test_each_slice_has_its_own_rescale(series: Path):
    def change(dataset: Dataset, index: int) -> None:
        hu = HU[index].astype(int)
        dataset.RescaleSlope, dataset.RescaleIntercept = 2 if index % 2 else 1, -1024 - 2 * index
        stored = (hu - int(dataset.RescaleIntercept)) // int(dataset.RescaleSlope)
        dataset.PixelData = stored.astype(np.uint16).tobytes()

    np.testing.assert_allclose(read(edit(series, change)).voxels, HU, atol=1)


def test_signed_and_unsigned_pixels_with_other_bits_above_them(series: Path):
    def signed(dataset: Dataset, index: int) -> None:
        dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0
        stored = (HU[index].astype(np.int16) & 0x0FFF) | 0x5000  # an overlay in the high bits
        dataset.PixelData = stored.astype(np.uint16).tobytes()

    def unsigned(dataset: Dataset, index: int) -> None:
        dataset.PixelData = ((HU[index] + 1024).astype(np.uint16) | 0xA000).tobytes()

    for name, change in (("signed", signed), ("unsigned", unsigned)):
        folder = edit(Path(shutil.copytree(series, series.with_name(name))), change)
        np.testing.assert_array_equal(read(folder).voxels, HU)


@pytest.mark.parametrize("padding", [-2000, -3024, 63536])
def test_padding_is_air(series: Path, padding: int):
    signed = padding < 0

    def change(dataset: Dataset, index: int) -> None:
        stored = HU[index].astype(int) + (0 if signed else 1024)
        stored[:3] = padding
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), 0 if signed else -1024
        dataset.PixelPaddingValue = padding
        dataset["PixelPaddingValue"].VR = "SS" if signed else "US"
        dataset.PixelData = stored.astype(np.int16 if signed else np.uint16).tobytes()

    scan = read(edit(series, change))
    expected = HU.astype(float)
    expected[:, :3] = -3024
    np.testing.assert_array_equal(scan.voxels, expected)
    assert scan.remarks == ("covers only 28 mm of the body",)


def enhanced(series: Path, path: Path, order: np.ndarray) -> Path:
    """The same series as one file of many frames, in any order."""
    files = in_order(series)
    first = pydicom.dcmread(files[0])
    whole = copy.deepcopy(first)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    whole.NumberOfFrames = len(files)
    shared, measures, plane, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, 5
    plane.ImageOrientationPatient = first.ImageOrientationPatient
    values.RescaleSlope, values.RescaleIntercept = 1, -1024
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [values]
    whole.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = pydicom.dcmread(files[index]).ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = frames
    whole.PixelData = b"".join(pydicom.dcmread(files[index]).PixelData for index in order)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(whole, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save_as(path)
    return path


def test_a_file_of_many_frames_is_the_same_scan(series: Path, tmp_path: Path):
    path = enhanced(series, tmp_path / "enhanced" / "IM0", np.random.default_rng(1).permutation(40))
    for named in (path.parent, path):
        scan = read(named)
        np.testing.assert_array_equal(scan.voxels, HU)
        assert (scan.spacing, scan.remarks) == (pytest.approx(SPACING), read(series).remarks)


# What else lies in the folder


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


def two_phases(folder: Path) -> None:
    for k, file in enumerate(in_order(folder)):
        dataset = pydicom.dcmread(file)
        dataset.PixelData = (dataset.pixel_array // 2).tobytes()
        dataset.SOPInstanceUID = generate_uid()
        dataset.save_as(folder / f"phase{k}.dcm")


def two_patients(folder: Path) -> None:
    add(folder, "other.dcm", PatientID="ANOTHER", SeriesInstanceUID="1.2.3")


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: edit(folder, lambda dataset, index: [delattr(dataset, name) for name in names])


def with_(**elements: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder, put(**elements))


def raw(name: str, value: bytes) -> Callable[[Path], object]:
    """An element with bytes that pydicom would not write."""

    def change(dataset: Dataset, index: int) -> None:
        del dataset[name]
        tag = pydicom.tag.Tag(name)
        dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(value), value, 0, False, True)

    return lambda folder: edit(folder, change)


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
    "a comma in the spacing": (raw("PixelSpacing", b"0,7\\0,7 "), "has a PixelSpacing that is not 2 numbers"),
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


def test_a_series_whose_slices_differ_in_size_is_refused(series: Path):
    edit(series, put(PixelSpacing=[0.5, 0.5]), slice(30, 40))
    with pytest.raises(ScanError, match="10 images of its series differ from the other 30 in size or spacing"):
        read(series)


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


def test_no_rescale_is_said(series: Path):
    scan = read(without("RescaleSlope", "RescaleIntercept")(series))
    assert "no RescaleSlope" in scan.remarks[1]
    assert any("do not look like HU" in remark for remark in scan.remarks)


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


def test_more_than_a_tenth_damaged_fails_the_scan(series: Path):
    for file in in_order(series)[:5]:
        file.write_bytes(b"")
    with pytest.raises(ScanError, match="5 of 40 slices cannot be read"):
        read(series)


def test_a_sequence_nested_without_end_is_an_error_and_no_crash(series: Path):
    deep = Dataset()
    for _ in range(200):
        outer = Dataset()
        outer.ReferencedStudySequence = [deep]
        deep = outer
    edit(series, put(ReferencedStudySequence=[deep]), slice(5))
    assert len(read(series).slices) >= 35


# Where files lie


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


@pytest.mark.parametrize("content", [b"", bytes(5000)], ids=["empty", "zeros"])
def test_a_lost_file_without_an_ending_is_missed(series: Path, content: bytes):
    renamed(series, NAMES["no extension"])
    last = max(series.iterdir(), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))
    last.write_bytes(content)
    assert "1 file unreadable and left out" in read(series).remarks[0]
    with pytest.raises(ScanError, match="--strict refuses"):
        read(series, Reading(strict=True))


def test_half_a_scan_without_geometry_is_no_scan(series: Path):
    edit(series, lambda dataset, index: delattr(dataset, "PixelSpacing"), slice(24, 40))
    with pytest.raises(ScanError, match=r"16 of 40 slices cannot be read .* is without PixelSpacing"):
        read(series)


def test_two_acquisitions_between_each_other_are_not_interleaved(series: Path):
    def change(dataset: Dataset, index: int) -> None:
        dataset.AcquisitionNumber = index % 2

    scan = read(edit(series, change))
    np.testing.assert_array_equal(scan.voxels, HU[::2])
    assert scan.spacing[0] == pytest.approx(1.4)
    assert "image of another acquisition (20)" in scan.remarks[0]


def test_two_studies_in_a_folder_are_not_guessed_from(series: Path):
    edit(series, put(StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.3"), slice(0, 5))
    with pytest.raises(ScanError, match="several patients or studies"):
        read(series)


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


def test_slices_beside_dicom_are_ambiguous(series: Path):
    (series / "0.jpg").write_bytes(b"")
    with pytest.raises(ScanError, match="holds several scans"):
        read(series)


def test_an_unlisted_ending_is_looked_into(series: Path):
    """Half of the files as one archive names them, half as another."""
    for index, file in enumerate(sorted(series.glob("*.dcm"))):
        file.rename(file.with_suffix((".dcm", ".CT", ".bak", ".img")[index % 4]))
    np.testing.assert_array_equal(read(series).voxels, HU)
    next(series.glob("*.CT")).write_bytes(b"")
    with pytest.raises(ScanError, match=r"\.CT is empty"):
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


# Bounds


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


# Values that need care


def test_images_with_and_without_a_rescale_are_not_mixed(series: Path):
    edit(series, lambda dataset, index: delattr(dataset, "RescaleIntercept"), slice(0, 7))
    with pytest.raises(ScanError, match="33 of its 40 images have a RescaleSlope and RescaleIntercept, and the others"):
        read(series)


def test_an_intercept_that_is_no_number_is_not_taken_for_none(series: Path):
    raw("RescaleIntercept", b"minus a thousand")(series)
    with pytest.raises(ScanError, match="has a RescaleIntercept that is not a number"):
        read(series)


def test_only_what_is_missing_of_the_rescale_is_said(series: Path):
    said = "; ".join(read(without("RescaleSlope")(series)).remarks)
    assert "no RescaleSlope; values" in said
    assert "RescaleIntercept" not in said


def test_values_kept_in_the_upper_bits_are_refused(series: Path):
    """pydicom decodes as if HighBit were BitsStored − 1, whatever the header says."""
    edit(series, put(BitsStored=12, HighBit=15))
    with pytest.raises(ScanError, match="keeps its values in other bits than the lowest"):
        read(series)


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


def test_of_two_series_as_long_the_measured_one_is_taken(series: Path):
    other = write_dicom(series.with_name("other"), HU[::-1], SPACING, seed=1)
    first = pydicom.dcmread(in_order(series)[0])
    names = {name: getattr(first, name) for name in ("PatientID", "StudyInstanceUID")}
    for uid in ("1.2.3", "9.9.9"):  # whatever comes first by its UID
        edit(other, put(**names, SeriesInstanceUID=uid, ImageType=["DERIVED", "SECONDARY", "AXIAL"]))
        for file in other.iterdir():
            shutil.copy(file, series)
        np.testing.assert_array_equal(read(series).voxels, HU)


def test_a_cut_copy_does_not_stand_in_for_a_whole_one(series: Path):
    file = in_order(series)[7]
    for name in ("0.dcm", "z.dcm"):  # before and after it
        (series / name).write_bytes(file.read_bytes()[:-200])
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


def test_a_step_to_the_side_that_stays_is_said(series: Path):
    def change(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [4.0 if index >= 20 else 0.0, 0, -20.0 * index]

    with pytest.raises(ScanError, match=r"moved sideways by up to 4\.0 mm"):
        read(edit(series, change))


def test_a_gap_names_the_file_that_may_be_missing_there(series: Path):
    file = in_order(series)[20]
    file.write_bytes(b"")
    with pytest.raises(ScanError, match=rf"1 slice missing: .*; 1 file unreadable and left out \({file.name} is empty"):
        read(series)


def test_shares_from_0_to_1_are_brought_to_grey(series: Path):
    def change(dataset: Dataset, index: int) -> None:
        stored = (HU[index].astype(int) + 1000) * 4
        dataset.PixelData = stored.astype(np.uint16).tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.RescaleSlope, dataset.RescaleIntercept = 16, 15, 1 / 6000, 0

    scan = read(edit(series, change), Reading(range="grey"))
    assert scan.unit == "grey"
    np.testing.assert_allclose(scan.voxels, (HU.astype(float) + 1000) / 1500 * 255, atol=0.1)


def test_many_frames_twice_are_compared_file_by_file(series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "enhanced"
    enhanced(series, folder / "IM0", np.arange(40))
    shutil.copy(folder / "IM0", folder / "IM1")
    parsed = []
    whole = dicom_pixels._whole_dataset
    monkeypatch.setattr(dicom_pixels, "_whole_dataset", lambda part: parsed.append(part.name) or whole(part))
    scan = read(folder)
    assert parsed[:2] == ["IM0", "IM1"]
    assert len(parsed) == 3  # and once to look at the values
    assert "set aside: duplicate (40)" in scan.remarks


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


def test_a_real_scan_without_an_intercept_is_in_hu_all_the_same(shared: Path):
    for file in sorted((shared / "covid_ny_sbu_single_slices").glob("*/axial/*.dcm")):
        scan = read(file)
        assert -3100 <= scan.voxels.min() <= -1000
        assert scan.remarks == ("only 1 slice: the volume is constant along depth",)
