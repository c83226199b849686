"""Pictures of augmented scans, and each step by itself."""

from __future__ import annotations

import pytest
import torch
from conftest import smooth_volume
from PIL import Image
from typer.testing import CliRunner

from cov3d.cli import app
from cov3d.config import PUBLISHED_AUGMENTATION
from cov3d.nets.inputs import as_input
from cov3d.training.show_batch import middle_planes, show_batch, show_steps, steps


def scan(slices: int = 20, side: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(smooth_volume(slices, side, seed))[None]


def test_a_step_changes_the_scan_and_only_a_larger_one_can_be_cropped():
    cached = scan()
    seen = steps(cached)
    assert torch.equal(seen.pop("the scan"), as_input(cached[0]))
    assert "crop" not in seen
    for name, changed in seen.items():
        assert not torch.equal(changed, as_input(cached[0])), name
    cropped = steps(cached, (16, 32, 32))["crop"]
    assert torch.equal(cropped, as_input(cached[0, 4:, :32, 8:]))


@pytest.mark.parametrize("family", sorted(PUBLISHED_AUGMENTATION))
def test_the_same_seed_draws_the_same_picture(family, tmp_path):
    scans = {f"scan {k}": scan(seed=k) for k in range(3)}
    first, again, other = (
        show_batch(tmp_path / f"{k}.png", scans, PUBLISHED_AUGMENTATION[family], seed=seed).read_bytes()
        for k, seed in enumerate((0, 0, 1))
    )
    assert first == again != other


def test_each_step_is_drawn(tmp_path):
    picture = Image.open(show_steps(tmp_path / "steps.png", scan(), (16, 32, 32)))
    assert picture.format == "PNG" and picture.width > 1000
    assert not list(tmp_path.glob(".tmp-*"))


def test_planes_lie_as_radiologists_call_them():
    volume = torch.zeros(4, 6, 8)
    volume[2, :, :], volume[:, 3, :] = 1, 2
    axial, coronal, sagittal = middle_planes(volume)
    assert axial.shape == (6, 8) and coronal.shape == (4, 8) and sagittal.shape == (4, 6)
    assert axial[0, 0] == 1 and coronal.unique().tolist() == [2] and sagittal[2, 0] == 1


def test_the_command_draws_a_studys_training_scans(study, tmp_path):
    words = ["show-batch", str(study), "--width", "32", "--architecture", "convnext-micro", "--depth", "32"]
    words += ["--crop-from", "40", "--scans", "3", "--device", "cpu", "--workers", "1"]
    words += ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "batch.png")]
    runs = [CliRunner().invoke(app, [*words, *further]) for further in ([], [], ["--overwrite", "--steps"])]
    assert [run.exit_code for run in runs] == [0, 2, 2]
    assert "say --overwrite" in runs[1].stderr and "so leave them out" in runs[2].stderr  # of --scans
    del words[words.index("--scans") : words.index("--scans") + 2]
    assert CliRunner().invoke(app, [*words, "--overwrite", "--steps"]).exit_code == 0
    assert Image.open(tmp_path / "batch.png").format == "PNG"
    assert [folder.name[:8] for folder in (tmp_path / "cache").iterdir()] == ["40x40x40"]


def test_a_scan_that_cannot_be_drawn_is_named(study, tmp_path):
    broken = sorted((study / "train" / "covid").iterdir())[0]
    for file in broken.iterdir():
        file.write_bytes(b"")
    words = ["show-batch", str(study), "--width", "16", "--workers", "1", "--cache", str(tmp_path / "cache")]
    run = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "batch.png")])
    assert run.exit_code == 3 and broken.name in run.stderr and (tmp_path / "batch.png").exists()


def test_a_picture_of_another_kind_is_refused(study, tmp_path):
    run = CliRunner().invoke(app, ["show-batch", str(study), "--output", str(tmp_path / "batch.jpg")])
    assert run.exit_code == 2 and "batch.png" in run.stderr
