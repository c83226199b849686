"""What a GPU does with cov3d: checks first, then times, in one go.

    python tests/benchmarks/gpu.py

Needs a CUDA GPU, and of packages what ``cov3d train`` needs. It checks that a model trained on the GPU answers alike on
the CPU, that it is saved and loaded from either, that half precision and ``--accumulate`` work; then it times training
steps of the ResNet-18 and prints seconds, scans a second and peak memory beside the floor that the GPU's own matrix
products set; then those of the ConvNeXt-tiny, in both memory formats, with and without checkpointing, and which share of a
step its augmentation takes. Without a GPU it says so and does nothing.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import torch

from cov3d import (
    Augmentation,
    Machine,
    NetSettings,
    Preprocessing,
    RunSettings,
    Training,
    build,
    load_model,
    read_study,
    save_model,
    train,
)
from cov3d.errors import SettingError
from cov3d.nets.inputs import as_input
from cov3d.phantom import write_study
from cov3d.training.augment import augment

# Training FLOPs of one scan through r3d_18 (three times forward), and the (D, W) they are for.
SIZES = {(64, 128): 1.24e12, (128, 256): 9.9e12, (160, 320): 19.4e12}
BATCHES = (2, 8)
STEPS = 8


def main() -> None:
    """Check, then time."""
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA GPU here; nothing was checked")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    check_answers()
    for precision in ("fp32", "bf16", "fp16"):
        check_training(precision)
    ceiling = matrix_rate()
    print(f"bf16 matrix products: {ceiling / 1e12:.0f} TFLOP/s")
    print(f"{'size':>12} {'batch':>5} {'precision':>9} {'step s':>8} {'scans/s':>8} {'of floor':>8} {'peak GB':>8}")
    for (depth, width), flops in SIZES.items():
        for batch in BATCHES:
            for dtype in (torch.float32, torch.bfloat16):
                print_step(depth, width, batch, dtype, flops * batch / ceiling)
    print_convnext()


def check_answers() -> None:
    """A model saved from the GPU answers on the CPU as it did there."""
    net = NetSettings(base_width=16)
    built = build(net).cuda().eval()
    scan = torch.randint(0, 256, (2, 1, 32, 64, 64), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = save_model(Path(folder) / "m.safetensors", built, net, Preprocessing(width=64), "both", {})
        here, there = (
            load_model(file, "cpu").net(as_input(scan)),
            load_model(file, "cuda").net(as_input(scan.cuda())).cpu(),
        )
    difference = (here - there).abs().max().item()
    print(f"GPU and CPU logits differ by {difference:.1e}: {'ok' if difference < 1e-2 else 'WRONG'}")


def check_training(precision: str) -> None:
    """Two epochs on drawn chests, with accumulation, run and give a finite score."""
    settings = RunSettings(
        task="presence",
        preprocessing=Preprocessing(width=64),
        net=NetSettings(base_width=16, penultimate=64),
        training=Training(epochs=2, batch_size=2, accumulate=2, weights="none", precision=precision),
    )
    with tempfile.TemporaryDirectory() as folder:
        study = read_study(write_study(Path(folder) / "study", scans=16, size=64))
        try:
            run = train(study, settings, Machine(device="cuda"), Path(folder) / "cache", Path(folder) / "run")
        except SettingError as error:
            print(f"training in {precision}: {error}")
            return
        score = load_model(run.folder / "last.safetensors").training["macro_f1"]["presence"]
    print(f"training in {precision}: ok, macro F1 {score:.2f} after two epochs")


def matrix_rate(side: int = 8192) -> float:
    """Operations a second of large bf16 matrix products: the floor that steps are held against."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b)


def print_step(depth: int, width: int, batch: int, dtype: torch.dtype, floor: float) -> None:
    """Time a training step; a batch that does not fit is said not to."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    name = str(dtype).removeprefix("torch.")
    try:
        seconds = timed(training_step(depth, width, batch, dtype))
    except torch.OutOfMemoryError:
        print(f"{depth}x{width}x{width:<4} {batch:>5} {name:>9} does not fit")
        return
    peak = torch.cuda.max_memory_allocated() / 1e9
    shape = f"{depth}x{width}x{width}"
    print(
        f"{shape:>12} {batch:>5} {name:>9} {seconds:>8.3f} {batch / seconds:>8.2f} {floor / seconds:>8.0%} {peak:>8.1f}"
    )


def print_convnext(depth: int = 112, width: int = 224, batch: int = 4) -> None:
    """Time the ConvNeXt-tiny's training step, and the augmentation of its batch, at the published probabilities and at 1."""
    steps = {}
    for dtype in (torch.float32, torch.bfloat16):
        for memory in (torch.contiguous_format, torch.channels_last_3d):
            for checkpointing in (False, True):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                step = training_step(depth, width, batch, dtype, "convnext-tiny", memory, checkpointing)
                steps[dtype, memory, checkpointing] = seconds = timed(step)
                peak = torch.cuda.max_memory_allocated() / 1e9
                print(f"convnext-tiny {dtype}, {memory}, checkpointing {checkpointing}: {seconds:.3f} s, {peak:.1f} GB")
    fastest = min(steps.values())
    scans = torch.randint(0, 256, (batch, 1, depth, width, width), dtype=torch.uint8, device="cuda")
    generator = torch.Generator().manual_seed(0)
    published = Augmentation().numbers("convnext")
    everything = published._replace(**dict.fromkeys(published._fields[1:9], 1.0))
    for name, numbers in (("published", published), ("every step every time", everything)):
        seconds = timed(lambda numbers=numbers: augment(scans, numbers, generator))
        print(f"augmentation, {name}: {1000 * seconds:.1f} ms, {seconds / fastest:.1%} of the fastest step")


def training_step(
    depth: int,
    width: int,
    batch: int,
    dtype: torch.dtype,
    architecture: str = "resnet18",
    memory: torch.memory_format = torch.contiguous_format,
    checkpointing: bool = False,
):
    """A function that does one step on random scans."""
    net = build(NetSettings(architecture)).cuda().train().to(memory_format=memory)
    net.checkpointing = checkpointing
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    scans = torch.randint(0, 256, (batch, 1, depth, width, width), dtype=torch.uint8, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = net(as_input(scans).contiguous(memory_format=memory)).float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def timed(work) -> float:
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


if __name__ == "__main__":
    main()
