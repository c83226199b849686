"""Mixed precision: the forward pass under autocast, and loss scaling where gradients would underflow.

Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740. fastai's own callback maps a cast over the network's output,
which fails where a part of it is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.learner import CancelStepException
from torch import Tensor

from cov3d.errors import SettingError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision(Callback):
    """Run the forward pass in ``fp32``, ``bf16`` or ``fp16``; the loss and all weights stay in float32.

    fp16 scales the loss, and leaves out the steps whose gradients overflow. bf16 has the range of float32 and needs neither.
    """

    order = GradientClip.order - 1  # gradients are clipped once they are unscaled

    def __init__(self, precision: str, device: torch.device):
        self.dtype, self.device = DTYPES.get(precision), device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.overflowed = False  # in the last step
        self.autocast = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and how long it has held; empty but for fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with a loss scale; begin with the usual one after a session on a device without."""
        if state:
            self.scaler.load_state_dict(dict(state))

    def before_batch(self) -> None:
        """Enter autocast."""
        self.close()
        self.autocast.enter_context(torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None))

    def after_pred(self) -> None:
        """Leave autocast, and give the loss float32."""
        self.close()
        self.learn.pred = to_float(self.learn.pred)

    def before_backward(self) -> None:
        """Scale the loss."""
        self.learn.loss_grad = self.scaler.scale(self.learn.loss_grad)

    def before_step(self) -> None:
        """Unscale the gradients; leave the step out if they overflowed."""
        self.overflowed = True
        self.scaler.step(self)  # calls step() below unless a gradient is not finite
        if self.overflowed:
            raise CancelStepException

    def after_step(self) -> None:
        """Adjust the loss scale."""
        self.scaler.update()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameters, for the scaler, which takes this callback for the optimiser."""
        return self.learn.opt.param_groups

    def step(self) -> None:
        """Note that no gradient overflowed; fastai's optimiser makes the step afterwards."""
        self.overflowed = False

    def close(self) -> None:
        """Leave autocast, also where the forward pass failed."""
        self.autocast.close()


def to_float(output: Any) -> Any:
    """A network's output in float32: a tensor, None, or a tuple of these."""
    if isinstance(output, tuple):
        return tuple(to_float(part) for part in output)
    return output.float() if isinstance(output, Tensor) and output.is_floating_point() else output


def pick_precision(wanted: str, device: torch.device) -> str:
    """The precision that ``--precision`` means on a device.

    Raises:
        SettingError: half precision on a CPU.
    """
    if device.type != "cuda":
        if wanted in DTYPES:
            raise SettingError(f"--precision {wanted} is for a GPU; on a CPU leave it at auto")
        return "fp32"
    if wanted == "auto":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return wanted
