"""Pretraining: masks are learnt, a teacher's masks lie where the lesions are, and what is learnt is begun with."""

from __future__ import annotations

import csv
import importlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cov3d import (
    Augmentation,
    LossSettings,
    Machine,
    NetSettings,
    Preprocessing,
    Pretraining,
    RunSettings,
    Training,
    build,
    infer,
    load_model,
    pretrain,
    read_study,
    save_model,
    train,
)
from cov3d.cli import app
from cov3d.errors import ModelError, SettingError, StudyError
from cov3d.labels import UNKNOWN
from cov3d.phantom import write_study
from cov3d.scans.cache import fill_cache, fill_masks
from cov3d.scans.frame import frame_of
from cov3d.scans.preprocess import prepare
from cov3d.scans.read import read
from cov3d.scans.resample import resample
from cov3d.scans.study import Row, Study
from cov3d.training import pseudo
from cov3d.training.keeper import Keeper
from cov3d.training.loss import JointLoss
from cov3d.training.train import Run

SETTINGS = RunSettings(
    preprocessing=Preprocessing(width=32),
    net=NetSettings(base_width=4, dropout=0.0, penultimate=8),
    training=Training(epochs=2, batch_size=4, learning_rate=1e-3, ema=0.5, validation_fraction=0.3),
)
ONE = Machine(workers=1, device="cpu")
METHODS = ("segmentation", "segmia", "multitask")
OWN = "{own} scans are the study's own validation scans, and are left alone"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture(scope="module")
def drawn(root: Path) -> Study:
    return read_study(write_study(root / "study", scans=24, size=32, seed=4, annotated=1.0, format="nifti"))


@pytest.fixture(scope="module")
def teacher(root: Path, drawn: Study) -> Path:
    """A network that has learnt lesions of drawn chests well enough to tell where they are."""
    training = replace(SETTINGS.training, epochs=40, learning_rate=4e-3, schedule="1cycle")
    settings = replace(SETTINGS, net=replace(SETTINGS.net, base_width=8), training=training)
    return pretrain(drawn, "segmentation", settings, None, ONE, root / "cache", root / "teacher").folder


def run(drawn: Study, root: Path, method: str, folder: Path, how: Pretraining | None = None, **values) -> Path:
    settings = values.pop("settings", SETTINGS)
    return pretrain(drawn, method, settings, how, ONE, root / "cache", folder, **values).folder  # type: ignore[arg-type]


def how(method: str, teacher: Path, **values) -> Pretraining:
    return Pretraining(**({} if method == "segmentation" else {"teacher": str(teacher)}), **values)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pooled_dice(overlaps: list[dict[str, str]]) -> float:
    """Dice of all voxels together, from each scan's."""
    either = [int(line["called_voxels"]) + int(line["true_voxels"]) for line in overlaps]
    return sum(n * float(line["dice"] or 0) for n, line in zip(either, overlaps, strict=True)) / sum(either)


@pytest.mark.parametrize("method", METHODS)
def test_each_way_ends_in_weights_that_a_training_begins_with(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path, method: str
):
    folder = run(drawn, root, method, tmp_path / method, how(method, teacher))
    kept = "severity" if method == "multitask" else "masks"
    model = load_model(folder / f"{kept}.safetensors")
    assert model.heads == (("classes", "masks") if method == "multitask" else ("masks",))
    assert model.training["method"] == method
    assert (model.training["teacher"] is None) == (method == "segmentation")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {kept, "chosen", "note"} and metrics[kept]["epoch"] in (1, 2)
    assert {"masks_dice", "masks_iou"} <= set(table(folder / "history.csv")[0])
    found = metrics[kept] if kept == "masks" else metrics[kept]["masks"]
    assert pooled_dice(table(folder / "overlaps.csv")) == pytest.approx(found["dice"])
    begun = replace(SETTINGS, training=replace(SETTINGS.training, weights=str(model.source), epochs=1))
    train(drawn, begun, ONE, root / "cache", tmp_path / "run")


def test_lesions_of_drawn_chests_are_learnt(teacher: Path):
    assert json.loads((teacher / "metrics.json").read_text())["masks"]["dice"] > 0.25


def test_a_teachers_masks_are_its_answers_on_scans_as_they_are(drawn: Study, root: Path, teacher: Path):
    model = pseudo.load_teacher(str(teacher), torch.device("cpu"))
    volumes = fill_cache(drawn.rows, SETTINGS.preprocessing, root / "cache", ONE)
    for how, expected in (
        (Pretraining(teacher="t"), lambda p: (p > 0.5) * 255),
        (Pretraining(teacher="t", threshold=0.2), lambda p: (p > 0.2) * 255),
        (Pretraining(teacher="t", soft=True), lambda p: np.rint(p * 255)),
    ):
        masks = pseudo.pseudo_masks(drawn.rows, volumes, SETTINGS.preprocessing, model, how, SETTINGS.reading, ONE)
        for row in drawn.rows[:4]:
            logits = model.masks(volumes.load(row.scan)[None].float() / 255)
            answer = logits.sigmoid()[0].detach().numpy()
            np.testing.assert_array_equal(masks.load(row.scan).numpy(), expected(answer).astype(np.uint8))


def test_masks_that_are_there_are_not_drawn_again(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(drawn, root, "segmia", tmp_path / "first", how("segmia", teacher, threshold=0.3))
    monkeypatch.setattr(pseudo, "draw", None)
    run(drawn, root, "segmia", tmp_path / "second", how("segmia", teacher, threshold=0.3))


def test_a_teacher_of_another_geometry_draws_in_its_own_and_it_is_said(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Its masks overlap the true ones about as well as in its own geometry."""
    other = replace(SETTINGS, preprocessing=Preprocessing(width=48, depth=20, crop="lungs", window_high=300.0))
    run(drawn, root, "segmia", tmp_path / "run", how("segmia", teacher), settings=other)
    assert "16×32×32, -1150…350 HU, crop none" in capsys.readouterr().err
    model = pseudo.load_teacher(str(teacher), torch.device("cpu"))
    found = {}
    for name, settings in (("own", SETTINGS), ("other", other)):
        volumes = fill_cache(drawn.rows, settings.preprocessing, root / "cache", ONE)
        args = (settings.preprocessing, model, Pretraining(teacher="t"), settings.reading, ONE)
        masks = pseudo.pseudo_masks(drawn.rows, volumes, *args)
        true = fill_masks(drawn.rows, settings.preprocessing, root / "cache", ONE)
        pairs = [(masks.load(row.scan) > 0, true.load(row.scan) > 0) for row in drawn.rows]
        shared, either = (sum(int(f(a, b).sum()) for a, b in pairs) for f in (torch.logical_and, torch.add))
        sizes = sum(int(a.sum() + b.sum()) for a, b in pairs)
        found[name] = 2 * shared / sizes
        assert either
    assert found["other"] > found["own"] - 0.06


@pytest.mark.parametrize("crop", ["none", "lungs"])
def test_from_one_tensor_to_another_a_smooth_field_stays_where_it_is(drawn: Study, crop: str):
    scan = read(drawn.rows[0].path)
    fields = []
    frames = []
    for settings in (Preprocessing(width=64, depth=40), Preprocessing(width=40, depth=24, crop=crop)):  # type: ignore[arg-type]
        _, prepared = prepare(scan, settings)
        frame = frame_of(scan, prepared, settings)
        depth, height, width = settings.shape
        along = np.linspace(*frame.span, depth)
        rows, columns = (
            a + (np.arange(n) + 0.5) * (b - a) / n for (a, b), n in zip(frame.box[1:], (height, width), strict=True)
        )
        fields.append(along[:, None, None] + 2 * rows[:, None] - columns)
        frames.append(frame)
    moved = resample(fields[0], frames[0], frames[1], fields[1].shape)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(moved[inside], fields[1][inside], atol=1e-3)


@pytest.mark.parametrize("crop", ["none", "lungs"])
def test_in_a_tensor_of_one_slice_values_lie_where_the_scans_do(drawn: Study, crop: str):
    scan = read(drawn.rows[0].path)
    whole, flat = (Preprocessing(width=32, depth=depth, crop=crop) for depth in (12, 1))  # type: ignore[arg-type]
    (many, as_many), (one, as_one) = (prepare(scan, settings) for settings in (whole, flat))
    frames = frame_of(scan, as_many, whole), frame_of(scan, as_one, flat)
    np.testing.assert_allclose(resample(many[0], *frames, (1, 32, 32)), one[0], atol=1)


def test_stopped_and_resumed_equals_uninterrupted(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run(drawn, root, "multitask", tmp_path / "whole", how("multitask", teacher))
    end_epoch = Keeper.end_epoch

    def stopping(self, row, *further):
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        end_epoch(self, row, *further)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "end_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(drawn, root, "multitask", tmp_path / "run", how("multitask", teacher))
    resumed = run(drawn, root, "multitask", tmp_path / "run", how("multitask", teacher), resume=True)
    for name in ("last.safetensors", "severity.safetensors", "predictions.csv"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_an_outcome_is_learnt_where_nobody_graded_and_the_model_says_so(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [
        replace(row, severity=UNKNOWN, outcome=UNKNOWN if row.severity == UNKNOWN else int(row.severity > 2))
        for row in drawn.rows
    ]
    folder = run(replace(drawn, rows=tuple(rows)), root, "multitask", tmp_path / "run", how("multitask", teacher))
    summary = load_model(folder / "severity.safetensors").training
    counts = summary["train_counts"]
    assert counts["mild"] and counts["critical"] and not counts["moderate"] and not counts["severe"]
    assert summary["learnt"] == "outcome"
    capsys.readouterr()
    answer = infer([drawn.rows[0].path], [folder], tmp_path / "p.csv", machine=ONE)[0]
    meant = (
        "severities mean an outcome: mild that it was 0, critical that it was 1; a model that gives them was shown no "
    )
    assert f"note: {meant}moderate and no severe scan" in capsys.readouterr().err and meant in answer.warning
    assert all(meant in line["warning"] for line in table(folder / "predictions.csv"))


def test_severity_and_masks_are_learnt_of_graded_scans_and_presence_is_not_claimed(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path
):
    folder = run(drawn, root, "multitask", tmp_path / "run", how("multitask", teacher))
    summary = load_model(folder / "severity.safetensors").training
    assert (summary["loss"], summary["severity_factor"]) == ("balanced-ce", 1.0)
    assert "learnt" not in summary and not summary["train_counts"]["non-covid"]
    warnings = {line["warning"] for line in table(folder / "predictions.csv")}
    assert warnings == {"answers about presence say nothing: no model that gives them learnt it"}


def test_with_the_joint_loss_the_healthy_and_the_ungraded_are_learnt_too(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    losses = JointLoss.severity_losses

    def look(self, logits, presence, severity):
        seen.append(torch.stack([presence, severity], 1))
        assert self.severity_factor == 1
        return losses(self, logits, presence, severity)

    monkeypatch.setattr(JointLoss, "severity_losses", look)
    positives = [row for row in drawn.rows if row.presence == 1]
    rows = [replace(row, severity=UNKNOWN) if row in positives[::5] else row for row in drawn.rows]
    settings = replace(SETTINGS, loss=LossSettings(loss="joint"))
    folder = run(
        replace(drawn, rows=tuple(rows)),
        root,
        "multitask",
        tmp_path / "run",
        how("multitask", teacher),
        settings=settings,
    )
    labels = {tuple(pair) for pair in torch.cat(seen).tolist()}
    assert {(0, UNKNOWN), (1, UNKNOWN), (1, 1), (1, 4)} <= labels
    summary = load_model(folder / "severity.safetensors").training
    assert (summary["loss"], summary["severity_factor"]) == ("joint", 1.0)
    assert "auc" in json.loads((folder / "metrics.json").read_text())["severity"]


@pytest.mark.parametrize(
    ("method", "fraction", "said"),
    [
        ("segmentation", 0.3, ["5 scans have no mask", "2 scans are kept for tests", OWN]),
        ("segmentation", None, ["5 scans have no mask", "2 scans are kept for tests"]),
        ("segmia", 0.3, ["2 scans are kept for tests", OWN]),
        ("multitask", 0.3, ["{ungraded} scans have no severity", "2 scans are kept for tests", OWN]),
    ],
)
def test_scans_that_are_left_out_are_said(drawn: Study, capsys: pytest.CaptureFixture[str], method, fraction, said):
    room = importlib.import_module("cov3d.training.pretrain")
    graded = [row for row in drawn.rows if row.severity != UNKNOWN and row.split == "train"]
    healthy = [row for row in drawn.rows if row.presence == 0 and row.split == "train"]
    rows = [
        replace(row, split="test" if row in graded[:2] else row.split, mask=None if row in healthy[:5] else row.mask)
        for row in drawn.rows
    ]
    settings = replace(SETTINGS, training=replace(SETTINGS.training, validation_fraction=fraction))
    room.wanted_split(replace(drawn, rows=tuple(rows)), method, room.over_severity(settings, method))
    counts = {
        "ungraded": sum(row.severity == UNKNOWN for row in rows),
        "own": sum(row.split == "validation" and (method != "multitask" or row.severity != UNKNOWN) for row in rows),
    }
    assert capsys.readouterr().err.splitlines() == [f"note: {note.format(**counts)}" for note in said]


def test_a_segmentation_model_draws_masks_that_lie_on_the_scan(drawn: Study, teacher: Path, tmp_path: Path):
    row = next(row for row in drawn.rows if row.severity == 4)
    answer = infer([row.path], [teacher], tmp_path / "p.csv", machine=ONE, masks=tmp_path / "masks")[0]
    mask, scan = nibabel.load(next((tmp_path / "masks").glob("*.nii.gz"))), nibabel.load(row.path)
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    voxel = abs(np.linalg.det(scan.affine[:3, :3]))
    assert answer.lesion_ml == pytest.approx(np.asarray(mask.dataobj).sum() * voxel / 1000, rel=1e-3)
    true = np.asarray(nibabel.load(row.mask).dataobj) > 0
    called = np.asarray(mask.dataobj) > 0
    assert 2 * (true & called).sum() / (true.sum() + called.sum()) > 0.25


def test_a_tumour_of_a_real_scan_is_learnt_gone_on_with_and_drawn_where_it_lies(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = {
        "scan.nii.gz": "ibsi_phantom/nifti/image/phantom.nii.gz",
        "mask.nii.gz": "ibsi_phantom/nifti/mask/mask.nii.gz",
        "other.nrrd": "pyradiomics/lung2_image.nrrd",
        "other_mask.nrrd": "pyradiomics/lung2_label.nrrd",
    }
    for name, source in files.items():
        (tmp_path / name).symlink_to(shared / source)
    (tmp_path / "study.csv").write_text(
        "scan,mask,split\nscan.nii.gz,mask.nii.gz,train\nother.nrrd,other_mask.nrrd,validation\n"
    )
    study = read_study(tmp_path)
    training = Training(epochs=40, batch_size=1, learning_rate=4e-3, schedule="1cycle", keep="last")
    settings = replace(SETTINGS, net=replace(SETTINGS.net, base_width=8), training=training)
    settings = replace(settings, augmentation=Augmentation(flip_width=0.0))
    with monkeypatch.context() as patch:
        end_epoch = Keeper.end_epoch

        def stopping(self, row, *further):
            end_epoch(self, row, *further)
            if row["epoch"] == 20:
                raise KeyboardInterrupt

        patch.setattr(Keeper, "end_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(study, tmp_path, "segmentation", tmp_path / "run", settings=settings)
    folder = run(study, tmp_path, "segmentation", tmp_path / "run", settings=settings, resume=True)
    infer([tmp_path / "scan.nii.gz"], [folder], tmp_path / "p.csv", machine=ONE, masks=tmp_path / "drawn")
    mask, scan, true = (nibabel.load(tmp_path / name) for name in ("drawn/scan.nii.gz", "scan.nii.gz", "mask.nii.gz"))
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    called, wanted = np.asarray(mask.dataobj) > 0, np.asarray(true.dataobj) > 0
    assert 2 * (called & wanted).sum() / (called.sum() + wanted.sum()) > 0.6


def test_masks_that_have_changed_are_another_run(drawn: Study, root: Path, tmp_path: Path):
    row = next(row for row in drawn.rows if row.split == "train" and row.presence == 1)
    image = nibabel.load(row.mask)
    file = tmp_path / "mask.nii.gz"
    nibabel.save(image, file)
    study = replace(drawn, rows=tuple(replace(r, mask=file) if r is row else r for r in drawn.rows))
    run(study, root, "segmentation", tmp_path / "run")
    nibabel.save(nibabel.Nifti1Image(1 - np.asarray(image.dataobj), image.affine), file)
    with pytest.raises(SettingError, match="other settings, scans, masks or processes"):
        run(study, root, "segmentation", tmp_path / "run", resume=True)


def test_a_pretraining_goes_on_with_the_head_of_masks(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    net = replace(SETTINGS.net, base_width=8)
    training = replace(
        SETTINGS.training, weights=str(teacher / "masks.safetensors"), epochs=1, learning_rate=1e-8, ema=0.0
    )
    settings = replace(SETTINGS, net=net, training=training)
    folder = run(drawn, root, "segmentation", tmp_path / "run", settings=settings)
    assert "the head of masks goes on with theirs" in capsys.readouterr().err
    before, after = (load_model(path / "masks.safetensors").net.decoder.state_dict() for path in (teacher, folder))
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)


def test_without_settings_they_are_the_published_ones(drawn: Study, monkeypatch: pytest.MonkeyPatch):
    room = importlib.import_module("cov3d.training.pretrain")
    seen = []

    def look(settings, method):
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "over_severity", look)
    with pytest.raises(KeyboardInterrupt):
        pretrain(drawn, "segmentation")
    training = seen[0].training
    assert (training.epochs, training.learning_rate, training.clip, training.ema) == (119, 1e-5, 5.0, 0.99)


# What cannot be


@pytest.mark.parametrize("method", ["imagenet", "segmenttion"])
def test_a_method_without_masks_is_refused_with_advice(drawn: Study, method: str):
    with pytest.raises(SettingError, match=r"expected segmentation, segmia, multitask; .* cov3d\.pretrain_pictures"):
        pretrain(drawn, method)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "values", "cause"),
    [
        ("segmentation", {"task": "presence"}, "pretraining learns masks and severity"),
        ("multitask", {"loss": LossSettings(severity_factor=0.5)}, "pretraining learns masks and severity"),
        ("multitask", {"loss": LossSettings(presence_smoothing=0.1)}, "--presence-smoothing says nothing"),
        ("segmia", {"loss": LossSettings(loss="joint")}, "--loss joint says nothing in --method segmia"),
    ],
)
def test_a_loss_that_pretraining_does_not_know_is_refused(
    drawn: Study, root: Path, tmp_path: Path, method, values, cause
):
    with pytest.raises(SettingError, match=cause):
        run(drawn, root, method, tmp_path / "run", how(method, tmp_path), settings=replace(SETTINGS, **values))


def test_validation_scans_of_one_severity_cannot_choose(drawn: Study, root: Path, teacher: Path, tmp_path: Path):
    rows = [
        replace(row, severity=2) if row.split == "validation" and row.severity != UNKNOWN else row for row in drawn.rows
    ]
    settings = replace(SETTINGS, training=replace(SETTINGS.training, validation_fraction=None))
    with pytest.raises(StudyError, match="the validation scans are all of one severity"):
        study = replace(drawn, rows=tuple(rows))
        run(study, root, "multitask", tmp_path / "run", how("multitask", teacher), settings=settings)


def test_labels_that_no_mask_holds_are_named(drawn: Study, root: Path, tmp_path: Path):
    with pytest.raises(StudyError, match="none holds a value of --mask-labels 7"):
        run(drawn, root, "segmentation", tmp_path / "run", Pretraining(mask_labels="7"))


def test_a_study_without_masks_is_refused_with_advice(drawn: Study, root: Path, tmp_path: Path):
    bare = replace(drawn, rows=tuple(replace(row, mask=None) for row in drawn.rows))
    with pytest.raises(StudyError, match=r"no scan has a mask to learn from; .* column 'mask' .*--method segmia"):
        run(bare, root, "segmentation", tmp_path / "run")


def test_a_study_without_lesions_is_refused_and_leaves_no_folder(drawn: Study, root: Path, tmp_path: Path):
    healthy = replace(drawn, rows=tuple(row for row in drawn.rows if row.presence == 0))
    with pytest.raises(
        StudyError, match=r"every mask of the training scans is empty: there is no lesion to learn from$"
    ):
        run(healthy, root, "segmentation", tmp_path / "pretrained" / "run")
    assert not (tmp_path / "pretrained").exists()


def test_where_the_masks_with_lesions_failed_the_cause_is_named(drawn: Study, root: Path, tmp_path: Path):
    wrong = next(row for row in drawn.rows if row.split == "train" and row.presence == 1)
    rows = [row for row in drawn.rows if row.presence == 0]
    study = replace(drawn, rows=(*rows, replace(wrong, mask=moved(wrong, tmp_path))))
    with pytest.raises(
        StudyError, match=r"is empty: .* Left out are .*: its mask moved\.nii\.gz: lies elsewhere"
    ) as caught:
        run(study, root, "segmentation", tmp_path / "run")
    assert wrong.scan in listed(str(caught.value))


@pytest.mark.parametrize("method", METHODS)
def test_where_no_scan_can_be_read_the_causes_are_named_and_where_they_all_are(
    drawn: Study, root: Path, teacher: Path, tmp_path: Path, method: str
):
    rows = []
    for k, row in enumerate(drawn.rows):
        if row.split == "train":
            (tmp_path / f"{k}.nii.gz").write_bytes(b"")
            row = replace(row, path=tmp_path / f"{k}.nii.gz")
        rows.append(row)
    settings = replace(SETTINGS, training=replace(SETTINGS.training, validation_fraction=None))
    cause = r"no scan that can be read, with its mask, is left to learn from\. Left out are .*: is empty"
    with pytest.raises(StudyError, match=cause) as caught:
        study = replace(drawn, rows=tuple(rows))
        run(study, root, method, tmp_path / "run", how(method, teacher), settings=settings)
    learnt = [row.scan for row in rows if row.split == "train" and (method != "multitask" or row.severity != UNKNOWN)]
    assert set(learnt) <= listed(str(caught.value))


@pytest.mark.parametrize("values", [{"threshold": 0.99}, {"soft": True}])
def test_a_teacher_that_finds_no_lesion_is_said_to(drawn: Study, root: Path, tmp_path: Path, values):
    net = build(SETTINGS.net, ("masks",))
    torch.nn.init.constant_(net.decoder.together[2].bias, -20.0)
    blind = save_model(
        tmp_path / "m.safetensors", net, SETTINGS.net, SETTINGS.preprocessing, "severity", {}, ("masks",)
    )
    said = {
        "threshold": "the teacher drew nothing above --threshold 0.99 in any training scan, so there is no lesion to learn "
        "from; lower --threshold, say --soft, or name another teacher",
        "soft": "the teacher's probabilities are 0 in all training scans, so there is no lesion to learn from; name another",
    }
    with pytest.raises(StudyError) as caught:
        run(drawn, root, "segmia", tmp_path / "run", Pretraining(teacher=str(blind), **values))
    assert str(caught.value) == said[next(iter(values))]


def moved(row: Row, folder: Path) -> Path:
    """A copy of a row's mask that lies 30 mm beside its scan."""
    image = nibabel.load(row.mask)
    affine = image.affine.copy()
    affine[0, 3] += 30
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), folder / "moved.nii.gz")
    return folder / "moved.nii.gz"


def listed(error: str) -> set[str]:
    """The scans in the lists of failures that an error names."""
    files = error.rpartition("(all in ")[2].rstrip(")").split(" and ")
    return {line["scan"] for file in files for line in table(Path(file))}


def test_a_study_of_one_scan_is_refused_with_advice(drawn: Study, root: Path, tmp_path: Path):
    one = replace(drawn, rows=(replace(drawn.rows[0], split=""),))
    with pytest.raises(StudyError, match=r"of 1 scan none is left to choose the epoch by; .* --validation-fraction"):
        run(one, root, "segmentation", tmp_path / "run")


def test_a_scan_whose_mask_lies_elsewhere_is_named_and_left_out(drawn: Study, root: Path, tmp_path: Path):
    wrong = next(row for row in drawn.rows if row.split == "train" and row.mask)
    rows = tuple(replace(row, mask=moved(wrong, tmp_path)) if row is wrong else row for row in drawn.rows)
    study = replace(drawn, rows=rows)
    failures = pretrain(study, "segmentation", SETTINGS, None, ONE, root / "cache", tmp_path / "run").failures
    assert list(failures) == [wrong.scan] and "lies elsewhere than its scan" in failures[wrong.scan]


def test_a_teacher_that_draws_nothing_is_refused(drawn: Study, root: Path, tmp_path: Path):
    settings = replace(SETTINGS, training=replace(SETTINGS.training, epochs=1))
    folder = train(drawn, settings, ONE, root / "cache", tmp_path / "run").folder
    with pytest.raises(ModelError, match="draws no masks; a teacher comes from cov3d pretrain"):
        run(drawn, root, "segmia", tmp_path / "segmia", Pretraining(teacher=str(folder)))
    with pytest.raises(ModelError, match=r"holds no masks\.safetensors"):
        run(drawn, root, "segmia", tmp_path / "segmia", Pretraining(teacher=str(root)))


@pytest.mark.parametrize(
    ("method", "values", "cause"),
    [
        ("segmia", {}, "--method segmia needs --teacher"),
        ("segmia", {"teacher": ""}, "--method segmia needs --teacher"),
        ("multitask", {"teacher": ""}, "--method multitask needs --teacher"),
        ("segmentation", {"teacher": "t"}, "--teacher says nothing in --method segmentation"),
        ("segmentation", {"soft": True}, "--soft says nothing"),
        ("segmia", {"teacher": "t", "mask_labels": "1,2"}, "--mask-labels says nothing"),
        ("segmia", {"teacher": "t", "weights_of_tasks": (1.0, 2.0)}, "--weights-of-tasks says nothing"),
    ],
)
def test_settings_that_say_nothing_or_lack_are_refused(drawn: Study, root: Path, tmp_path: Path, method, values, cause):
    with pytest.raises(SettingError, match=cause):
        run(drawn, root, method, tmp_path / "run", Pretraining(**values))


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"soft": True, "threshold": 0.3}, "--soft learns probabilities as they are"),
        ({"weights_of_tasks": (1.0, 0.0)}, "two numbers above 0"),
        ({"threshold": 1.5}, r"--threshold 1\.5 is out of range"),
        ({"mask_labels": "x"}, "--mask-labels 'x' is not whole numbers"),
    ],
)
def test_settings_of_pretraining_that_cannot_be_are_refused(values, cause):
    with pytest.raises(SettingError, match=cause):
        Pretraining(**values)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--method", "segmentation", "--mixup", "0"], "--mixup says nothing in --method segmentation"),
        (["--method", "imagenet", "--width", "64"], "--width says nothing in --method imagenet"),
        (["--method", "imagenet", "--teacher", "t"], "--teacher says nothing in --method imagenet"),
        (["--method", "multitask"], "--method multitask needs --teacher"),
        (["--method", "multitask", "--teacher", ""], "--method multitask needs --teacher"),
        (["--method", "segmentation", "--loss", "joint"], "--loss says nothing in --method segmentation"),
        (["--method", "segmia", "--class-weights", "none"], "--class-weights says nothing in --method segmia"),
        (
            ["--method", "imagenet", "--severity-smoothing", "0.1"],
            "--severity-smoothing says nothing in --method imagenet",
        ),
    ],
)
def test_the_command_refuses_settings_of_another_method(drawn: Study, words: list[str], cause: str):
    result = CliRunner().invoke(app, ["pretrain", str(drawn.source), *words])
    assert result.exit_code == 2 and cause in result.stderr


@pytest.mark.parametrize(
    ("words", "loss", "weights"),
    [([], "balanced-ce", "none"), (["--loss", "joint", "--class-weights", "inverse"], "joint", "inverse")],
)
def test_the_command_has_multitasks_loss(drawn: Study, monkeypatch: pytest.MonkeyPatch, words, loss, weights):
    """Without further words it is plain cross entropy, as published."""
    room = importlib.import_module("cov3d.training.pretrain")
    seen = []
    monkeypatch.setattr(room, "pretrain", lambda *asked: seen.append(asked[2].loss) or Run(Path("run"), {}))
    command = ["pretrain", str(drawn.source), "--method", "multitask", "--teacher", "t", *words]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (seen[0].loss, seen[0].class_weights) == (loss, weights)


def test_the_command_begins_with_the_published_settings(drawn: Study, root: Path, tmp_path: Path):
    words = ["pretrain", str(drawn.source), "--width", "32", "--architecture", "convnext-micro", "--base-width", "4"]
    words += ["--epochs", "1", "--workers", "1", "--cache", str(root / "cache"), "--output-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    training = config["training"]
    said = {name: training[name] for name in ("learning_rate", "schedule", "optimizer", "clip", "ema", "batch_size")}
    assert said == {
        "learning_rate": 1e-5,
        "schedule": "constant",
        "optimizer": "adam",
        "clip": 5.0,
        "ema": 0.99,
        "batch_size": 4,
    }
    assert config["preprocessing"]["depth"] == 32 and config["augmentation"]["crop_from"] == 37
