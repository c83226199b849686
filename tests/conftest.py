"""What the tests share: one small volume in every form, studies of it, and real data where they are there."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores; before torch and numpy are imported
for name in [name for name in os.environ if re.match("SLURM_|(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_", name)]:
    del os.environ[name]  # each test is alone, also where the suite runs inside a job

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cov3d.stopping import HEARD

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks on, also where the suite runs in a shell of srun."""
    monkeypatch.setattr("cov3d.launch._at_terminal", lambda: False)


@pytest.fixture
def listening() -> Iterator[None]:
    """The signals that ask for an end are heard; a shell's background job is deaf to some of them."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in HEARD}
    yield
    for number, old in before.items():
        signal.signal(number, old)


@pytest.fixture
def shared() -> Path:
    """Real scans beside the repository; tests that need them are skipped without."""
    if not SHARED.is_dir():
        pytest.skip("real scans (../shared/data) are not here")
    return SHARED


def smooth_volume(slices: int = 20, side: int = 48, seed: int = 0) -> np.ndarray:
    """Grey levels 0…255 ``(D, H, W)``: smooth, with no symmetry."""
    rng = np.random.default_rng(seed)
    d, h, w = np.meshgrid(*(np.linspace(0, 1, n) for n in (slices, side, side)), indexing="ij")
    volume = 90 + 60 * np.sin(3 * d + rng.normal()) + 50 * np.cos(5 * h + d) + 40 * np.sin(4 * w * d + 2 * h)
    volume += 60 * np.exp(-((w - 0.7) ** 2 + (h - 0.4) ** 2 + (d - 0.3) ** 2) / 0.02)
    return np.clip(volume, 0, 255).astype(np.uint8)


def write_slices(folder: Path, volume: np.ndarray, numbers=None, suffix: str = ".png", mode: str = "L") -> Path:
    """Write a volume as numbered slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in zip(numbers or range(len(volume)), volume, strict=True):
        Image.fromarray(pixels).convert(mode).save(folder / f"{number}{suffix}", quality=95)
    return folder


def write_nifti(path: Path, hu: np.ndarray, spacing=(2.0, 0.8, 0.8), codes: str = "IPL", **header) -> Path:
    """Write a canonical volume ``(D, H, W)`` as NIfTI whose array axes point to ``codes``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    affine = np.eye(4)
    affine[:3, :3] = np.array([directions[c] for c in "IPL"]).T * np.array(spacing)
    image = nib.Nifti1Image(hu, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    image = image.as_reoriented(turn)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def make_study(root: Path, per_class: int = 4, slices: int = 12, side: int = 32) -> Path:
    """A study in COV19-CT-DB's layout: lesions are brighter, so it can be learnt."""
    for split, table in (("train", "train"), ("validation", "val")):
        lines = ["Name;Category"]
        for presence in ("covid", "non-covid"):
            for k in range(per_class):
                severity = k % 4 + 1 if presence == "covid" else 0
                volume = smooth_volume(slices, side, seed=k + 10 * severity) // 2 + 25 * severity
                name = f"ct_scan_{k}" if k % 5 else f"ct_scan{k}"
                write_slices(root / split / presence / name, volume.astype(np.uint8))
                if severity and k != per_class - 1 - (per_class > 4):
                    lines.append(f"{name};{severity}")
        (root / f"{table}_partition_covid_categories.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A small study on disk."""
    return make_study(tmp_path / "study")
