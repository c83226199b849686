"""A pretended GPU: whole commands run as with ``--device cuda``, on the CPU, and fail where a GPU would.

Tensors stay where they are; it is only noted which of them would lie on a GPU. A function of torch that is given tensors of
both devices raises what torch raises; numpy is refused those of the GPU; generators must be of the device that they draw on.
Autocast and loss scaling run in the CPU's half precision. Unlike ``FakeTensorMode`` this reaches the backward pass and every
branch that depends on a value. It does not reach the kernels, streams, NCCL and memory of a real GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import _allowed_determinism_checks_to_fns

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
REAL = torch.cuda.is_available()
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({})"
# These take tensors of both devices: values are copied, or indices of the CPU are taken to the GPU.
ACROSS_DEVICES = {"copy_", "__getitem__", "__setitem__", "__set__", "backward", "_has_compatible_shallow_copy_type"}
JOINING = {"cat", "stack"}  # refuse even a single number of the other device

_Autocast, _Generator, _run_backward = torch.autocast, torch.Generator, torch.autograd._engine_run_backward


class PretendedGpu(TorchFunctionMode):
    """Notes which storages would lie on a GPU, and compares the devices of what each function of torch is given."""

    def __init__(self) -> None:
        self.storages: dict[int, StorageWeakRef] = {}
        self.generators: list[torch.Generator] = []
        self.in_backward = False  # gradients come from C++, which tells nothing of where they lie

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor would lie on the GPU."""
        found = self.storages.get(tensor.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def any_held(self, value: Any) -> bool:
        """Whether a tensor in ``value`` would lie on the GPU."""
        return any(self.holds(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))

    def put(self, tensor: Tensor) -> Tensor:
        """Note a tensor as one of the GPU."""
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def device(self, tensor: Tensor) -> torch.device:
        return GPU if self.holds(tensor) else CPU

    def generator_class(self) -> type:
        """In place of ``torch.Generator``: notes the generators that would lie on the GPU."""
        gpu = self

        class Generator:
            def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
                made = _Generator()
                if torch.device(device).type == "cuda":
                    gpu.generators.append(made)
                return made

        return Generator

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        owner = getattr(getattr(function, "__self__", None), "__name__", "")  # of a property such as Tensor.device
        if name == "__get__" and owner == "device":
            return self.device(args[0])
        if name == "__get__" and owner == "is_cuda":
            return self.holds(args[0])
        if name == "__get__" and owner == "grad":
            gradient = function(*args, **kwargs)
            return self.put(gradient) if gradient is not None and self.holds(args[0]) else gradient
        if name in ("to", "cpu", "cuda"):
            return self._moved(name, *args, **kwargs)
        if name in ("numpy", "__array__") and self.holds(args[0]) and not kwargs.get("force"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self._computed(function, name, args, kwargs)

    def _moved(self, name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copied = kwargs.pop("copy", False)
        kwargs.pop("non_blocking", None)
        if name != "to":
            device, dtype, memory = (CPU if name == "cpu" else GPU), None, None
        elif "other" in kwargs or isinstance(args[0] if args else None, Tensor):
            other = kwargs.get("other", args[0] if args else None)
            device, dtype, memory = self.device(other), other.dtype, None
        else:
            device, dtype, _, memory = torch._C._nn._parse_to(*args, **kwargs)
        here = self.holds(tensor)
        there = here if device is None else device.type == "cuda"
        kept = {} if memory is None else {"memory_format": memory}
        moved = tensor.to(dtype=dtype or tensor.dtype, copy=copied or here != there, **kept)
        return self.put(moved) if there and moved is not tensor else moved

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        """In place of torch's: a mode is off within its own functions, and here activations may be computed again."""
        self.in_backward = True
        try:
            with self:
                return _run_backward(*args, **kwargs)
        finally:
            self.in_backward = False

    def _computed(self, function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = [tensor for tensor in given if self.holds(tensor)]
        mixed = bool(on_gpu) and any((tensor.dim() or name in JOINING) and not self.holds(tensor) for tensor in given)
        if mixed and name not in ACROSS_DEVICES and not self.in_backward:
            raise RuntimeError(MIXED.format(name))
        if name in ("__getitem__", "__setitem__") and not self.holds(args[0]) and self.any_held(args[1]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        wanted = kwargs.get("device")
        there = bool(on_gpu) if wanted is None else torch.device(wanted).type == "cuda"
        if wanted is not None:
            kwargs["device"] = CPU
        generator = kwargs.get("generator")
        if generator is not None and any(generator is made for made in self.generators) != there:
            raise RuntimeError(f"Expected a '{'cuda' if there else 'cpu'}' device type for generator ({name})")
        result = (_convolved if name in ("conv2d", "conv3d") else _called)(function, args, kwargs)
        if there and name not in ("copy_", "__set__", "__setitem__"):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self.put(leaf)
        return result


def _called(function: Any, args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _convolved(function: Any, args: Any, kwargs: Any) -> Tensor:
    """A convolution as autocast makes it, of rounded numbers but summed in float32, which is up to 90 times faster on a CPU."""
    if not torch.is_autocast_enabled("cpu"):
        return function(*args, **kwargs)
    half = torch.get_autocast_dtype("cpu")
    rounded = [value.to(half).float() if isinstance(value, Tensor) else value for value in args]
    with _Autocast("cpu", enabled=False):
        return function(*rounded, **kwargs).to(half)


class _CpuAutocast(_Autocast):
    """Autocast of the GPU, on the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu", *args, **kwargs)


def any_gpu() -> AbstractContextManager[Any]:
    """The GPU that is here, or a pretended one."""
    return nullcontext() if REAL else pretended_gpu()


@contextmanager
def pretended_gpu(bf16: bool = True) -> Iterator[PretendedGpu]:
    """Pretend that there is one GPU, with or without bf16."""
    gpu = PretendedGpu()
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: nullcontext(),
        "is_bf16_supported": lambda including_emulation=True: bf16,
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
    }
    accelerator = {
        "current_device_index": lambda: 0,
        "set_device_index": lambda index: None,
        "current_stream": lambda device=None: SimpleNamespace(is_capturing=lambda: False),
    }
    with (
        gpu,
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.multiple(torch.accelerator, **accelerator),
        mock.patch.object(
            torch.Tensor, "pin_memory", lambda tensor, device=None: tensor
        ),  # also in a thread without a mode
        mock.patch.multiple(torch, autocast=_CpuAutocast, Generator=gpu.generator_class()),
        mock.patch.object(torch.autograd, "_engine_run_backward", gpu.run_backward),
        mock.patch.dict(_allowed_determinism_checks_to_fns, default=lambda tensor: (tensor.shape, tensor.dtype)),
    ):
        yield gpu
