"""Nothing of a patient leaves a header: a name planted in every text of it is in nothing that cov3d writes or says."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

import cov3d
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


def run(commands: Sequence[Sequence[object]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> bytes:
    """What cov3d says to commands, each of which answers for some scans at least."""
    from cov3d.cli import app

    said = b""
    for command in commands:
        words = [str(word) for word in command]
        monkeypatch.setattr(sys, "argv", ["cov3d", *words])  # a run's config.json tells the command
        with pytest.raises(SystemExit) as ended:
            app(words)
        out = capfd.readouterr()
        said += (out.out + out.err).encode()
        assert ended.value.code in (0, 3), (command, out.err[-2000:])
    return said


def assert_untold(said: bytes, study: Path) -> None:
    """Nothing of a header was said, or is in a file beside the study."""
    written = [file for file in study.parent.rglob("*") if file.is_file() and study not in file.parents]
    assert len(written) > 20
    for word in (*PLANTED, b"1937-04-21"):
        assert word not in said
        assert [file for file in written if word in file.read_bytes()] == []


TINY = ("--width", 32, "--base-width", 4, "--penultimate", 8, "--epochs", 1, "--workers", 2, "--device", "cpu")


def test_no_name_id_date_or_uid_of_a_header_is_written_or_said(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    commands = (
        # ["check", study, "--json"],
        # ["check", study],
        ["preprocess", study, "--width", "32", "--allow-gaps"],
        ["preprocess", study, "--width", "32", "--series", "all", "--cache", "second"],
        ["train", study, "--task", "presence", *TINY],
        ["infer", study, "--series", "all", "--device", "cpu"],
        ["evaluate", "predictions.csv", study],
    )
    said = run(commands, monkeypatch, capfd)
    scan = next((study / "train" / "covid" / "scan_1").iterdir()).read_bytes()
    assert [word for word in PLANTED if word not in scan] == []  # it was there to be told
    assert (tmp_path / "predictions.csv").read_bytes().count(b"\n") > 15
    assert_untold(said, study)


def of_one_series(folder: Path, hu: np.ndarray, patient: str) -> Path:
    planted_dicom(folder, hu, patient)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID = UID
        dataset.save_as(file)
    return folder


def test_a_series_that_is_named_by_its_uid_is_written_as_a_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    study = tmp_path / "study"
    for k in range(8):
        place = study / ("train", "validation")[k % 2] / ("covid", "non-covid")[k // 2 % 2]
        of_one_series(place / f"scan_{k}", draw(k, k % 2, 32, 12).hu, str(k))
    planted_dicom(study / "train" / "covid" / "other", draw(9, 1, 32, 12).hu, "9")  # it fails: the UID does choose
    monkeypatch.chdir(tmp_path)
    commands = (
        ["preprocess", study, "--width", 32, "--series", UID],
        ["train", study, "--task", "presence", *TINY, f"--series={UID}"],
        ["train", study, "--task", "presence", *TINY, "--series", UID, "--output-dir", "again"],
        ["infer", study, "--series", UID, "--device", "cpu", "--model", "outputs"],
        ["infer", study, "--series", UID, "--device", "cpu", "--model", "outputs", "--resume"],
        ["evaluate", "predictions.csv", study],
    )
    said = run(commands, monkeypatch, capfd)
    assert b"8 made, 0 kept, 1 failed, 9 asked" in said
    assert said.count(b"8 answered, 1 failed, 9 asked") == 2
    assert_untold(said, study)
    (settings,) = (json.loads(file.read_text()) for file in tmp_path.glob("cache/*/settings.json"))
    config, again = (json.loads(Path(f, "config.json").read_text()) for f in ("outputs/presence", "again"))
    journal = json.loads(Path("predictions.csv.json").read_text())
    hashed = "sha256:" + hashlib.sha256(UID.encode()).hexdigest()[:16]
    assert {settings["series"], config["reading"]["series"], journal["series"]} == {hashed}
    assert config["command"][-1] == f"--series={hashed}"
    assert again["command"][-4:-2] == ["--series", hashed]


def test_only_jobs_for_workers_hold_settings_as_they_were_said():
    """Whoever writes a reading calls ``recorded``. A model file holds none."""
    calls = set()
    for file in Path(cov3d.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("to_dict", "config.to_dict"):
                calls.add((file.name, ast.unparse(node)))
    readings = {(file, call) for file, call in calls if file != "model.py"}
    assert {file for file, _ in readings} <= {"entry.py", "tensors.py", "check.py"}
    assert {call for file, call in calls - readings} == {"to_dict(settings)", "to_dict(preprocessing)"}
