"""The pretended GPU refuses what a GPU refuses, so that a test which passes on it has shown something."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from fastai.optimizer import Adam, Optimizer
from pretended_gpu import GPU, pretended_gpu
from torch import nn

from cov3d.training.state import OptimizerState, plain

MIXED = "Expected all tensors to be on the same device"


def test_tensors_of_both_devices_are_refused_but_for_numbers_and_copies():
    with pretended_gpu():
        there, here = torch.ones(2, device="cuda"), torch.ones(2)
        for mixed in (
            lambda: there + here,
            lambda: there.mul_(here),
            lambda: torch.stack([there, here]),
            lambda: torch.stack([there[0], here[0]]),
        ):
            with pytest.raises(RuntimeError, match=MIXED):
                mixed()
        assert (there * torch.tensor(2.0)).device == GPU
        there.copy_(here)
        assert there.cpu().device == torch.device("cpu") and there.to(here).device == torch.device("cpu")
        assert here.to(there).device == GPU and here.to("cuda", torch.float16).device == GPU


def test_indices_of_the_gpu_are_refused_by_a_tensor_of_the_cpu_and_not_the_other_way_round():
    with pretended_gpu():
        there, here = torch.tensor([1, 0], device="cuda"), torch.tensor([1, 0])
        assert there[here].device == GPU
        with pytest.raises(RuntimeError, match="indices should be either on cpu"):
            here[there]
        with pytest.raises(RuntimeError, match="indices should be either on cpu"):
            here[there] = 0


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, np.asarray])
def test_numpy_is_refused_what_lies_on_the_gpu(convert: Callable):
    with pretended_gpu(), pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        convert(torch.ones(2, device="cuda"))


def test_a_generator_draws_on_its_own_device_only():
    with pretended_gpu():
        torch.rand(2, device="cuda", generator=torch.Generator("cuda"))
        with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())


def test_modules_their_gradients_and_activations_that_are_computed_again_lie_on_the_gpu():
    with pretended_gpu():
        net = nn.Linear(2, 2).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            found = torch.utils.checkpoint.checkpoint(net, torch.ones(1, 2, device="cuda"), use_reentrant=False)
        found.float().sum().backward()
        assert net.weight.grad is not None and net.weight.grad.device == GPU
        assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "load", [Optimizer.load_state_dict, lambda optimiser, state: OptimizerState(optimiser).load_state_dict(state)]
)
def test_what_broke_resume_on_a_gpu_in_0_1_0_breaks_here_too_and_is_mended(load):
    with pretended_gpu():
        net = nn.Linear(2, 2).to("cuda")
        first, second = (Adam(list(net.parameters()), lr=1e-3) for _ in range(2))
        net(torch.ones(1, 2, device="cuda")).sum().backward()
        first.step()
        saved = plain(first.state_dict())
        read = {
            **saved,
            "state": [{k: v.cpu() if torch.is_tensor(v) else v for k, v in own.items()} for own in saved["state"]],
        }
        load(second, read)
        if load is Optimizer.load_state_dict:
            with pytest.raises(RuntimeError, match=MIXED):
                second.step()
        else:
            second.step()
