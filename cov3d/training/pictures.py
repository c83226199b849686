"""Fit a 2D network to a folder of pictures, for a 3D one to begin with: ``cov3d pretrain --method imagenet``.

By the recipe of Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), on one channel, as Kienzle et al. (arXiv
2206.15073) did with grey ImageNet. The weights' moving average is kept after the last epoch; validation pictures choose
nothing. In trainings shorter than ImageNet's the average spans an eighth of their steps, since 10 000 would not be over
the random weights that it begins with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from fastai.learner import TrainEvalCallback
from fastai.optimizer import Adam
from torch import nn

import cov3d
from cov3d.commit import commit, commit_json
from cov3d.config import Machine, NetSettings, Training, recorded
from cov3d.config.pictures import PICTURE_TRAINING, PictureSettings, check_pictures, picture_ema
from cov3d.console import few, plural, progress, say
from cov3d.nets.flat import build_flat
from cov3d.nets.inputs import pick_device
from cov3d.nets.model import plain
from cov3d.nets.weights import check_finite
from cov3d.runs import FINISHED, FLAT_WEIGHTS, PRETRAINED, STATE
from cov3d.tables import write_table
from cov3d.training.curves import draw_curves
from cov3d.training.description import command, versions
from cov3d.training.ema import Ema
from cov3d.training.fit import advice, pick_precision, seed_everything, steps
from cov3d.training.judge import Measure
from cov3d.training.loaders import Loaders
from cov3d.training.pictures_epochs import FAILURES, PictureEpochs, WarmedCosine
from cov3d.training.pictures_found import Pictures, find_pictures
from cov3d.training.pictures_varied import Mix, picture_loaders
from cov3d.training.state import Drawn, Part, ResumableLearner, State, read_state
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
) -> Run:
    """Fit a 2D network to pictures in class folders; its ``weights.safetensors`` are for ``train --weights FILE --inflate``.

    With ``resume`` a run that was stopped goes on after its last whole epoch, as if it had not been stopped.

    Writes the run's folder: weights, settings, history, accuracy, and the pictures that do not open.

    Raises:
        SettingError: settings that exclude each other, an output that exists, or nothing to resume.
        StudyError: no pictures to learn from; see :func:`cov3d.training.pictures_found.find_pictures`.
        Cov3dError: no room on the device or disk, or a loss that is no number.
    """
    settings, machine = settings or PictureSettings(), machine or Machine()
    training, net = training or Training(**PICTURE_TRAINING), net or NetSettings(architecture="convnext-tiny")
    check_pictures(settings, training, net)
    device = pick_device(machine.device)
    precision = pick_precision(training.precision, device)
    output = check_run_folder(Path(output_dir), overwrite, resume)
    found = find_pictures(Path(folder), training, machine)
    config = describe(found, settings, training, net)
    run = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    saved = read_state(output / STATE, run) if resume else None
    for note in notes(found, output):
        say(f"note: {note}")
    seed_everything(training.seed)
    network = build_flat(net, len(found.classes)).to(device)
    network.checkpointing = training.checkpoint_activations
    say(f"2D {net.architecture}: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters on {device}")
    epochs = PictureEpochs(
        output, {"command": command(), **config, "versions": versions(), "machine": recorded(machine)}
    )
    data = picture_loaders(found, settings, training, machine, device)
    state = partial(State, output / STATE, run, found=saved)
    kept = fit_pictures(network, data, epochs, state, settings, training, precision, len(found.classes))
    draw_curves(output / "curves.png", epochs.history, {"pictures": Measure("accuracy", "accuracy", "accuracy")}, {})
    finish(output, kept, config, epochs.history[-1])
    return Run(output, found.failures)


def fit_pictures(
    network: nn.Module,
    data: Loaders,
    epochs: PictureEpochs,
    state: Callable[[dict[str, Part]], State],
    settings: PictureSettings,
    training: Training,
    precision: str,
    classes: int,
) -> nn.Module:
    """Fit a 2D network; its moving average, or itself where there is none."""
    decay = picture_ema(training, training.epochs * -(-len(data.train) // training.accumulate))
    average = Ema(decay) if decay else None
    parts: dict[str, Part] = {"network": network, "history": epochs, "order": Drawn(data.order)}
    parts |= {"average": average} if average else {}
    rate, step = settings.highest_rate(training), training.batch_size * training.accumulate
    if settings.rate_batch:
        scaled = f"{training.learning_rate:g} is for {settings.rate_batch} pictures a step, and a step is {step}"
        say(f"learning rate at its highest {rate:.3g}: {scaled}; --rate-batch 0 takes it as it is")
    learner = ResumableLearner(
        data,
        network,
        loss_func=nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing),
        opt_func=partial(Adam, sqr_mom=0.999, eps=1e-8, decouple_wd=training.optimizer == "adamw"),
        splitter=matrices_and_vectors,
        default_cbs=False,
        cbs=[
            TrainEvalCallback(),
            Mix(settings, classes),
            WarmedCosine(settings.warmup(training.epochs), rate, settings.final_rate),
            *([average] if average else []),
            *steps(training, precision),
            epochs,
            state(parts),
        ],
    )
    with advice("--side or --base-width"), progress(training.epochs * len(data.train), "pretrain") as epochs.step:
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


def notes(found: Pictures, output: Path) -> Iterator[str]:
    """What is to be said of the pictures, and the list of those that do not open."""
    yield (
        f"{plural(len(found.train), 'picture')} to learn {len(found.classes)} classes from, and {len(found.validation)} to "
        "score by, which choose nothing"
    )
    if found.ignored:
        yield f"{plural(found.ignored, 'file')} left alone, whose names are not pictures'"
    (output / FAILURES).unlink(missing_ok=True)
    if found.failures:
        rows = [{"picture": name, "error": cause} for name, cause in found.failures.items()]
        path = write_table(output / FAILURES, ["picture", "error"], rows)
        some = few([f"{name} {cause}" for name, cause in found.failures.items()], "; ")
        yield f"{plural(len(rows), 'picture')} left out ({some}); all in {path}"


def finish(output: Path, network: nn.Module, config: dict[str, Any], last: dict[str, Any]) -> None:
    """Write the weights, in float32, and how well they do."""
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
