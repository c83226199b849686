"""Is 3D convolution fast and right here? Forward and backward of the ResNet-18's most frequent one, in each precision.

Right is what a few voxels and weights, drawn at random, give when they are worked out in float64 by themselves, which costs
little at any size. torch 2.9 left cuDNN out of 3D convolution in half precision; its times are what this would have shown.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cov3d.checkup.findings import Finding, Verdict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHANNELS = 64  # of the stem and of layer1, where most of a step is spent
SHAPES = {"cpu": (16, 32, 32), "cuda": (64, 64, 64)}  # (D, H, W)
MATRICES = {"cpu": 1024, "cuda": 4096}  # rows of the product that is the measure of the device
REPEATS = 5
PATIENCE = 1.5  # seconds for one precision, from which nothing is repeated any more
SAMPLES = 48
HALF = {"bf16": (8, 0), "fp16": (7, 0)}  # the compute capability from which it is fast
OLDER = {"bf16": "fp16", "fp16": "fp32"}  # what to take on a GPU of less
# Root mean square of the error over that of the answer. A GPU rounds fp32 to the 10 bits of TF32.
TOLERANCES = {"fp32": 5e-3, "bf16": 2e-2, "fp16": 5e-3}
BROKEN, ODD = 1 / 20, 1 / 5  # of a matrix product's rate
SLOWER, HARDLY = 1.5, 1.1  # times as long as in fp32


@dataclass(frozen=True)
class Measured:
    """A convolution in one precision: median seconds of forward and backward, the rate, and the relative error."""

    precision: str
    seconds: float
    rate: float  # floating-point operations a second
    error: float


def look_at_convolution(device: torch.device) -> Iterator[Finding]:
    """fp32 beside a matrix product and, on a GPU, bf16 and fp16 beside fp32."""
    import torch

    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    fp32 = None
    for precision in ("fp32", *(HALF if capability else ())):
        try:
            ceiling = matrix_rate(device) if precision == "fp32" else None
            measured = measure(device, precision)
        except (RuntimeError, MemoryError) as error:
            yield _failed(precision, error)
            continue
        if precision == "fp32":
            fp32 = measured
            yield judge_fp32(measured, ceiling or math.nan)
        else:
            yield judge_half(measured, fp32, capability or (0, 0))


def judge_fp32(measured: Measured, ceiling: float) -> Finding:
    """The convolution's rate beside ``ceiling``, a matrix product's: a broken one is many times slower."""
    share = measured.rate / ceiling
    found = f"{_told(measured)}, {share:.2g} of a matrix product's {rate(ceiling)}"
    advice = "nothing else may run on this machine while it is looked at; if it is so again, reinstall torch"
    verdict: Verdict = "bad" if share < BROKEN else "note" if share < ODD else "ok"
    return _judged(measured, found, verdict, advice)


def judge_half(measured: Measured, fp32: Measured | None, capability: tuple[int, int]) -> Finding:
    """The convolution in half precision, which should take no longer than in fp32 on a GPU that has it."""
    if fp32 is None:
        return _judged(measured, _told(measured), "ok", "")
    times = measured.seconds / fp32.seconds
    found = f"{_told(measured)}, {times:.2g} times as long as fp32"
    if capability < HALF[measured.precision]:
        advice = f"this GPU is older than {measured.precision}; say --precision {OLDER[measured.precision]}"
        return _judged(measured, found, "ok" if times < HARDLY else "note", advice)
    verdict: Verdict = "bad" if times > SLOWER else "note" if times > HARDLY else "ok"
    advice = "install torch 2.10 or later and the cuDNN that comes with it; until then say --precision fp32"
    return _judged(measured, found, verdict, advice)


def _judged(measured: Measured, found: str, verdict: Verdict, advice: str) -> Finding:
    if not measured.error <= TOLERANCES[measured.precision]:  # nor is it of what is no number
        advice = "its answers are wrong: train nothing here; install another torch, and have the device tested"
        return Finding(_look(measured.precision), found, "bad", advice)
    return Finding(_look(measured.precision), found, verdict, "" if verdict == "ok" else advice)


def _failed(precision: str, error: Exception) -> Finding:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return Finding(
            _look(precision), "the memory is full", "bad", "end what else runs there, or choose another --device"
        )
    found = f"it failed: {' '.join(str(error).split())[:120]}"
    return Finding(_look(precision), found, "bad", "reinstall torch as its page says for this GPU, and its driver")


def _look(precision: str) -> str:
    return f"conv3d {precision}"


def _told(measured: Measured) -> str:
    return f"{measured.seconds * 1e3:.3g} ms, {rate(measured.rate)}, error {measured.error:.1g}"


def rate(operations: float) -> str:
    """Operations a second as people say them: ``48 GFLOP/s``."""
    return f"{operations / 1e12:.3g} TFLOP/s" if operations >= 1e12 else f"{operations / 1e9:.3g} GFLOP/s"


# Measuring


def measure(device: torch.device, precision: str) -> Measured:
    """Time forward and backward of a 3×3×3 convolution of one scan ``(1, 64, D, H, W)``, and compare with float64."""
    import torch
    from torch.nn import functional

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    generator = torch.Generator().manual_seed(0)
    shape = SHAPES[device.type]

    def drawn(*sizes: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(sizes, generator=generator)).to(device, dtype)

    x = drawn(1, CHANNELS, *shape).requires_grad_()
    weights = drawn(CHANNELS, CHANNELS, 3, 3, 3, scale=(27 * CHANNELS) ** -0.5).requires_grad_()
    gradient = drawn(1, CHANNELS, *shape)
    answer = functional.conv3d(x, weights, padding=1)

    def step() -> None:
        x.grad = weights.grad = None
        with torch.enable_grad():
            functional.conv3d(x, weights, padding=1).backward(gradient)

    seconds = median_seconds(step, device)
    assert x.grad is not None and weights.grad is not None
    pieces = (x, weights, gradient, answer, x.grad, weights.grad)
    error = relative_error(*(piece.detach().cpu() for piece in pieces))
    operations = 3 * 2 * 27 * CHANNELS**2 * math.prod(shape)
    return Measured(precision, seconds, operations / seconds, error)


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a float32 matrix product."""
    import torch

    rows = MATRICES[device.type]
    matrix = torch.randn(rows, rows, generator=torch.Generator().manual_seed(0)).to(device)
    return 2 * rows**3 / median_seconds(lambda: matrix @ matrix, device)


def median_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Median time of a few runs after a first that does not count; fewer if they take long."""
    import torch

    def timed() -> float:
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    timed()
    begin, seconds = time.perf_counter(), [timed()]
    while len(seconds) < REPEATS and time.perf_counter() - begin < PATIENCE:
        seconds.append(timed())
    return statistics.median(seconds)


# Right or wrong


def relative_error(
    x: Tensor, weights: Tensor, gradient: Tensor, answer: Tensor, to_x: Tensor, to_weights: Tensor
) -> float:
    """The largest relative error of a convolution's answer and of both its gradients, where it is worked out in float64.

    ``x``, ``gradient``, ``answer`` and ``to_x`` ``(1, C, D, H, W)``; ``weights`` and ``to_weights`` ``(C, C, 3, 3, 3)``.
    """
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(1)
    sites = torch.stack([torch.randint(s, (SAMPLES,), generator=generator) for s in x.shape[2:]], dim=1).tolist()
    padded_x, padded_gradient = (functional.pad(it[0].double(), (1,) * 6) for it in (x, gradient))
    kernel = weights.double()
    errors = [
        _error(answer, _at(padded_x, kernel, sites), sites),
        _error(to_x, _at(padded_gradient, kernel.transpose(0, 1).flip(2, 3, 4), sites), sites),
    ]
    drawn = torch.stack([torch.randint(s, (SAMPLES,), generator=generator) for s in weights.shape], dim=1).tolist()
    depth, height, width = x.shape[2:]
    expected = [
        (gradient[0, o].double() * padded_x[c, d : d + depth, h : h + height, w : w + width]).sum()
        for o, c, d, h, w in drawn
    ]
    got = torch.stack([to_weights[tuple(place)] for place in drawn]).double()
    return max(*errors, _relative(got, torch.stack(expected)))


def _at(padded: Tensor, kernel: Tensor, sites: list[list[int]]) -> Tensor:
    """A convolution's answer ``(sites, C)`` at ``sites`` ``(d, h, w)``."""
    import torch

    patches = torch.stack([padded[:, d : d + 3, h : h + 3, w : w + 3].flatten() for d, h, w in sites])
    return patches @ kernel.flatten(1).T


def _error(got: Tensor, expected: Tensor, sites: list[list[int]]) -> float:
    import torch

    return _relative(torch.stack([got[0, :, d, h, w] for d, h, w in sites]).double(), expected)


def _relative(got: Tensor, expected: Tensor) -> float:
    error = ((got - expected).square().mean() / expected.square().mean()).sqrt().item()
    return error if math.isfinite(error) else math.inf
