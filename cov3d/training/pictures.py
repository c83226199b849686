"""Fit a 2D network to a folder of pictures, for a 3D one to begin with: ``cov3d pretrain --method imagenet``.

By the recipe of Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), on one channel, as Kienzle et al. (arXiv
2206.15073) did with grey ImageNet. The weights' moving average is kept after the last epoch; validation pictures choose
nothing. In trainings shorter than ImageNet's the average spans an eighth of their steps, since 10 000 would not be over
the random weights that it begins with.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from fastai.optimizer import Adam
from torch import nn

import cov3d
from cov3d.commit import commit, commit_json
from cov3d.config import Machine, NetSettings, Saving, Training, recorded
from cov3d.config.pictures import PICTURE_TRAINING, PictureSettings, check_pictures, picture_ema
from cov3d.console import few, plural, say
from cov3d.nets.activations import check_batch
from cov3d.nets.flat import build_flat
from cov3d.nets.model import plain
from cov3d.nets.weights import check_finite
from cov3d.runs import FINISHED, FLAT_WEIGHTS, PRETRAINED
from cov3d.tables import write_table
from cov3d.training.curves import draw_curves
from cov3d.training.description import command, versions
from cov3d.training.ema import Ema
from cov3d.training.fit import Fit, seed_everything
from cov3d.training.loaders import Loaders
from cov3d.training.pictures_epochs import FAILURES, PictureKeeper, WarmedCosine
from cov3d.training.pictures_found import Pictures, find_pictures
from cov3d.training.pictures_varied import Mix, picture_loaders
from cov3d.training.precision import pick_precision
from cov3d.training.session import session
from cov3d.training.train import Run, check_run_folder

UNCHOSEN = "these validation pictures chose nothing: the last epoch is kept"
METADATA = "pretraining"  # the safetensors file's, beside the tensors


def pretrain_pictures(
    folder: str | Path,
    settings: PictureSettings | None = None,
    training: Training | None = None,
    net: NetSettings | None = None,
    machine: Machine | None = None,
    output_dir: str | Path = PRETRAINED / "imagenet",
    overwrite: bool = False,
    resume: bool = False,
    saving: Saving | None = None,
) -> Run:
    """Fit a 2D network to pictures in class folders; its ``weights.safetensors`` are for ``train --weights FILE --inflate``.

    With ``resume`` a run that was stopped goes on where it was saved last, as if it had not been stopped. The processes of
    torchrun, or of srun, train together.

    Writes the run's folder: weights, settings, history, accuracy, and the pictures that do not open.

    Raises:
        SettingError: settings that exclude each other, an output that exists, or nothing to resume.
        StudyError: no pictures to learn from; see :func:`cov3d.training.pictures_found.find_pictures`.
        Stopped: a signal, or the end of its time; all is saved.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    settings, machine = settings or PictureSettings(), machine or Machine()
    training, net = training or Training(**PICTURE_TRAINING), net or NetSettings(architecture="convnext-tiny")
    check_pictures(settings, training, net)
    output = Path(output_dir)
    groups = {"settings": recorded(settings), "training": recorded(training), "net": recorded(net)}
    with session(
        machine, saving, resume, command="imagenet", output_dir=str(output), overwrite=overwrite, **groups
    ) as here:
        if here.ranks.first:
            check_run_folder(output, overwrite, resume)
        found = find_pictures(Path(folder), training, machine)
        if here.ranks.first:
            tell(found, output)
        seed_everything(training.seed)
        network = build_flat(net, len(found.classes))
        check_batch(network, training.batch_size, (settings.side,) * 2, here.device)
        network.checkpointing = training.checkpoint_activations
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        say(f"2D {net.architecture}: {millions:.2f} M parameters on {here.device}")
        config = {**describe(found, settings, training, net), "processes": here.ranks.size}
        about = {"command": command(), **config, "versions": versions(), "machine": recorded(machine)}
        keeper = PictureKeeper(output, about, len(found.classes))
        data = picture_loaders(found, settings, training, machine, here.device, here.ranks)
        run = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        fitted = Fit(training, pick_precision(training.precision, here.device), run, here, keeper, output)
        kept = fit_pictures(network, data, fitted, settings, len(found.classes))
        if here.ranks.first:
            finish(output, kept, config, keeper)
        here.ranks.wait()
    return Run(output, found.failures)


def fit_pictures(network: nn.Module, data: Loaders, fitted: Fit, settings: PictureSettings, classes: int) -> nn.Module:
    """Fit a 2D network; its moving average, or itself where there is none."""
    training = fitted.training
    decay = picture_ema(training, training.epochs * -(-len(data.train) // training.accumulate))
    average = Ema(decay) if decay else None
    processes = fitted.session.ranks.size
    rate, step = settings.highest_rate(training, processes), training.step(processes)
    if settings.rate_batch:
        scaled = f"{training.learning_rate:g} is for {settings.rate_batch} pictures a step, and a step is {step}"
        say(f"learning rate at its highest {rate:.3g}: {scaled}; --rate-batch 0 takes it as it is")
    learner = fitted.learner(
        network,
        data,
        nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing),
        partial(Adam, sqr_mom=0.999, eps=1e-8, decouple_wd=training.optimizer == "adamw"),
        average,
        [Mix(settings, classes), WarmedCosine(settings.warmup(training.epochs), rate, settings.final_rate)],
        splitter=matrices_and_vectors,
    )
    with fitted.going(learner):
        learner.fit(training.epochs, lr=rate, wd=[training.weight_decay, 0.0])
    return average.average.module if average else network


def matrices_and_vectors(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters that decay, kernels and matrices, and those that do not: biases, norms, layer scales."""
    parameters = list(network.parameters())
    return [[p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]]


def describe(found: Pictures, settings: PictureSettings, training: Training, net: NetSettings) -> dict[str, Any]:
    """What a run is, in plain values."""
    counts = {"train": len(found.train), "validation": len(found.validation), "unreadable": len(found.failures)}
    about = {"source": found.folder.resolve().name, "fingerprint": found.fingerprint, "classes": list(found.classes)}
    return {
        "method": "imagenet",
        "pictures": {**about, **counts},
        "settings": recorded(settings),
        "training": recorded(training),
        "net": recorded(net),
    }


def tell(found: Pictures, output: Path) -> None:
    """Say how many pictures there are, and list those that do not open."""
    say(
        f"note: {plural(len(found.train), 'picture')} to learn {len(found.classes)} classes from, and "
        f"{len(found.validation)} to score by, which choose nothing"
    )
    if found.ignored:
        say(f"note: {plural(found.ignored, 'file')} left alone, whose names are not pictures'")
    (output / FAILURES).unlink(missing_ok=True)
    if found.failures:
        rows = [{"picture": name, "error": cause} for name, cause in found.failures.items()]
        path = write_table(output / FAILURES, ["picture", "error"], rows)
        some = few([f"{name} {cause}" for name, cause in found.failures.items()], "; ")
        say(f"note: {plural(len(rows), 'picture')} left out ({some}); all in {path}")


def finish(output: Path, network: nn.Module, config: dict[str, Any], keeper: PictureKeeper) -> None:
    """Write the weights, in float32, how well they do, and the curves."""
    last = keeper.history[-1]
    draw_curves(output / "curves.png", keeper.history, keeper.judge.measures, {})
    tensors = {name: plain(tensor) for name, tensor in network.state_dict().items()}
    check_finite(tensors, output / FLAT_WEIGHTS)
    scores = {name: last[name] for name in ("epoch", "accuracy", "validation_loss")}
    about = {"version": cov3d.__version__, **config, **scores, "note": UNCHOSEN}
    data = safetensors.torch.save(tensors, {METADATA: json.dumps(about)})
    commit(output / FLAT_WEIGHTS, lambda file: file.write(data))
    commit_json(output / FINISHED, {**scores, "pictures": config["pictures"]["validation"], "note": UNCHOSEN})
    say(f"accuracy {last['accuracy']:.4f} after the last epoch; {UNCHOSEN}")
    width = f" --base-width {config['net']['base_width']}" if config["net"]["base_width"] else ""
    say(
        f"go on with cov3d train --architecture {config['net']['architecture']}{width} --weights {output / FLAT_WEIGHTS} "
        "--inflate full"
    )
