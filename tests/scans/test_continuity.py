"""Slices that do not belong where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_slices
from PIL import Image

from cov3d import Preprocessing, read
from cov3d.chest import draw
from cov3d.scans.preprocess import prepare

SETTINGS = Preprocessing(width=64)


def grey(seed: int, slices: int = 40) -> np.ndarray:
    hu = draw(seed, seed % 5, 96, slices).hu
    return np.rint(np.clip((hu + 1150) / 1500 * 255, 0, 255)).astype(np.uint8)


def odd(folder: Path) -> list[str]:
    return [remark for remark in prepare(read(folder), SETTINGS)[1].remarks if "out of keeping" in remark]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_of_whole_scans(tmp_path: Path, seed: int):
    assert odd(write_slices(tmp_path / "scan", grey(seed))) == []


def test_nothing_is_said_of_real_scans(shared: Path):
    for scan in ("jpg_stacks/lung2", "cip_ct64/dicom", "ibsi_phantom/dicom", "lungfcp_0006_15slices", "totalseg"):
        path = shared / scan
        for one in [path] if scan != "totalseg" else sorted(path.iterdir()):
            assert odd(one) == [], one


def test_a_slice_of_another_scan_is_named(tmp_path: Path):
    volume = grey(0)
    volume[17] = grey(1)[30]
    assert odd(write_slices(tmp_path / "scan", volume)) == [
        "1 slice out of keeping with the neighbours (from the head: 17); damaged?"
    ]


def test_a_slice_half_spoilt_by_one_flipped_bit_is_named(tmp_path: Path):
    """A damage that Pillow decodes without a word."""
    folder = write_slices(tmp_path / "scan", grey(2), suffix=".jpg")
    whole = np.asarray(Image.open(folder / "20.jpg")).astype(int)
    data = (folder / "20.jpg").read_bytes()
    for place in range(700, len(data) - 2):
        damaged = bytearray(data)
        damaged[place] ^= 64
        (folder / "20.jpg").write_bytes(damaged)
        try:
            spoilt = np.abs(np.asarray(Image.open(folder / "20.jpg")) - whole).mean()
        except Exception:
            continue
        if spoilt > 15:
            break
    assert "(from the head: 20)" in odd(folder)[0]
