"""What a GPU computes, by the rules of CUDA's autocast: with fake tensors, or on the GPU that is here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from fake_cuda import GPU, REAL, Cuda
from fastai.optimizer import Adam
from torch import Tensor, nn

from cov3d.config import Augmentation, Inference, LossSettings, NetSettings, Preprocessing
from cov3d.config.pictures import FLAT
from cov3d.labels import UNKNOWN
from cov3d.nets.build import CLASSES, MASKS, NETS, Heads, build
from cov3d.nets.flat import build_flat
from cov3d.nets.model import Model
from cov3d.results.ensemble import Ensemble
from cov3d.results.views import forward, views_of
from cov3d.training.augment import apply, move_masks
from cov3d.training.dice import BothJudge, LesionLoss, MaskJudge
from cov3d.training.draws import draw
from cov3d.training.judge import ClassJudge
from cov3d.training.loss import BalancedCrossEntropy, JointLoss, Loss
from cov3d.training.precision import to_float
from cov3d.training.state import OptimizerState, plain

HALVES = (None, torch.bfloat16)  # autocast has the same lists for fp16
HEADS: tuple[Heads, ...] = ((CLASSES,), (MASKS,), (CLASSES, MASKS))
LABELS = torch.tensor([[0, UNKNOWN], [1, 1], [1, UNKNOWN], [1, 4]])
PRESENCE, SEVERITY = LABELS.numpy().T


def small(architecture: str) -> NetSettings:
    return NetSettings(architecture, base_width=8, penultimate=8)  # type: ignore[arg-type]


@pytest.fixture
def cuda() -> Cuda:
    return Cuda()


def answers(net: nn.Module, x: Tensor, half: torch.dtype | None) -> Any:
    with autocast(half):
        assert torch.is_autocast_enabled("cuda") == (half is not None)
        found = net(x)
    logits = found[0] if isinstance(found, tuple) else found
    assert logits is None or logits.dtype == (half or torch.float32)  # masks are resized last, in float32
    return to_float(found)


def autocast(half: torch.dtype | None) -> torch.autocast:
    """Autocast of CUDA, which torch would turn off where there is none."""
    with mock.patch.multiple(torch.cuda, is_available=lambda: True, is_bf16_supported=lambda **options: True):
        return torch.autocast("cuda", half, enabled=half is not None)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids="+".join)
@pytest.mark.parametrize("architecture", NETS)
def test_every_network_answers_in_every_precision(cuda: Cuda, architecture: str, heads: Heads, half: torch.dtype):
    net, x = cuda.put(build(small(architecture), heads)), cuda.put(torch.zeros(2, 1, 32, 33, 34))
    with cuda:
        found = answers(net, x, half)
    logits, masks = found if MASKS in heads else (found, None)
    shapes = [None if part is None else (part.shape, part.dtype, part.device) for part in (logits, masks)]
    classes, drawn = (2, 6), (2, 1, 32, 33, 34)
    assert shapes == [
        (classes, torch.float32, GPU) if CLASSES in heads else None,
        (drawn, torch.float32, GPU) if MASKS in heads else None,
    ]


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("architecture", FLAT)
def test_every_2d_network_answers_in_every_precision(cuda: Cuda, architecture: str, half: torch.dtype):
    net, x = cuda.put(build_flat(small(architecture), 5)), cuda.put(torch.zeros(2, 1, 33, 34))
    with cuda:
        found = answers(net, x, half)
    assert (found.shape, found.dtype, found.device) == ((2, 5), torch.float32, GPU)


@pytest.mark.parametrize("severity_cost", ["ce", "focal", "emd"])
@pytest.mark.parametrize("kind", [JointLoss, BalancedCrossEntropy])
def test_every_loss_stays_on_the_gpu(cuda: Cuda, kind: type[Loss], severity_cost: str):
    loss = cuda.put(kind(PRESENCE, SEVERITY, 0.5, LossSettings(severity_loss=severity_cost)))
    logits, labels, weight = (cuda.put(t) for t in (torch.zeros(4, 6), LABELS, torch.ones(4)))
    with cuda:
        found = loss(logits, labels, weight)
    assert (found.shape, found.dtype, found.device) == ((), torch.float32, GPU)


@pytest.mark.parametrize("classes", [True, False])
def test_the_loss_of_masks_stays_on_the_gpu(cuda: Cuda, classes: bool):
    joint = JointLoss(PRESENCE, SEVERITY, 0.5, LossSettings()) if classes else None
    loss, masks = cuda.put(LesionLoss(joint)), cuda.put(torch.zeros(4, 1, 8, 8, 8))
    logits, labels, weight = (cuda.put(t) for t in (torch.zeros(4, 6), LABELS, torch.ones(4)))
    with cuda:
        found = loss((logits if classes else None, masks), labels, weight, masks)
    assert (found.shape, found.device) == ((), GPU)


@pytest.mark.parametrize("cached", [(32, 32, 32), (36, 40, 40)])
def test_augmentation_stays_on_the_gpu_with_every_step_but_noise(cuda: Cuda, cached: tuple[int, int, int]):
    """Noise is drawn by a generator of the GPU, which cannot be made without one."""
    numbers = Augmentation().numbers("convnext")
    numbers = numbers._replace(**dict.fromkeys(numbers._fields[:9], 1.0))._replace(noise=float(REAL))
    draws = draw(2, numbers, cached, (32, 32, 32), torch.Generator().manual_seed(0))
    scans = cuda.put(torch.zeros(2, 1, *cached, dtype=torch.uint8))
    with cuda:
        found = [apply(scans, draws, (32, 32, 32)), move_masks(scans, draws, (32, 32, 32))]
    assert [(part.shape, part.dtype, part.device) for part in found] == [((2, 1, 32, 32, 32), torch.float32, GPU)] * 2


def test_an_optimiser_that_was_saved_steps_on(cuda: Cuda):
    """Found broken in 0.1.0: its state was read to the CPU and stayed there."""
    net = nn.Linear(3, 2)
    saved = Adam(list(net.parameters()), lr=1e-3)
    give_gradients(net)
    saved.step()
    state = plain(saved.state_dict())
    there = cuda.put(net)
    with cuda:
        fresh = Adam(list(there.parameters()), lr=1e-3)
        OptimizerState(fresh).load_state_dict(state)
        give_gradients(there)
        fresh.step()
        moved = {
            value.device for own in fresh.state_dict()["state"] for value in own.values() if isinstance(value, Tensor)
        }
    assert moved == {GPU}


def give_gradients(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)


def test_what_validation_notes_is_brought_to_the_cpu(cuda: Cuda):
    rows = [SimpleNamespace(presence=1, severity=1)] * 4
    judges = [ClassJudge(rows, "both", {}), MaskJudge(rows), ClassJudge(rows, "severity", {}), MaskJudge(rows)]
    logits, masks, labels, weight = (
        cuda.put(t) for t in (torch.zeros(4, 6), torch.zeros(4, 1, 8, 8, 8), LABELS, torch.ones(4))
    )
    with cuda:
        judges[0].see(logits, (labels, weight))
        judges[1].see((None, masks), (labels, weight, masks))
        BothJudge(judges[2], judges[3]).see((logits, masks), (labels, weight, masks))
    assert {column.device for judge in judges for column in judge.batches[0]} == {torch.device("cpu")}


@pytest.mark.parametrize("tta", [True, False])
def test_an_ensemble_answers_and_draws_on_the_gpu(cuda: Cuda, tta: bool):
    preprocessing = Preprocessing(width=32, depth=32)
    models = [
        Model(
            cuda.put(build(small(name), (CLASSES, MASKS)).eval()),
            small(name),
            preprocessing,
            task,
            {},
            None,
            "",
            (CLASSES, MASKS),
        )
        for name, task in (("resnet18", "presence"), ("convnext-micro", "severity"))
    ]
    scan = torch.zeros(1, 32, 32, 32, dtype=torch.uint8)
    with cuda, torch.no_grad():
        covid, severity = Ensemble(models, Inference(tta=tta)).probabilities({preprocessing: scan})
        masks = [forward(model.masks, views_of(scan, model, tta)) for model in models]
    assert (covid.shape, severity.shape) == ((), (4,))
    assert [(drawn.shape, drawn.device) for drawn in masks] == [((1 + tta, 1, 1, 32, 32, 32), GPU)] * 2
