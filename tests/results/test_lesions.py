"""Lesions in the answers: masks that lie on the scans, their share of the lungs, their volume; nothing of it done twice."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import smooth_volume, write_nifti, write_slices
from torch import Tensor, nn

from cov3d import Inference, Machine, NetSettings, Preprocessing, build, infer, preprocess, read, save_model
from cov3d.chest import draw
from cov3d.errors import Cov3dError, SettingError
from cov3d.nets.model import Model
from cov3d.predictions import read_predictions
from cov3d.results.evaluate import evaluate
from cov3d.results.infer import summary
from cov3d.results.masks import mask_names
from cov3d.scans.study import read_study

ONE = Machine(workers=1, device="cpu")
EXACT = Preprocessing(width=32, depth=16)  # as large as the scans here: nothing is resized
NET = NetSettings(base_width=4, penultimate=8)
SPACING = (2.0, 0.8, 0.8)
VOXEL = 2.0 * 0.8 * 0.8 / 1000  # ml
CLASSES, MASKS, BOTH = ("classes",), ("masks",), ("classes", "masks")
EMPTY = ("presence", "covid_probability", "severity", "mild", "moderate", "severe", "critical")

Rule = Callable[[Tensor], Tensor]


class Ruled(nn.Module):
    """A network that draws by a rule: probabilities of lesion from brightness ``(B, 1, D, H, W)``."""

    def __init__(self, rule: Rule):
        super().__init__()
        self.rule = rule
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + x.mean((1, 2, 3, 4))[:, None] * torch.arange(6)

    def masks(self, x: Tensor) -> Tensor:
        return torch.logit(self.rule(x).float())


def bright(sure: float = 0.9, unsure: float = 0.1) -> Rule:
    """Lesion is what is brighter than −400 HU."""
    return lambda x: torch.where(x > 0.5, sure, unsure)


def everywhere(x: Tensor) -> Tensor:
    return torch.full_like(x, 0.9)


def left_half(x: Tensor) -> Tensor:
    return 0.1 + 0.8 * (torch.arange(x.shape[-1]) >= x.shape[-1] // 2).expand(x.shape)


BRIGHT = bright()


def model(rule: Rule = BRIGHT, heads: tuple[str, ...] = MASKS, settings: Preprocessing = EXACT) -> Model:
    source = Path(f"{'-'.join(heads)}.safetensors")
    return Model(Ruled(rule), NET, settings, "both", {}, source, f"sha {settings}", heads)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """``infer`` with networks that draw by rules."""
    room = importlib.import_module("cov3d.results.infer")

    def run(scans: Sequence[Path], models: Sequence[Model], **options):
        monkeypatch.setattr(room, "load_models", lambda *_: list(models))
        return infer(scans, (), tmp_path / "p.csv", machine=ONE, **options)

    return run


def block(seed: int = 0) -> np.ndarray:
    """HU ``(16, 32, 32)`` of air, but for a bright block."""
    hu = np.full((16, 32, 32), -1000, np.int16)
    hu[4 : 9 + seed, 10:21, 5:12] = 20 * np.arange(5 + seed)[:, None, None]
    return hu


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for k, codes in enumerate(("RAS", "LPI", "AIL")):
        write_nifti(tmp_path / "scans" / f"scan_{k}.nii.gz", block(k), SPACING, codes)
    return tmp_path / "scans"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_masks_lie_on_the_scans_and_their_volume_is_counted(scans: Path, tmp_path: Path, answer: Callable):
    rows = answer([scans], [model()], masks=tmp_path / "masks")
    for k, row in enumerate(rows):
        source = nib.load(scans / f"scan_{k}.nii.gz")
        mask = nib.load(tmp_path / "masks" / f"scan_{k}.nii.gz")
        np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
        np.testing.assert_array_equal(voxels(tmp_path / "masks" / f"scan_{k}.nii.gz"), source.get_fdata() >= 0)
        assert row.lesion_ml == pytest.approx((5 + k) * 11 * 7 * VOXEL)
        assert (row.lesion_percent, row.warning) == (
            None,
            "no lungs found, so nobody can say which share of them is lesion",
        )
    assert [row["lesion_ml"] for row in table(tmp_path / "p.csv")] == ["0.493", "0.591", "0.690"]


def test_lesions_stand_behind_the_other_columns_and_only_where_a_model_draws(
    scans: Path, tmp_path: Path, answer: Callable
):
    answer([scans], [model(heads=BOTH)])
    assert list(table(tmp_path / "p.csv")[0])[-3:] == ["error", "lesion_percent", "lesion_ml"]
    answer([scans], [model(heads=CLASSES)], overwrite=True)
    assert list(table(tmp_path / "p.csv")[0])[-1] == "error"


@pytest.fixture
def chest(tmp_path: Path):
    drawn = draw(5, 2, 64, 32)
    write_nifti(tmp_path / "scans" / "chest.nii.gz", drawn.hu, drawn.spacing, "RAS")
    return drawn


@pytest.mark.parametrize("crop", ["none", "lungs"])
def test_the_share_is_of_the_lungs_and_the_volume_of_everything(chest, tmp_path: Path, answer: Callable, crop):
    settings = Preprocessing(width=64, depth=32, crop=crop)
    (whole,) = answer([tmp_path / "scans"], [model(everywhere, settings=settings)])
    assert whole.lesion_percent == 100
    voxel = float(np.prod(chest.spacing)) / 1000
    if crop == "none":
        assert whole.lesion_ml == pytest.approx(chest.hu.size * voxel)
    else:  # nothing beyond the cut
        assert chest.lungs.sum() * voxel < whole.lesion_ml < 0.8 * chest.hu.size * voxel
        return
    (half,) = answer([tmp_path / "scans"], [model(left_half)], inference=Inference(tta=False), overwrite=True)
    assert half.lesion_ml == pytest.approx(chest.hu.size * voxel / 2)
    assert half.lesion_percent == pytest.approx(100 * chest.lungs[:, :, 32:].sum() / chest.lungs.sum(), abs=2)


def test_what_lies_outside_the_lungs_is_no_share_of_them(chest, tmp_path: Path, answer: Callable):
    def corner(x: Tensor) -> Tensor:
        rule = torch.full_like(x, 0.1)
        rule[..., :2, :2] = rule[..., :2, -2:] = 0.9
        return rule

    (row,) = answer([tmp_path / "scans"], [model(corner)])
    assert row.lesion_percent == 0
    assert row.lesion_ml > 1


def test_pictures_have_a_share_and_no_volume(chest, tmp_path: Path, answer: Callable):
    grey = np.clip((chest.hu + 1150.0) / 1500 * 255, 0, 255).astype(np.uint8)
    folder = write_slices(tmp_path / "slices", grey)
    (row,) = answer([folder], [model(everywhere)], masks=tmp_path / "masks")
    assert (row.lesion_percent, row.lesion_ml) == (100, None)
    assert voxels(tmp_path / "masks" / "slices.nii.gz").shape == (64, 64, 32)
    (line,) = table(tmp_path / "p.csv")
    assert (line["lesion_percent"], line["lesion_ml"]) == ("100.000", "")


def test_the_reflection_is_mirrored_back_before_the_mean_by_hand(tmp_path: Path, answer: Callable):
    hu = smooth_volume(16, 32).astype(np.int16) * 6 - 1100
    path = write_nifti(tmp_path / "scan.nii.gz", hu, SPACING, "LPI")

    def ramped(x: Tensor) -> Tensor:
        return (x * torch.linspace(0.5, 1.2, 32)).clamp(0.01, 0.99)

    answer([path], [model(ramped)], masks=tmp_path / "masks")
    x = torch.from_numpy(preprocess(read(path), EXACT)[0]) / 255
    ramp = torch.linspace(0.5, 1.2, 32)
    straight, mirrored = (x * ramp).clamp(0.01, 0.99), (x * ramp.flip(0)).clamp(0.01, 0.99)
    found = voxels(tmp_path / "masks" / "scan.nii.gz").transpose() == 1
    wanted = ((straight + mirrored) / 2).numpy()
    sure = np.abs(wanted - 0.5) > 1e-5
    np.testing.assert_array_equal(found[sure], (wanted > 0.5)[sure])
    assert 0.1 < found.mean() < 0.9
    (row,) = answer([path], [model(left_half)], overwrite=True)
    assert row.lesion_ml == 0  # what is only seen one way round is half probable
    (row,) = answer([path], [model(left_half)], inference=Inference(tta=False), overwrite=True)
    assert row.lesion_ml == pytest.approx(16 * 32 * 16 * VOXEL)


LARGER = Preprocessing(width=64, depth=32)


@pytest.mark.parametrize(
    ("models", "drawn"),
    [
        ([model(bright(0.9)), model(bright(0.2))], True),  # .55
        ([model(bright(0.9)), model(bright(0.2), settings=LARGER)], True),
        ([model(bright(0.9)), model(bright(0.2), settings=LARGER), model(bright(0.2), settings=LARGER)], False),  # .43
        ([model(bright(0.2), settings=LARGER), model(bright(0.9)), model(bright(0.9))], True),  # .67
    ],
    ids=["alike", "of two preprocessings", "each model counts", "whatever its preprocessing"],
)
def test_segmenters_are_averaged_at_the_voxels_of_the_scan(
    scans: Path, tmp_path: Path, answer: Callable, models: list[Model], drawn: bool
):
    row = answer([scans], models, masks=tmp_path / "masks")[0]
    found, wanted = (
        voxels(tmp_path / "masks" / "scan_0.nii.gz") == 1,
        nib.load(scans / "scan_0.nii.gz").get_fdata() >= 0,
    )
    if drawn:
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.9
    else:
        assert not found.any()
    assert row.lesion_ml == pytest.approx(found.sum() * VOXEL)


def test_models_that_only_draw_leave_presence_and_severity_empty(scans: Path, tmp_path: Path, answer: Callable):
    rows = answer([scans], [model()])
    assert summary(rows, Path("p.csv")) == "p.csv: 3 answered, 0 failed, 3 asked"
    for line in table(tmp_path / "p.csv"):
        assert [line[name] for name in EMPTY] == [""] * len(EMPTY)
        assert (line["error"], line["models"], line["views"]) == ("", "1", "2")
        assert "say nothing" not in line["warning"]
    again = read_predictions(tmp_path / "p.csv")
    assert [row.lesion_ml for row in again] == pytest.approx([row.lesion_ml for row in rows], abs=1e-3)
    assert all(row.answered and row.covid is None for row in again)
    kept = (tmp_path / "p.csv").read_text()
    answer([scans], [model()], resume=True)
    assert (tmp_path / "p.csv").read_text() == kept  # its seconds, too: nothing was done
    with pytest.raises(SettingError, match="--submission lists presence and severity, and none of the models"):
        answer([scans], [model()], overwrite=True, submission=tmp_path / "lists")


def test_masks_alone_have_no_scores(study: Path, tmp_path: Path, answer: Callable):
    answer([study / "validation"], [model()])
    with pytest.raises(Cov3dError, match="no scan has both an answer here and a label"):
        evaluate(tmp_path / "p.csv", read_study(study))


def test_a_model_that_does_both_answers_as_two_would(scans: Path, answer: Callable):
    (both, *_) = answer([scans], [model(heads=BOTH)])
    (classes, *_) = answer([scans], [model(heads=CLASSES)], overwrite=True)
    (masks, *_) = answer([scans], [model()], overwrite=True)
    assert (both.covid, both.severity) == (classes.covid, classes.severity)
    assert (both.lesion_percent, both.lesion_ml) == (masks.lesion_percent, masks.lesion_ml)
    two = answer([scans], [model(heads=CLASSES), model()], overwrite=True)[0]
    assert (two.covid, two.severity, two.lesion_ml) == (both.covid, both.severity, both.lesion_ml)
    assert (two.models, both.models) == (2, 1)
    assert classes.lesion_ml is None


def test_a_failed_scan_has_no_lesions_and_no_mask(scans: Path, tmp_path: Path, answer: Callable):
    answer([scans], [model()], masks=tmp_path / "masks")
    whole = (scans / "scan_1.nii.gz").read_bytes()
    (scans / "scan_1.nii.gz").write_bytes(whole[:100])
    rows = answer([scans], [model()], masks=tmp_path / "masks", overwrite=True)
    assert [bool(row.error) for row in rows] == [False, True, False]
    line = table(tmp_path / "p.csv")[1]
    assert (line["lesion_percent"], line["lesion_ml"], line["models"]) == ("", "", "")
    assert sorted(file.name for file in (tmp_path / "masks").iterdir()) == ["scan_0.nii.gz", "scan_2.nii.gz"]
    (scans / "scan_1.nii.gz").write_bytes(whole)
    rows = answer([scans], [model()], masks=tmp_path / "masks", resume=True)
    assert not any(row.error for row in rows)
    assert (tmp_path / "masks" / "scan_1.nii.gz").exists()


def test_a_mask_that_is_no_number_fails_the_row(scans: Path, tmp_path: Path, answer: Callable):
    rows = answer([scans], [model(lambda x: x * float("nan"), BOTH)], masks=tmp_path / "masks")
    assert all("not a number" in row.error and not row.answered for row in rows)
    assert list((tmp_path / "masks").iterdir()) == []


def test_resume_does_scans_again_whose_mask_is_not_there(scans: Path, tmp_path: Path, answer: Callable):
    def done() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "masks").iterdir()}

    answer([scans], [model()])
    assert not (tmp_path / "masks").exists()
    answer([scans], [model()], masks=tmp_path / "masks", resume=True)
    first = done()
    assert len(first) == 3
    (tmp_path / "masks" / "scan_1.nii.gz").unlink()
    answer([scans], [model()], resume=True)  # nobody asks for masks, so none is missed
    assert len(done()) == 2
    answer([scans], [model()], masks=tmp_path / "masks", resume=True)
    after = done()
    assert [name for name in sorted(after) if after[name] != first[name]] == ["scan_1.nii.gz"]
    other = tmp_path / "other"
    other.mkdir()
    for k in range(3):
        (other / f"scan_{k}.nii.gz").write_bytes(b"of other models")
    answer([scans], [model()], masks=other, resume=True)
    assert b"of other models" not in {file.read_bytes() for file in other.iterdir()}


def test_the_journal_says_who_drew_and_where(scans: Path, tmp_path: Path, answer: Callable):
    answer([scans], [model(heads=BOTH)], masks=tmp_path / "masks")
    said = json.loads((tmp_path / "p.csv.json").read_text())
    assert said["models"][0]["heads"] == ["classes", "masks"]
    assert {record["mask"] for record in said["scans"].values()} == {f"scan_{k}.nii.gz" for k in range(3)}
    for record in said["scans"].values():
        record["mask"] = "../away.nii.gz"
    (tmp_path / "p.csv.json").write_text(json.dumps(said))
    answer([scans], [model(heads=BOTH)], masks=tmp_path / "masks", resume=True)
    assert not (tmp_path / "away.nii.gz").exists()
    with pytest.raises(SettingError, match="made with other models"):
        answer([scans], [model()], masks=tmp_path / "masks", resume=True)


def test_scans_of_one_name_have_each_a_mask(tmp_path: Path, answer: Callable):
    for k, place in enumerate(("a/scan", "b/scan", "b/SCAN", "b/other")):
        write_nifti(tmp_path / "scans" / f"{place}.nii.gz", block(k), SPACING, "LPS")
    rows = answer([tmp_path / "scans"], [model()], masks=tmp_path / "masks")
    files = sorted(file.name for file in (tmp_path / "masks").iterdir())
    assert len(files) == len(rows) == 4
    assert files[0].startswith("SCAN-")
    assert files[1] == "other.nii.gz"
    assert all(name.startswith("scan-") for name in files[2:])
    shares = {voxels(tmp_path / "masks" / name).sum() for name in files}
    assert shares == {(5 + k) * 77 for k in range(4)}


def test_a_scan_that_comes_later_takes_no_earlier_ones_name(tmp_path: Path, answer: Callable):
    for k, place in enumerate("ab"):
        write_nifti(tmp_path / place / "scan.nii.gz", block(k), SPACING, "LPS")
    answer([tmp_path / "a"], [model()], masks=tmp_path / "masks")
    before = (tmp_path / "masks" / "scan.nii.gz").read_bytes()
    answer([tmp_path / "b"], [model()], masks=tmp_path / "masks", resume=True)
    answer([tmp_path / "a", tmp_path / "b"], [model()], masks=tmp_path / "masks", resume=True)
    assert len(list((tmp_path / "masks").iterdir())) == 2
    assert (tmp_path / "masks" / "scan.nii.gz").read_bytes() == before


def test_names_fit_a_disk():
    names = mask_names({"0123456789": Path("x" * 250), "1": Path("é" * 120)}, {})
    assert names["0123456789"] == "x" * 200 + "-01234567.nii.gz"
    assert len(names["1"].encode()) < 255


def test_masks_that_nobody_asked_to_replace_stay(scans: Path, tmp_path: Path, answer: Callable):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "scan_2.nii.gz").write_bytes(b"mine")
    with pytest.raises(SettingError, match=r"holds scan_2\.nii\.gz already; say --overwrite"):
        answer([scans], [model()], masks=tmp_path / "masks")
    assert (tmp_path / "masks" / "scan_2.nii.gz").read_bytes() == b"mine"
    assert not (tmp_path / "p.csv").exists()
    answer([scans], [model()], masks=tmp_path / "masks", overwrite=True)
    assert (tmp_path / "masks" / "scan_2.nii.gz").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("place", "heads", "said"),
    [
        ("masks", CLASSES, r"none of the models draws masks \(classes\.safetensors\); name one that does with --model"),
        ("file", MASKS, "is a file; name a folder"),
        ("file/below", MASKS, "cannot write"),
        ("scans", MASKS, "masks would be taken for scans"),
        ("scans/masks", MASKS, "masks would be taken for scans"),
        ("scans/slices/masks", MASKS, "masks would be taken for scans"),
        ("link", MASKS, "masks would be taken for scans"),
    ],
)
def test_a_folder_of_masks_that_cannot_be_is_said_before_any_work(
    scans: Path, tmp_path: Path, answer: Callable, place: str, heads: tuple[str, ...], said: str
):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(scans)
    write_slices(scans / "slices", smooth_volume(4, 32))
    with pytest.raises(Cov3dError, match=said):
        answer([scans], [model(heads=heads)], masks=tmp_path / place)
    assert not (tmp_path / "p.csv").exists()


def test_a_mask_never_replaces_the_scan_beside_which_it_would_lie(scans: Path, answer: Callable):
    before = (scans / "scan_0.nii.gz").read_bytes()
    with pytest.raises(SettingError, match="holds scans; masks would be taken for scans among them"):
        answer([scans / "scan_0.nii.gz"], [model()], masks=scans, overwrite=True)
    assert (scans / "scan_0.nii.gz").read_bytes() == before


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 16, 40), (5, 17, 33)])
def test_few_voxels_are_drawn_too(tmp_path: Path, answer: Callable, shape: tuple[int, int, int]):
    path = write_nifti(tmp_path / "scan.nii.gz", np.full(shape, 100, np.int16), SPACING, "RAS")
    (row,) = answer([path], [model(everywhere, settings=Preprocessing(width=16, depth=1))], masks=tmp_path / "masks")
    assert row.lesion_ml == pytest.approx(np.prod(shape) * VOXEL)
    assert voxels(tmp_path / "masks" / "scan.nii.gz").all()


def test_the_command_writes_masks_of_a_model_from_its_file(scans: Path, tmp_path: Path, capfd, monkeypatch):
    from cov3d.cli import app

    torch.manual_seed(0)
    net = build(NET, MASKS)
    save_model(tmp_path / "run" / "masks.safetensors", net, NET, EXACT, "both", {}, MASKS)
    monkeypatch.chdir(tmp_path)
    words = ["infer", "scans", "--model", "run", "--masks", "masks", "--workers", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        app(words)
    assert ended.value.code == 0, capfd.readouterr().err
    assert sorted(file.name for file in Path("masks").iterdir()) == [f"scan_{k}.nii.gz" for k in range(3)]
    x = torch.from_numpy(preprocess(read(scans / "scan_1.nii.gz"), EXACT))[None] / 255
    with torch.no_grad():
        views = [net.eval().masks(x), net.masks(x.flip(-1)).flip(-1)]
    wanted = torch.stack(views).sigmoid().mean(0)[0, 0].numpy()
    ml = float(table(Path("predictions.csv"))[1]["lesion_ml"])
    assert ml == pytest.approx((wanted > 0.5).sum() * VOXEL, abs=3 * VOXEL)
