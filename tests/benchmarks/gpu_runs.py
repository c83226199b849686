"""Whether pretraining, masks and runs that are stopped do on a GPU what they do on a CPU, in one go.

    python tests/benchmarks/gpu_runs.py [--device cuda]

Needs a CUDA GPU; with ``--device cpu`` the same is tried without, in a few minutes. In turn: what ``cov3d doctor`` finds; a 2D
network learnt from pictures that processes read; a network that learns masks, inflated from it, and the masks it draws; a
training in each precision, stopped after every few batches by ``--max-hours 0`` and gone on with, beside one that nobody stopped;
and two processes under torchrun, on as many GPUs. Each line says ok, or what is wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cov3d import (
    Machine,
    NetSettings,
    PictureSettings,
    Preprocessing,
    RunSettings,
    Saving,
    Training,
    doctor,
    find_recipe,
    infer,
    load_model,
    pretrain,
    pretrain_pictures,
    read_study,
    train,
)
from cov3d.checkup.findings import report_text
from cov3d.config.pictures import PICTURE_TRAINING
from cov3d.errors import Cov3dError
from cov3d.phantom import write_study
from cov3d.stopping import Stopped

NET = NetSettings("convnext-micro", base_width=16)


def pictures(root: Path, machine: Machine) -> str:
    """A 2D network."""
    training = Training(**{**PICTURE_TRAINING, "epochs": 2, "batch_size": 32, "learning_rate": 1e-3})
    settings = PictureSettings(side=64, rate_batch=0, warmup_epochs=0.3)
    pretrain_pictures(root / "study" / "train", settings, training, NET, machine, root / "pictures")
    return f"{(root / 'pictures' / 'weights.safetensors').stat().st_size >> 10} KiB of weights"


def masks(root: Path, machine: Machine) -> str:
    """Lesions learnt and drawn."""
    weights = str(root / "pictures" / "weights.safetensors")
    said = {"task": "severity", "width": 64, "depth": 48, "epochs": 3, "batch_size": 4, "learning_rate": 3e-3}
    recipe = find_recipe("convnext-severity-random")
    settings = recipe.settings(
        **said, architecture="convnext-micro", base_width=16, weights=weights, inflate="full", precision="auto"
    )
    study = read_study(root / "study")
    run = pretrain(study, "segmentation", settings, None, machine, root / "cache", root / "masks")
    rows = infer([root / "study" / "validation"], [run.folder], root / "p.csv", machine=machine, masks=root / "drawn")
    return f"{len(list((root / 'drawn').iterdir()))} masks of {len(rows)} scans"


def stopped(root: Path, machine: Machine, precision: str) -> str:
    """A training that is stopped after each step, beside one that is not."""
    settings = RunSettings(
        preprocessing=Preprocessing(width=64, depth=32),
        net=replace(NET, drop_path=0.2),
        training=Training(epochs=3, batch_size=4, precision=precision, learning_rate=1e-3, ema=0.9),
    )
    study = read_study(root / "study")
    whole = train(study, settings, machine, root / "cache", root / f"whole-{precision}").folder
    folder, sessions = root / f"stopped-{precision}", 0
    while True:
        sessions += 1
        try:
            train(study, settings, machine, root / "cache", folder, resume=sessions > 1, saving=Saving(max_hours=0.0))
            break
        except Stopped:
            pass
    one, other = (load_model(run / "last.safetensors").net.state_dict() for run in (whole, folder))
    apart = max((one[name].float() - other[name].float()).abs().max().item() for name in one)
    return f"{sessions} sessions, weights {apart:.1e} apart"


def together(root: Path, device: str) -> str:
    """Two processes, killed by nobody."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        return "skipped: one GPU"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cov3d", "train"]
    command += [str(root / "study"), "--width", "64", "--epochs", "2", "--base-width", "16", "--device", device]
    command += ["--cache", str(root / "cache"), "--output-dir", str(root / "together"), "--sync-batchnorm", "--quiet"]
    subprocess.run(command, check=True)
    return "trained"


def tried(name: str, attempt: Callable[[], str]) -> bool:
    begin = time.monotonic()
    try:
        said, fine = attempt(), True
    except (Cov3dError, subprocess.CalledProcessError, RuntimeError) as error:
        said, fine = f"{type(error).__name__}: {error}", False
    print(f"{name}: {'ok' if fine else 'WRONG'}, {said}, {time.monotonic() - begin:.0f} s", flush=True)
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA GPU here; nothing was checked")
    machine = Machine(device=device, workers=4)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_study(root / "study", scans=40, size=64)
        print(report_text(doctor(root / "cache", root / "outputs", machine)), flush=True)
        fine = [tried("pictures", lambda: pictures(root, machine)), tried("masks", lambda: masks(root, machine))]
        for precision in ("fp32", "bf16", "fp16") if device == "cuda" else ("fp32",):
            fine.append(tried(f"stopped, {precision}", lambda p=precision: stopped(root, machine, p)))
        fine.append(tried("together", lambda: together(root, device)))
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
