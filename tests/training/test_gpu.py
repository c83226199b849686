"""Every training runs on a GPU in half precision, stops, and goes on as if it had not: on a real one, or on a pretended one."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import REAL, any_gpu, pretended_gpu
from shapes import draw_shapes

from cov3d import (
    Augmentation,
    Machine,
    NetSettings,
    PictureSettings,
    Preprocessing,
    Pretraining,
    RunSettings,
    Saving,
    Training,
    cross_validate,
    pretrain,
    pretrain_pictures,
    read_study,
    train,
)
from cov3d.config.pictures import PICTURE_TRAINING
from cov3d.labels import UNKNOWN
from cov3d.phantom import write_study
from cov3d.scans.study import Study
from cov3d.stopping import Stopped

GPU = Machine(device="cuda", workers=1)
EVERYTHING = Augmentation(
    flip_depth=0.5, flip_height=0.5, flip_width=0.5, rotate=1.0, turn=1.0, elastic=1.0, blur=1.0, noise=1.0
)
RESNET = RunSettings(
    preprocessing=Preprocessing(width=32),
    net=NetSettings(base_width=4, penultimate=8),
    training=Training(
        epochs=2, batch_size=2, accumulate=2, learning_rate=1e-3, clip=1.0, skip_nan=True, checkpoint_activations=True
    ),
    augmentation=Augmentation(flip_width=0.5),
)
CONVNEXT = replace(
    RESNET,
    preprocessing=Preprocessing(width=32, depth=32),
    net=NetSettings("convnext-micro", base_width=4, drop_path=0.5),
    training=replace(RESNET.training, accumulate=1, ema=0.5, schedule="cosine"),
    augmentation=EVERYTHING,
)
MASKS = replace(
    CONVNEXT,
    task="severity",
    training=replace(CONVNEXT.training, epochs=1, validation_fraction=0.3),
    augmentation=Augmentation(),
)


def on(settings: RunSettings) -> Callable[..., Path]:
    """``cov3d train`` with these settings."""

    def fit(root: Path, output: Path, **values) -> Path:
        return train(studied(root), settings, GPU, root / "cache", output, **values).folder

    return fit


def folds(root: Path, output: Path, resume: bool = False, **values) -> Path:
    """``cov3d cross-validate``, which continues by itself; its second fold."""
    rows = tuple(replace(row, severity=UNKNOWN) for row in studied(root).rows)  # too few of each grade for folds
    study = replace(studied(root), rows=rows)
    cross_validate(study, replace(RESNET, task="presence"), GPU, 2, None, root / "cache", output, **values)
    return output / "fold-1"


def masks(method: str, settings: RunSettings = MASKS) -> Callable[..., Path]:
    """``cov3d pretrain --method segmentation|segmia|multitask``."""

    def fit(root: Path, output: Path, **values) -> Path:
        how = Pretraining() if method == "segmentation" else Pretraining(teacher=str(teacher(root)), soft=True)
        return pretrain(studied(root), method, settings, how, GPU, root / "cache", output, **values).folder

    return fit


def pictures(root: Path, output: Path, **values) -> Path:
    """``cov3d pretrain --method imagenet``."""
    training = Training(**{**PICTURE_TRAINING, "epochs": 1, "batch_size": 16, "learning_rate": 2e-3})
    net, settings = NetSettings("convnext-micro", base_width=4), PictureSettings(side=32, rate_batch=0)
    return pretrain_pictures(root / "shapes", settings, training, net, GPU, output, **values).folder


TRAININGS: dict[str, Callable[..., Path]] = {
    "train a ResNet": on(RESNET),
    "train a ConvNeXt": on(CONVNEXT),
    "train with crops": on(replace(CONVNEXT, augmentation=replace(EVERYTHING, random_crop=1.0, crop_from=40))),
    "cross-validate": folds,
    "segmentation": masks("segmentation"),
    "segmentation with a ResNet": masks("segmentation", replace(MASKS, net=RESNET.net)),
    "segmia": masks("segmia"),
    "multitask": masks("multitask"),
    "imagenet": pictures,
}


def studied(root: Path) -> Study:
    return read_study(root / "study")


def teacher(root: Path) -> Path:
    """A network that draws masks."""
    folder = root / "teacher"
    if not folder.exists():
        pretrain(studied(root), "segmentation", MASKS, None, GPU, root / "cache", folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with masks, and pictures in class folders."""
    root = tmp_path_factory.mktemp("gpu")
    write_study(root / "study", scans=14, size=32, seed=4, annotated=1.0, format="nifti")
    draw_shapes(root / "shapes")
    return root


@pytest.fixture
def gpu() -> Iterator[None]:
    """The GPU that is here, or a pretended one."""
    with any_gpu():
        yield


def state(folder: Path) -> dict[str, Any]:
    """All that a run has saved to be resumed."""
    return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["parts"]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """How far two networks' weights are apart: the Euclidean norm."""
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def stopped_once(fit: Callable[..., Path], root: Path, output: Path) -> dict[str, torch.Tensor]:
    """The network of a run that is stopped after its first step, as it is then."""
    with pytest.raises(Stopped):
        fit(root, output, saving=Saving(max_hours=0.0))
    [saved] = output.rglob("state.pt")
    return state(saved.parent)["network"]


def test_a_gpu_without_bf16_scales_the_loss_and_its_scale_is_resumed(root: Path, tmp_path: Path):
    """It begins at 2¹⁶, and is halved with each step that overflows and is left out."""
    fit = on(replace(RESNET, training=replace(RESNET.training, precision="fp16")))
    with nullcontext() if REAL else pretended_gpu(bf16=False):
        stopped_once(fit, root, tmp_path / "run")
        folder = fit(root, tmp_path / "run", resume=True)
    with (folder / "history.csv").open(newline="") as file:
        left_out = sum(int(row["left_out"]) for row in csv.DictReader(file))
    saved = state(folder)
    assert saved["scaler"]["scale"] == 2.0 ** (16 - left_out)
    assert all(tensor.isfinite().all() for tensor in saved["network"].values())


@pytest.mark.skipif(REAL, reason="a real GPU cannot lose its bf16")
@pytest.mark.parametrize(("first", "second"), [("fp32", "bf16"), ("bf16", "fp16"), ("fp16", "bf16"), ("fp16", "fp32")])
def test_a_training_is_resumed_on_another_kind_of_device(root: Path, tmp_path: Path, first: str, second: str):
    """A job that is requeued may find another GPU, or none; ``--precision auto`` follows it."""

    def session(precision: str, **values) -> Path:
        machine = replace(GPU, device="cpu" if precision == "fp32" else "cuda")
        with nullcontext() if precision == "fp32" else pretended_gpu(bf16=precision == "bf16"):
            return train(studied(root), RESNET, machine, root / "cache", tmp_path / "run", **values).folder

    with pytest.raises(Stopped):
        session(first, saving=Saving(max_hours=0.0))
    saved = state(session(second, resume=True))
    assert bool(saved["scaler"]) == (second == "fp16")
    assert all(tensor.isfinite().all() for tensor in saved["network"].values())


@pytest.mark.parametrize("training", TRAININGS)
def test_a_training_in_half_precision_that_is_stopped_and_resumed_learns_the_same(
    root: Path, tmp_path: Path, gpu: None, training: str
):
    fit = TRAININGS[training]
    whole = state(fit(root, tmp_path / "whole"))
    begun = stopped_once(fit, root, tmp_path / "resumed")
    resumed = state(fit(root, tmp_path / "resumed", resume=True))
    learnt, apart = distance(whole["network"], begun), distance(whole["network"], resumed["network"])
    assert all(tensor.isfinite().all() for tensor in whole["network"].values())
    assert learnt > 0 and apart <= (0.5 * learnt if REAL else 0)  # a GPU adds up in an order that varies
    steps = [[own.get("step") for own in saved["optimizer"]["state"]] for saved in (whole, resumed)]
    assert steps[0] == steps[1]
