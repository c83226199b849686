"""Nothing of a patient leaves a header: a name planted in every text of it is in nothing that cov3d writes or says."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

from cov3d.chest import draw
from cov3d.forms import write_dicom, write_jpeg

NAME, DATE, UID = "DOE^JANE", "19370421", "1.2.826.987654321.123"
PLANTED = (b"DOE", b"JANE", b"19370421", b"987654321")
# What each kind of text may hold.
VALUES = {
    **dict.fromkeys(("LO", "SH", "LT", "ST", "UT", "AE", "UC", "CS"), NAME.replace("^", " ")),
    **dict.fromkeys(("DA", "DT"), DATE),
    "PN": NAME,
    "UI": UID,
    "AS": "085Y",
}
# Elements that say what an image is; a name in them would make it no CT.
NEEDED = {"SOPClassUID", "Modality", "ImageType", "PhotometricInterpretation", "PixelData", "SeriesInstanceUID"}


def plant(dataset: Dataset, patient: str) -> None:
    """Put the name into every text element of a CT image, and into many that it may have besides."""
    for keyword in ("InstitutionName", "ReferringPhysicianName", "OperatorsName", "StudyDescription", "OtherPatientIDs",
                    "SeriesDescription", "ProtocolName", "PatientComments", "AccessionNumber", "StationName",
                    "PatientAddress", "ImageComments", "PatientBirthDate", "AcquisitionDate", "ContentDate",
                    "StudyDate", "DeviceSerialNumber", "RequestAttributesSequence", "KVP"):  # fmt: skip
        if keyword.endswith("Sequence"):
            item = Dataset()
            item.RequestedProcedureDescription = NAME
            setattr(dataset, keyword, [item])
        elif keyword not in dataset:
            setattr(dataset, keyword, "100" if keyword == "KVP" else "")
    for element in dataset:
        if element.keyword not in NEEDED and element.VR in VALUES:
            element.value = VALUES[element.VR]
    dataset.SeriesInstanceUID = f"{UID}.{patient}"
    dataset.PatientID = f"DOE-{patient}"
    dataset.add_new(0x00091010, "LO", NAME)  # a private element
    dataset.preamble = (NAME * 16).encode()


def planted_dicom(folder: Path, hu: np.ndarray, patient: str) -> Path:
    write_dicom(folder, hu, (6.0, 3.0, 3.0), seed=int(patient))
    for number, file in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(file)
        plant(dataset, patient)
        dataset.save_as(folder / f"{number}.dcm")
        file.unlink()
    return folder


def planted_nifti(path: Path, hu: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(hu, np.diag([3, 3, 6, 1]))
    image.header["descrip"], image.header["db_name"], image.header["aux_file"] = NAME, NAME, NAME
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", NAME.encode()))
    nib.save(image, path)
    return path


def planted_itk(path: Path, hu: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((3, 3, 6))
    image.SetMetaData("0010|0010", NAME)
    image.SetMetaData("PatientName", NAME)
    sitk.WriteImage(image, str(path))
    return path


def planted_jpeg(folder: Path, hu: np.ndarray) -> Path:
    from PIL import Image

    write_jpeg(folder, hu, (6.0, 3.0, 3.0))
    for file in folder.iterdir():
        image = Image.open(file)
        exif = image.getexif()
        exif[0x010E] = NAME  # ImageDescription
        image.save(file, exif=exif, comment=NAME.encode())
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Scans of every form with a name in them, some broken in every way that a message could quote."""
    root = tmp_path / "study"
    for k in range(6):
        label = "covid" if k % 2 else "non-covid"
        for split in ("train", "validation"):
            planted_dicom(
                root / split / label / f"scan_{k}", draw(k, k % 2, 32, 12).hu, str(k + 10 * (split == "train"))
            )
    hu = draw(9, 2, 32, 12).hu
    train = root / "train" / "covid"
    planted_nifti(train / "nifti.nii.gz", hu)
    planted_itk(train / "meta.mha", hu)
    planted_itk(train / "raw.nrrd", hu)
    planted_jpeg(train / "slices", hu)
    for k, damage in enumerate((cut, shuffled_text, no_geometry, wrong_syntax, mixed_patients)):
        damage(planted_dicom(train / f"broken_{k}", hu, str(30 + k)))
    broken = planted_nifti(train / "broken.nii", hu)
    data = bytearray(broken.read_bytes())
    data[70:72] = (999).to_bytes(2, "little")
    broken.write_bytes(data)
    (train / "broken.mha").write_bytes((train / "meta.mha").read_bytes().replace(b"MET_SHORT", b"DOE^JANE "))
    return root


def cut(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:1500])


def shuffled_text(folder: Path) -> None:
    """Where numbers are wanted, the name stands."""
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"-1024", b"DOE^J").replace(b"MONOCHROME2", b"DOE^JANE   "))


def no_geometry(folder: Path) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.ImagePositionPatient
        dataset.save_as(file)


def wrong_syntax(folder: Path) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = UID
        dataset.save_as(file, implicit_vr=False, little_endian=True)


def mixed_patients(folder: Path) -> None:
    for number, file in enumerate(folder.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.PatientID = f"DOE-{number}"
        dataset.save_as(file)


def test_no_name_id_date_or_uid_of_a_header_is_written_or_said(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    from cov3d.cli import app

    monkeypatch.chdir(tmp_path)
    tiny = ["--width", "32", "--base-width", "4", "--penultimate", "8", "--epochs", "1", "--workers", "2"]
    commands = (
        # ["check", study, "--json"],
        # ["check", study],
        ["preprocess", study, "--width", "32", "--allow-gaps"],
        ["preprocess", study, "--width", "32", "--series", "all", "--cache", "second"],
        ["train", study, "--task", "presence", *tiny, "--device", "cpu"],
        ["infer", study, "--series", "all", "--device", "cpu"],
        ["evaluate", "predictions.csv", study],
    )
    said = b""
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in command])
        out = capfd.readouterr()
        said += (out.out + out.err).encode()
        assert ended.value.code in (0, 3), (command, out.err[-2000:])
    written = [file for file in tmp_path.rglob("*") if file.is_file() and study not in file.parents]
    assert len(written) > 20
    scan = next((study / "train" / "covid" / "scan_1").iterdir()).read_bytes()
    assert [word for word in PLANTED if word not in scan] == []  # it was there to be told
    assert (tmp_path / "predictions.csv").read_bytes().count(b"\n") > 15
    for word in (*PLANTED, b"1937-04-21"):
        assert word not in said
        assert [file for file in written if word in file.read_bytes()] == []
