"""Every form a scan comes in gives the same tensor; a folder is one scan or nobody can say which."""

from __future__ import annotations

import itertools
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import write_nifti, write_slices

from cov3d import Preprocessing, preprocess, read
from cov3d.chest import draw
from cov3d.errors import ScanError
from cov3d.forms import WINDOW, write_dicom, write_jpeg, write_mha, write_nrrd
from cov3d.scans.read import find_scans

SETTINGS = Preprocessing(width=48)
CHEST = draw(11, severity=2, size=64, slices=40)  # heart left, spine back, lungs' tips at the head: no two axes alike
ORDERS = ["".join(codes) for axes in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*axes)]


def expected() -> np.ndarray:
    """The tensor by hand: windowed, in canonical orientation, written as lossless slices in float would be."""
    from cov3d.scans.scan import Scan

    return preprocess(Scan(Path("phantom"), list(CHEST.hu.astype(np.float32)), "HU"), SETTINGS)


def dicom(folder: Path, feet_first: bool) -> Path:
    """The same slices in either order of files, instance numbers and time."""
    write_dicom(folder, CHEST.hu, CHEST.spacing, seed=3)
    files = sorted(folder.iterdir(), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))
    for number, file in enumerate(files if feet_first else files[::-1]):
        dataset = pydicom.dcmread(file)
        dataset.InstanceNumber = number + 1
        dataset.save_as(folder / f"IM{number:03d}")
        file.unlink()
    return folder


def nifti(path: Path, codes: str) -> Path:
    return write_nifti(path / "scan.nii", CHEST.hu, CHEST.spacing, codes)


FORMS = {
    "DICOM head first": lambda path: dicom(path / "d", feet_first=False),
    "DICOM feet first": lambda path: dicom(path / "d", feet_first=True),
    "MetaImage": lambda path: write_mha(path / "scan.mha", CHEST.hu, CHEST.spacing),
    "NRRD": lambda path: write_nrrd(path / "scan.nrrd", CHEST.hu, CHEST.spacing),
    **{f"NIfTI {codes}": partial(nifti, codes=codes) for codes in ORDERS},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_orientation_gives_the_same_tensor(tmp_path: Path, form: str):
    scan = read(FORMS[form](tmp_path))
    assert (scan.unit, scan.remarks) == ("HU", ())
    assert scan.spacing == pytest.approx(CHEST.spacing, rel=1e-3)
    np.testing.assert_array_equal(preprocess(scan, SETTINGS), expected())


def test_jpeg_slices_give_it_within_their_loss(tmp_path: Path):
    tensor = preprocess(read(write_jpeg(tmp_path / "j", CHEST.hu, CHEST.spacing)), SETTINGS)
    difference = np.abs(tensor.astype(int) - expected())
    assert (np.percentile(difference, 99) <= 6, difference.mean() < 1.5) == (True, True)


def test_lossless_slices_give_it_within_rounding(tmp_path: Path):
    low, high = WINDOW
    grey = np.rint(np.clip((CHEST.hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    tensor = preprocess(read(write_slices(tmp_path / "p", grey)), SETTINGS)
    difference = np.abs(tensor.astype(int) - expected())
    # 8-bit resizing cuts at black and white between its passes; there alone is more than rounding.
    assert (np.percentile(difference, 99) <= 1, difference.max() <= 8) == (True, True)


def test_the_phantom_is_like_none_of_its_reflections():
    tensor = expected()[0].astype(int)
    for axes in (0, 1, 2, (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        assert np.abs(np.flip(tensor, axes) - tensor).mean() > 10
    assert np.abs(tensor[:, ::2].transpose(1, 0, 2)[:, :24] - tensor[:, ::2][:24]).mean() > 10


# One folder, one scan


def slices(folder: Path) -> None:
    write_slices(folder, np.zeros((3, 8, 8), np.uint8))


def volume(name: str):
    return lambda folder: write_nifti(folder / name, CHEST.hu[:12])


def images(folder: Path) -> None:
    write_dicom(folder / "made", CHEST.hu[:12], CHEST.spacing)
    for file in (folder / "made").iterdir():
        shutil.move(file, folder / file.name)
    (folder / "made").rmdir()


@pytest.mark.parametrize("pair", list(itertools.combinations((slices, images, volume("a.nii"), volume("b.nii.gz")), 2)))
def test_a_folder_with_two_scans_is_refused(tmp_path: Path, pair):
    for write in pair:
        (tmp_path / "scan").mkdir(exist_ok=True)
        write(tmp_path / "scan")
    with pytest.raises(ScanError, match="holds several scans, and nobody can say which is meant"):
        read(tmp_path / "scan")


def test_a_folder_with_one_volume_is_that_volume(tmp_path: Path):
    path = write_nifti(tmp_path / "scan" / "ct.nii.gz", CHEST.hu)
    (tmp_path / "scan" / "report.txt").write_text("well")
    np.testing.assert_array_equal(read(tmp_path / "scan").voxels, CHEST.hu)
    assert find_scans(tmp_path) == [path]


def test_a_file_beside_another_of_its_name_is_the_one_that_is_named(tmp_path: Path):
    plain = write_nifti(tmp_path / "a.nii", CHEST.hu)
    packed = write_nifti(tmp_path / "a.nii.gz", CHEST.hu[::-1].copy())
    np.testing.assert_array_equal(read(plain).voxels, CHEST.hu)
    np.testing.assert_array_equal(read(packed).voxels, CHEST.hu[::-1])


@pytest.mark.parametrize("name, said", [
    ("scans.7z", "is an archive; unpack it first"),
    ("scans.tar.gz", "is an archive; unpack it first"),
    ("scan.hdr", "no form of scan that cov3d reads"),
    ("scan.nii.bz2", "no form of scan that cov3d reads"),
    ("report.pdf", "no form of scan that cov3d reads"),
])  # fmt: skip
def test_what_is_not_read_is_said_to_be_so(tmp_path: Path, name: str, said: str):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ScanError, match=said):
        read(tmp_path / name)


def test_a_path_that_is_not_there_is_said_to_be_so(tmp_path: Path):
    with pytest.raises(ScanError, match="is not there"):
        read(tmp_path / "scan.nii.gz")
