"""The pixels of DICOM: every encoding the same HU, and what is not HU never taken for it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hospital import HU, SPACING, edit, in_order, put, raw, without
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
)

from cov3d import read
from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.scans import dicom_pixels

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


def test_values_kept_in_the_upper_bits_are_refused(series: Path):
    """pydicom decodes as if HighBit were BitsStored − 1, whatever the header says."""
    edit(series, put(BitsStored=12, HighBit=15))
    with pytest.raises(ScanError, match="keeps its values in other bits than the lowest"):
        read(series)


@pytest.mark.parametrize("padding", [-2000, -3024, 63536, -1])
def test_padding_is_air(series: Path, padding: int):
    signed = padding < -1

    def change(dataset: Dataset, index: int) -> None:
        stored = HU[index].astype(int) + (0 if signed else 1024)
        stored[:3] = padding if padding != -1 else 65535
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), 0 if signed else -1024
        dataset.PixelPaddingValue = padding
        dataset["PixelPaddingValue"].VR = "SS" if padding < 0 else "US"
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


def test_acquisitions_among_frames_are_not_interleaved(series: Path, tmp_path: Path):
    path = enhanced(series, tmp_path / "enhanced" / "IM0", np.arange(40))
    dataset = pydicom.dcmread(path)
    for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.FrameAcquisitionNumber = index % 2
        frame.FrameContentSequence = [content]
    dataset.save_as(path)
    scan = read(path)
    np.testing.assert_array_equal(scan.voxels, HU[::2])
    assert "set aside: image of another acquisition (20)" in scan.remarks


def test_a_ct_image_of_several_frames_is_lost_in_words(series: Path):
    def change(dataset: Dataset, index: int) -> None:
        dataset.PixelData, dataset.NumberOfFrames = 3 * dataset.PixelData, 3

    edit(series, change, slice(0, 2))
    assert "holds several frames, and a CT Image has one" in read(series).remarks[0]


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


def test_no_rescale_is_said(series: Path):
    scan = read(without("RescaleSlope", "RescaleIntercept")(series))
    assert "no RescaleSlope" in scan.remarks[1]
    assert any("do not look like HU" in remark for remark in scan.remarks)


def test_only_what_is_missing_of_the_rescale_is_said(series: Path):
    said = "; ".join(read(without("RescaleSlope")(series)).remarks)
    assert "no RescaleSlope; values" in said
    assert "RescaleIntercept" not in said


def test_images_with_and_without_a_rescale_are_not_mixed(series: Path):
    edit(series, lambda dataset, index: delattr(dataset, "RescaleIntercept"), slice(0, 7))
    with pytest.raises(ScanError, match="33 of its 40 images have a RescaleSlope and RescaleIntercept, and the others"):
        read(series)


def test_an_intercept_that_is_no_number_is_not_taken_for_none(series: Path):
    raw("RescaleIntercept", b"minus a thousand")(series)
    with pytest.raises(ScanError, match="says RescaleIntercept in something else than a number"):
        read(series)


def test_shares_from_0_to_1_are_brought_to_grey(series: Path):
    def change(dataset: Dataset, index: int) -> None:
        stored = (HU[index].astype(int) + 1000) * 4
        dataset.PixelData = stored.astype(np.uint16).tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.RescaleSlope, dataset.RescaleIntercept = 16, 15, 1 / 6000, 0

    scan = read(edit(series, change), Reading(range="grey"))
    assert scan.unit == "grey"
    np.testing.assert_allclose(scan.voxels, (HU.astype(float) + 1000) / 1500 * 255, atol=0.1)


def test_a_real_scan_without_an_intercept_is_in_hu_all_the_same(shared: Path):
    for file in sorted((shared / "covid_ny_sbu_single_slices").glob("*/axial/*.dcm")):
        scan = read(file)
        assert -3100 <= scan.voxels.min() <= -1000
        assert scan.remarks == ("only 1 slice: the volume is constant along depth",)
