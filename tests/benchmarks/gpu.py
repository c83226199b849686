"""What a GPU does with cov3d: every command small, the checks that need one, and the times, as one table.

    python tests/benchmarks/gpu.py [--device cuda] [--output gpu.md]

Needs a CUDA GPU and the packages of ``cov3d train``; about ten minutes. In turn:

1. each command on a drawn study, as a user runs it; a training in each precision, and once more, stopped after its first step
   and resumed;
2. whether answers are those of a CPU, and weights those of a run that was not stopped;
3. the tests that have a GPU's part (``tests/test_fake_cuda.py`` and others), where pytest is installed;
4. seconds, scans a second and peak memory of training steps, beside the floor that the GPU's own matrix products set; which
   share of a step the augmentation takes; scans an hour of inference.

Each line is written when it is known. With ``--device cpu`` the first two are tried without a GPU, in a few minutes.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cov3d import Augmentation, Inference, NetSettings, build
from cov3d.config import Preprocessing
from cov3d.nets.inputs import as_input
from cov3d.nets.model import Model
from cov3d.results.ensemble import Ensemble
from cov3d.runs import STATE
from cov3d.training.augment import augment

ROOT = Path(__file__).resolve().parents[2]
GPU_TESTS = ("tests/test_fake_cuda.py", "tests/training/test_gpu.py", "tests/results/test_gpu.py")
STOPPED = 75  # the exit code of a run that can be resumed
SMALL = ("--width", 64, "--depth", 64, "--epochs", 2, "--batch-size", 4, "--learning-rate", 1e-3)
RESNET = ("--architecture", "resnet18", "--base-width", 16)
CONVNEXT = ("--architecture", "convnext-micro", "--base-width", 16)
# Training FLOPs of one scan through r3d_18 (three times forward), and the (D, W) they are for.
SIZES = {(64, 128): 1.24e12, (128, 256): 9.9e12, (160, 320): 19.4e12}
BATCHES = (2, 8)
STEPS = 8


class Table:
    """Lines of what was done, on the screen and in a file as soon as they are known."""

    def __init__(self, path: Path | None):
        self.path, self.wrong = path, 0
        if path is not None:
            path.write_text("", encoding="utf-8")
        self.line("what", "found", "seconds")
        self.line("---", "---", "---:")

    def line(self, what: str, found: str, seconds: str = "") -> None:
        text = f"| {what} | {found} | {seconds} |"
        print(text, flush=True)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")

    def tried(self, what: str, attempt: Callable[[], str]) -> None:
        """A line for what an attempt found, or for what went wrong; the next one follows in any case."""
        begin = time.monotonic()
        try:
            found = attempt()
        except Exception as error:
            self.wrong += 1
            found = f"**WRONG**: {type(error).__name__}: {' '.join(str(error).split())[:600]}"
        self.line(what, found, f"{time.monotonic() - begin:.1f}")


def environment() -> dict[str, str]:
    """This process's, in which the repository's own cov3d is found, installed or not."""
    return {**os.environ, "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def cov3d(root: Path, *arguments: Any, code: int = 0) -> str:
    """The last line that a command prints, in the folder ``root``."""
    command = [sys.executable, "-m", "cov3d", *map(str, arguments)]
    run = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True)
    if run.returncode != code:
        raise RuntimeError(f"exit {run.returncode}, not {code}: {run.stderr[-500:]}")
    return (run.stdout.strip().splitlines() or ["ok"])[-1]


def run_commands(table: Table, root: Path, device: str) -> None:
    """Every command, as a user runs it."""
    on = ("--device", device)
    precisions = ("fp32", "bf16", "fp16") if device == "cuda" else ("fp32",)

    def command(*arguments: Any, code: int = 0) -> None:
        shown = " ".join(map(str, arguments[:4]))
        table.tried(f"cov3d {shown}", lambda: cov3d(root, *arguments, code=code))

    command("demo", "demo", *on)
    command("phantom", "study", "--scans", 48, "--size", 64, "--format", "nifti")
    command("check", "study")
    command("doctor", *on)
    command("preprocess", "study", *SMALL[:4])
    for precision in precisions:
        train = ("train", "study", "--task", "both", *SMALL, *CONVNEXT, *on, "--precision", precision)
        whole, parts = f"runs/whole-{precision}", f"runs/stopped-{precision}"
        command(*train, "--output-dir", whole)
        command(*train, "--output-dir", parts, "--max-hours", 0, code=STOPPED)
        begun = network(root / parts) if (root / parts / STATE).exists() else {}
        command(*train, "--output-dir", parts, "--resume")
        table.tried(f"{precision}: resumed against uninterrupted", partial(apart, root / whole, root / parts, begun))
    accumulated = ("--accumulate", 2, "--clip", 1, "--ema", 0.9, "--checkpoint-activations", "--skip-nan")
    command("train", "study", "--task", "severity", *SMALL, *RESNET, *on, *accumulated)
    command("train", "study", "--task", "presence", *SMALL, *RESNET, *on)
    if device == "cpu" or torch.cuda.device_count() > 1:
        table.tried("torchrun, two processes", lambda: torchrun(root, on))
    else:
        table.line("torchrun, two processes", "not checked: there is one GPU")
    folds = ("--folds", 2, "--output-dir", "runs/folds")
    command("cross-validate", "study", "--task", "presence", *SMALL, *CONVNEXT, *on, *folds)
    learning = (*SMALL, *CONVNEXT, *on)
    command("pretrain", "study", "--method", "segmentation", *learning)
    command("pretrain", "study", "--method", "segmia", "--teacher", "pretrained/segmentation", "--soft", *learning)
    command("pretrain", "study", "--method", "multitask", "--teacher", "pretrained/segmentation", "--soft", *learning)
    draw_classes(root / "pictures")
    pictures = ("--side", 64, "--epochs", 2, "--batch-size", 8, "--rate-batch", 0, "--learning-rate", 1e-3)
    command("pretrain", "pictures", "--method", "imagenet", *pictures, *CONVNEXT, *on)
    models = ("--model", "outputs/severity", "--model", "outputs/presence", "--model", "pretrained/multitask")
    for name in dict.fromkeys((device, "cpu")):
        answers = ("--output", f"{name}.csv", "--masks", f"masks-{name}")
        command("infer", "study/validation", *models, *answers, "--device", name)
    table.tried("answers of both devices", lambda: answers_apart(root / f"{device}.csv", root / "cpu.csv"))
    command("evaluate", f"{device}.csv", "study")
    command("show-batch", "study", *SMALL[:4], "--architecture", "convnext-tiny")


def torchrun(root: Path, on: tuple[str, str]) -> str:
    """Two processes that train together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cov3d", "train", "study"]
    options = (*SMALL, *RESNET, *on, "--sync-batchnorm", "--output-dir", "runs/together")
    run = subprocess.run([*command, *map(str, options)], cwd=root, env=environment(), capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"exit {run.returncode}: {run.stderr[-500:]}")
    return "trained"


def network(run: Path) -> dict[str, torch.Tensor]:
    """The network of a run as it was saved last."""
    return torch.load(run / STATE, map_location="cpu", weights_only=True)["parts"]["network"]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """How far two networks' weights are apart: the Euclidean norm."""
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def apart(whole: Path, resumed: Path, begun: dict[str, torch.Tensor]) -> str:
    """How far two runs are apart, as a share of how far they have come since ``begun``."""
    share = distance(network(whole), network(resumed)) / distance(network(whole), begun)
    if not share < 0.5:
        raise RuntimeError(f"weights are {share:.0%} of the way apart")
    return "the same to the bit" if share == 0 else f"weights {share:.1e} of the way apart"


def answers_apart(one: Path, other: Path) -> str:
    """How far the probabilities of two tables are apart."""
    tables = []
    for path in (one, other):
        with path.open(newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    columns = ("covid_probability", "mild", "moderate", "severe", "critical")
    largest = max(abs(float(a[name]) - float(b[name])) for a, b in zip(*tables, strict=True) for name in columns)
    if not largest < 1e-2:
        raise RuntimeError(f"probabilities are {largest:.1e} apart")
    return f"{len(tables[0])} scans, probabilities at most {largest:.1e} apart"


def draw_classes(folder: Path) -> None:
    """Pictures of two classes: smooth, and noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("noise", "smooth"):
        (folder / name).mkdir(parents=True)
        for k in range(24):
            side = 64 if name == "noise" else 4
            pixels = random.integers(0, 256, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / name / f"{k}.png")


def run_tests() -> str:
    """The tests that have a GPU's part."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    run = subprocess.run([*command, *GPU_TESTS], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError("; ".join(line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))))
    return run.stdout.strip().splitlines()[-1]


def time_steps(table: Table) -> None:
    """Training steps of both families beside the floor, and the share of augmentation."""
    ceiling = matrix_rate()
    table.line("bf16 matrix products", f"{ceiling / 1e12:.0f} TFLOP/s")
    for (depth, width), flops in SIZES.items():
        for batch in BATCHES:
            for dtype in (torch.float32, torch.bfloat16):
                floor = flops * batch / ceiling
                time_step(table, NetSettings("resnet18"), (depth, width, batch), dtype, floor)
    fastest = float("inf")
    for dtype in (torch.float32, torch.bfloat16):
        for memory in (torch.contiguous_format, torch.channels_last_3d):
            seconds = time_step(table, NetSettings("convnext-tiny"), (112, 224, 4), dtype, None, memory)
            fastest = min(fastest, seconds)
    scans = torch.randint(0, 256, (4, 1, 112, 224, 224), dtype=torch.uint8, device="cuda")
    generator = torch.Generator().manual_seed(0)
    for name, numbers in augmentations().items():
        seconds = timed(partial(augment, scans, numbers, generator))
        share = f"{seconds / fastest:.1%} of the fastest step"
        table.line(f"augmentation 4 × 112×224², {name}", share, f"{seconds:.4f}")


def augmentations() -> dict[str, Any]:
    """The published probabilities, and every step every time."""
    published = Augmentation().numbers("convnext")
    return {"published": published, "every step": published._replace(**dict.fromkeys(published._fields[1:9], 1.0))}


def time_step(
    table: Table,
    settings: NetSettings,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    floor: float | None,
    memory: torch.memory_format = torch.contiguous_format,
) -> float:
    """A line for one training step of (D, W, batch); infinity if it does not fit."""
    depth, width, batch = size
    what = f"{settings.architecture}, {batch} × {depth}×{width}², {str(dtype)[6:]}, {str(memory)[6:]}"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        seconds = timed(training_step(settings, size, dtype, memory))
    except torch.OutOfMemoryError:
        table.line(what, "does not fit")
        return float("inf")
    peak = torch.cuda.max_memory_allocated() / 1e9
    share = "" if floor is None else f"{floor / seconds:.0%} of the floor, "
    table.line(what, f"{batch / seconds:.2f} scans/s, {share}{peak:.1f} GB", f"{seconds:.4f}")
    return seconds


def training_step(
    settings: NetSettings, size: tuple[int, int, int], dtype: torch.dtype, memory: torch.memory_format
) -> Callable[[], None]:
    """A function that does one step on random scans."""
    depth, width, batch = size
    net = build(settings).cuda().train().to(memory_format=memory)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    scans = torch.randint(0, 256, (batch, 1, depth, width, width), dtype=torch.uint8, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = net(as_input(scans).contiguous(memory_format=memory)).float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def time_inference(table: Table) -> None:
    """Answers of one network, with reflection, for scans that are read already."""
    for depth, width in SIZES:
        settings, preprocessing = NetSettings("resnet18"), Preprocessing(width=width, depth=depth)
        model = Model(build(settings).cuda().eval(), settings, preprocessing, "both", {}, None, "")
        ensemble = Ensemble([model], Inference())
        scan = torch.randint(0, 256, (1, depth, width, width), dtype=torch.uint8)
        seconds = timed(partial(ensemble.probabilities, {preprocessing: scan}))
        table.line(f"infer, resnet18 {depth}×{width}²", f"{3600 / seconds:.0f} scans an hour", f"{seconds:.4f}")


def matrix_rate(side: int = 8192) -> float:
    """Operations a second of large bf16 matrix products: the floor that steps are held against."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b)


def timed(work: Callable[[], Any]) -> float:
    """Median seconds by the device's own clock, after warming up."""
    seconds = []
    for k in range(STEPS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if k >= 3:
            seconds.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(seconds)


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    if gpu and not torch.cuda.is_available():
        sys.exit("there is no CUDA GPU here; nothing was checked. --device cpu tries the commands without one")
    table = Table(asked.output)
    table.line("machine", f"{torch.cuda.get_device_name() if gpu else 'CPU'}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        run_commands(table, Path(folder), asked.device)
    if gpu and importlib.util.find_spec("pytest"):
        table.tried("tests that have a GPU's part", run_tests)
    if gpu:
        table.tried("training steps", lambda: time_steps(table) or "above")  # type: ignore[func-returns-value]
        table.tried("inference", lambda: time_inference(table) or "above")  # type: ignore[func-returns-value]
    sys.exit(f"{table.wrong} of these went wrong" if table.wrong else 0)


if __name__ == "__main__":
    main()
