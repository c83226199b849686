"""Fake CUDA tensors: shapes, types and devices without memory or a GPU, by CUDA's own rules of autocast and of mixed devices.

There are no values, so neither branches on them nor the backward pass can run; :mod:`pretended_gpu` runs these.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

GPU = torch.device("cuda", 0)
REAL = torch.cuda.is_available()


class Cuda:
    """The GPU that is here, or fake tensors of one; ``with cuda:`` is where they are computed with."""

    def __init__(self) -> None:
        self.mode = None if REAL else FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> None:
        if self.mode is not None:
            self.mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.mode is not None:
            self.mode.__exit__(*error)

    def put(self, thing: Any) -> Any:
        """A tensor or module on the GPU."""
        if self.mode is None:
            return thing.to(GPU)
        if isinstance(thing, nn.Module):
            return self._put_module(copy.deepcopy(thing))
        return self._put_tensor(thing)

    def _put_tensor(self, tensor: Tensor) -> Tensor:
        assert self.mode is not None
        with self.mode:
            return self.mode.from_tensor(tensor.detach()).to(GPU)

    def _put_module(self, module: nn.Module) -> nn.Module:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(self._put_tensor(parameter), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self._put_tensor(buffer)
        return module
