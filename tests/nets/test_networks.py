"""Every network is asked the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cov3d.config import NetSettings
from cov3d.errors import SettingError
from cov3d.nets.build import NETS, build
from cov3d.nets.convnext import ConvNeXt

torch.set_num_threads(1)

every_architecture = pytest.mark.parametrize("architecture", NETS)


def small(architecture: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"base_width": 4, "penultimate": 8, "dropout": 0.0, **changes}
    return build(NetSettings(architecture=architecture, **settings))  # type: ignore[arg-type]


def volume(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@every_architecture
def test_a_batch_becomes_six_logits_a_scan(architecture: str):
    net = small(architecture).eval()
    assert net(volume(2, 1, 32, 32, 32)).shape == (2, 6)
    assert len(net.features(volume(1, 1, 32, 32, 32))) == 4


@pytest.mark.parametrize("pool", ["avg", "max"])
@every_architecture
def test_the_gradient_reaches_every_parameter(architecture: str, pool: str):
    net = small(architecture, **({"drop_path": 0.0} if architecture.startswith("convnext") else {}), pool=pool)
    net(volume(2, 1, 32, 48, 48)).square().sum().backward()
    for name, values in net.named_parameters():
        assert values.grad is not None and values.grad.isfinite().all() and values.grad.abs().sum() > 0, name


@every_architecture
def test_checkpointing_changes_nothing_but_memory(architecture: str):
    """Same logits, same gradients, same statistics; dropout and drop path fall as before."""
    outcomes = []
    for checkpointing in (False, True):
        net = small(architecture, dropout=0.3)
        net.checkpointing = checkpointing
        torch.manual_seed(3)
        logits = net(volume(2, 1, 32, 32, 32))
        logits.square().sum().backward()
        outcomes.append((logits, [p.grad for p in net.parameters()], list(net.buffers())))
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=0, rtol=0)


@every_architecture
def test_pooling_by_maximum_is_a_setting(architecture: str):
    net = small(architecture, pool="max").eval()
    x = volume(1, 1, 32, 32, 32)
    pooled = net.features(x)[-1].amax((2, 3, 4))
    torch.testing.assert_close(net(x), net.head(net.norm(pooled) if isinstance(net, ConvNeXt) else pooled))


@every_architecture
def test_checkpointing_is_idle_without_gradients(architecture: str):
    net = small(architecture).eval()
    net.checkpointing = True
    with torch.no_grad():
        assert not net(volume(1, 1, 32, 32, 32)).requires_grad


@every_architecture
def test_the_smallest_width_can_be_built(architecture: str):
    assert small(architecture, base_width=2)(volume(2, 1, 32, 32, 32)).shape == (2, 6)


def test_an_unknown_architecture_is_named():
    with pytest.raises(SettingError, match=r"'resnet19' is not one of resnet18, mc3-18, r2plus1d-18, convnext-micro"):
        build(NetSettings(architecture="resnet19"))  # type: ignore[arg-type]
