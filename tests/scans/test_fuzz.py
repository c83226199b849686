"""Mutated files of every form: the reader gives a scan or raises the project's own error, and never hangs or fills memory.

Each form gets a few hundred files here; ``COV3D_FUZZ=20000 pytest tests/scans/test_fuzz.py`` tries more.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_volume, write_nifti, write_slices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cov3d import Preprocessing, read
from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.forms import write_dicom, write_mha, write_nrrd
from cov3d.scans.preprocess import prepare

EXAMPLES = int(os.environ.get("COV3D_FUZZ", "150"))
HU = (smooth_volume(8, 16).astype(np.int16) * 6 - 1000).clip(-1000, 500).astype(np.int16)
SMALL = Preprocessing(width=16)
MEMORY = 2**30  # bytes that a mutated file of some kilobytes may take


def nifti(path: Path, packed: bool) -> Path:
    return write_nifti(path / ("scan.nii.gz" if packed else "scan.nii"), HU)


def zipped(path: Path) -> Path:
    folder = write_dicom(path / "series", HU, (2.0, 1.0, 1.0))
    with zipfile.ZipFile(path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    shutil.rmtree(folder)
    return path / "scan.zip"


# Each writes a scan; one of its files is then mutated.
FORMS = {
    "JPEG": lambda path: write_slices(path / "scan", smooth_volume(12, 16), suffix=".jpg"),
    "PNG": lambda path: write_slices(path / "scan", smooth_volume(12, 16)),
    "NIfTI": lambda path: nifti(path, packed=False),
    "NIfTI, packed": lambda path: nifti(path, packed=True),
    "DICOM": lambda path: write_dicom(path / "series", HU, (2.0, 1.0, 1.0)),
    "DICOM in a zip": zipped,
    "MetaImage": lambda path: write_mha(path / "scan.mha", HU, (2.0, 1.0, 1.0)),
    "NRRD": lambda path: write_nrrd(path / "scan.nrrd", HU, (2.0, 1.0, 1.0)),
}

mutation = st.tuples(
    st.sampled_from(("flip", "cut", "insert", "overwrite", "repeat", "digits")),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),  # within the header, where one byte means most
    st.binary(min_size=1, max_size=9),
)


def mutate(data: bytes, changes: list[tuple[str, float, bool, bytes]]) -> bytes:
    for kind, where, early, chunk in changes:
        place = int(where * (min(len(data), 600) if early else len(data)))
        if kind == "flip" and data:
            data = data[:place] + bytes([data[place] ^ (1 << chunk[0] % 8)]) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place]
        elif kind == "insert":
            data = data[:place] + chunk + data[place:]
        elif kind == "overwrite":
            data = data[:place] + chunk + data[place + len(chunk) :]
        elif kind == "repeat":
            data = data[:place] + data[place : place + 64] * (chunk[0] % 5) + data[place:]
        elif kind == "digits":  # as large numbers in text headers are
            data = data[:place] + b"9" * (chunk[0] % 12) + data[place:]
    return data


@pytest.fixture(scope="module", params=FORMS)
def scan(request: pytest.FixtureRequest) -> tuple[Path, list[Path]]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    path = FORMS[request.param](folder)
    yield path, sorted(path.iterdir()) if path.is_dir() else [path]
    shutil.rmtree(folder)


def test_a_mutated_file_is_a_scan_or_an_error_of_our_own(scan: tuple[Path, list[Path]]):
    path, files = scan
    whole = [file.read_bytes() for file in files]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=10_000,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.integers(0, len(files) - 1), st.lists(mutation, min_size=1, max_size=4))
    def try_one(index: int, changes: list[tuple[str, float, bool, bytes]]) -> None:
        files[index].write_bytes(mutate(whole[index], changes))
        try:
            tensor, _ = prepare(read(path, Reading(allow_gaps=True)), SMALL)
            assert tensor.shape == (1, *SMALL.shape)
        except ScanError as error:
            assert error.cause
        finally:
            files[index].write_bytes(whole[index])

    try_one()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY
