"""Mixed precision takes every network's output, and is off where a batch has ended, however it did."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pretended_gpu import pretended_gpu

from cov3d import Machine, NetSettings, Preprocessing, RunSettings, Training, read_study, train
from cov3d.errors import Cov3dError
from cov3d.nets.resnet import ResNet
from cov3d.training.precision import Precision, to_float

CPU = torch.device("cpu")
TINY = RunSettings(
    preprocessing=Preprocessing(width=32),
    net=NetSettings(base_width=4, penultimate=8),
    training=Training(epochs=1, batch_size=4),
)


def test_outputs_become_float32_and_what_is_none_or_whole_numbers_stays():
    logits, masks, counts = (
        torch.ones(2, 6, dtype=torch.bfloat16),
        torch.ones(2, 1, dtype=torch.float16),
        torch.ones(2).long(),
    )
    found = to_float((logits, None, (masks, counts)))
    assert [found[0].dtype, found[1], found[2][0].dtype, found[2][1].dtype] == [
        torch.float32,
        None,
        torch.float32,
        torch.int64,
    ]
    assert to_float(None) is None


def test_autocast_lasts_from_the_batch_to_its_prediction():
    callback = Precision("bf16", CPU)
    callback.learn = SimpleNamespace(pred=torch.ones(1, dtype=torch.bfloat16))
    callback.before_batch()
    assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    callback.after_pred()
    assert not torch.is_autocast_enabled("cpu") and callback.learn.pred.dtype == torch.float32


def test_autocast_is_off_after_a_forward_pass_that_failed(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else a notebook that lowers the batch size and trains again would do everything in half precision."""

    def full(self, features):
        assert torch.is_autocast_enabled("cpu")
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ResNet, "answer", full)
    with pretended_gpu(), pytest.raises(Cov3dError, match="the GPU's memory is full; lower --batch-size"):
        train(read_study(study), TINY, Machine(device="cuda", workers=1), tmp_path / "cache", tmp_path / "run")
    assert not torch.is_autocast_enabled("cpu")
