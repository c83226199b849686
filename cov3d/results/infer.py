"""Answers for scans: ``cov3d infer``. Reflection views and models averaged as probabilities, one row a scan."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cov3d import labels
from cov3d.commit import advice_on_disk_errors, commit_json
from cov3d.config import Inference, Machine, Preprocessing
from cov3d.console import printable, progress, say
from cov3d.errors import Cov3dError, ModelError, SettingError
from cov3d.nets.inputs import as_input, pick_device, reflect
from cov3d.nets.model import Model, load_model
from cov3d.predictions import COLUMNS, Prediction, read_predictions, write_predictions
from cov3d.results.submission import write_submission
from cov3d.scans.read import ask_scans, scan_name
from cov3d.scans.tensors import Tensors, read_tensors
from cov3d.tables import table_line

KEPT = ("presence.safetensors", "severity.safetensors")
SMALL = 64 * 128 * 128  # voxels
NOT_A_DEVICE = "research software, not a medical device: no answer here is a diagnosis"


def infer(
    scans: Iterable[str | Path],
    models: Sequence[str | Path] = (),
    output: str | Path = "predictions.csv",
    inference: Inference | None = None,
    machine: Machine | None = None,
    resume: bool = False,
    overwrite: bool = False,
    submission: str | Path | None = None,
) -> list[Prediction]:
    """Write and return one row for every scan asked for, in natural order; a failed scan's row names the cause.

    ``models`` are model files or run folders; if there are none, the best of every run under ``outputs/``. A scan is
    preprocessed as each model's file says. Rows are on disk as soon as they are made; with ``resume`` only scans that
    have no answer yet are done.

    Raises:
        Cov3dError: no scans, no models, or an output that exists or cannot be written.
    """
    inference, machine, output = inference or Inference(), machine or Machine(), Path(output)
    paths = ask_scans(scans)
    _check_output(output, resume, overwrite)
    device = pick_device(machine.device)
    if device.type == "cpu" and machine.workers is None:
        machine = replace(machine, workers=1)  # the network has the cores; more readers would only make it wait
    ensemble = Ensemble([load_model(file, device) for file in find_models(models)], inference)
    done = _resume(output, ensemble) if resume and output.exists() else {}
    say(f"{len(paths)} scans, {len(ensemble.models)} models on {device}. This is {NOT_A_DEVICE}.")
    commit_json(_provenance(output), ensemble.provenance())
    todo = [path for path in paths if path.as_posix() not in done]
    rows = [done[path.as_posix()] for path in paths if path.as_posix() in done]
    write_predictions(output, rows)
    with _appending(output) as append, progress(len(todo), "infer") as step:
        for tensors in read_tensors(todo, ensemble.preprocessings, machine):
            rows.append(ensemble.answer(todo[tensors.index], tensors))
            append(rows[-1])
            step(rows[-1].scan)
    write_predictions(output, rows)
    if submission is not None:
        write_submission(submission, rows)
    return rows


def find_models(asked: Sequence[str | Path]) -> list[Path]:
    """Model files for what was asked: files themselves, the kept ones of runs; or of all runs under ``outputs/``.

    Raises:
        ModelError: nothing there, and what to do.
    """
    if not asked:
        found = sorted(path for path in Path("outputs").rglob("*.safetensors") if path.name in KEPT)
        if not found:
            raise ModelError("there is no trained model under outputs/; run 'cov3d train', or name one with --model")
        return found
    files: list[Path] = []
    for path in map(Path, asked):
        if path.is_dir():
            kept = sorted(file for file in path.rglob("*.safetensors") if file.name in KEPT)
            if not kept:
                raise ModelError(f"{path}: holds no {' or '.join(KEPT)}; name a run's folder or a model file")
            files += kept
        else:
            files.append(path)
    return list(dict.fromkeys(files))


@dataclass(frozen=True)
class Ensemble:
    """Models whose probabilities are averaged: presence over those kept for presence, severity over those for severity."""

    models: Sequence[Model]
    inference: Inference

    @property
    def preprocessings(self) -> list[Preprocessing]:
        """The different ways in which its models want a scan."""
        return list(dict.fromkeys(model.preprocessing for model in self.models))

    def kept_for(self, task: str) -> list[int]:
        """Which models answer a task: those kept for it, or all if there are none."""
        chosen = [k for k, model in enumerate(self.models) if model.task in (task, "both")]
        return chosen or list(range(len(self.models)))

    def answer(self, path: Path, tensors: Tensors) -> Prediction:
        """The row of one scan."""
        begin = time.monotonic()
        about: dict[str, Any] = {
            "scan": scan_name(path),
            "path": path.as_posix(),
            "warning": "; ".join(tensors.warnings),
        }
        if tensors.error:
            return Prediction(**about, error=tensors.error)
        covid, severity = self.probabilities(tensors)
        if not (covid.isfinite().all() and severity.isfinite().all()):
            return Prediction(**about, error="the model's answer is not a number; is the model damaged?")
        return Prediction(
            **about,
            covid=float(covid),
            severity=tuple(severity.tolist()),
            threshold=self.inference.threshold,
            models=len(self.models),
            views=1 + self.inference.tta,
            seconds=tensors.seconds + time.monotonic() - begin,
        )

    @torch.inference_mode()
    def probabilities(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Covid ``()`` and severity ``(4,)`` of one scan, means over views and models."""
        inputs = {
            settings: torch.from_numpy(a) for settings, a in zip(self.preprocessings, tensors.arrays, strict=True)
        }
        answers = []
        for model in self.models:
            device = next(model.net.parameters()).device
            scan = as_input(inputs[model.preprocessing][None].to(device))  # (1, 1, D, H, W)
            logits = forward(model.net, self.views(scan))  # (V, 1, 6)
            covid, severity = labels.mean_over_views(logits.float().cpu())
            answers.append((covid[0], severity[0]))
        covid = torch.stack([answers[k][0] for k in self.kept_for("presence")]).mean(0)
        severity = torch.stack([answers[k][1] for k in self.kept_for("severity")]).mean(0)
        return covid, severity

    def views(self, scan: torch.Tensor) -> list[torch.Tensor]:
        """The scan, and its reflection if views are averaged."""
        return [scan, reflect(scan)] if self.inference.tta else [scan]

    def provenance(self) -> dict[str, Any]:
        """What the answers come from: models by fingerprint, and settings."""
        return {
            "models": [
                {"file": m.source.name if m.source else "", "sha256": m.sha256, "task": m.task} for m in self.models
            ],
            "tta": self.inference.tta,
            "threshold": self.inference.threshold,
        }


def forward(net: torch.nn.Module, views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logits ``(V, 1, 6)`` of views ``(1, 1, D, H, W)``: small ones as one batch, large ones one by one for less memory.

    torch gives single small volumes on a CPU to its slow convolution: a batch of two was ten times faster.
    """
    if views[0].numel() <= SMALL:
        return net(torch.cat(list(views)))[:, None]
    return torch.stack([net(view) for view in views])


def summary(rows: Sequence[Prediction], output: Path) -> str:
    """The last line of a run: answered and failed add up to what was asked."""
    failed = sum(bool(row.error) for row in rows)
    return f"{output}: {len(rows) - failed} answered, {failed} failed, {len(rows)} asked"


def _check_output(output: Path, resume: bool, overwrite: bool) -> None:
    if output.is_dir():
        raise SettingError(f"--output {output} is a folder; name a file, such as {output / 'predictions.csv'}")
    if output.exists() and not (resume or overwrite):
        raise SettingError(
            f"{output} exists; say --resume to go on with it, --overwrite to begin again, or another --output"
        )


@contextmanager
def _appending(output: Path) -> Iterator[Callable[[Prediction], None]]:
    """A function that puts a row on the disk before it returns."""
    with advice_on_disk_errors(output), output.open("a", encoding="utf-8", errors="backslashreplace") as file:

        def append(row: Prediction) -> None:
            cells = row.cells()
            file.write(table_line([cells[column] for column in COLUMNS]))
            file.flush()
            os.fsync(file.fileno())

        yield append


def _provenance(output: Path) -> Path:
    return output.with_name(output.name + ".json")


def _resume(output: Path, ensemble: Ensemble) -> dict[str, Prediction]:
    """Answers of an earlier run by path, a torn last line dropped."""
    try:
        before = json.loads(_provenance(output).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Cov3dError(
            f"{output}: nobody knows which models made it ({error}); begin again with --overwrite"
        ) from error
    if before != json.loads(json.dumps(ensemble.provenance())):
        raise SettingError(f"{output} was made with other models or settings; say --overwrite, or another --output")
    drop_torn_line(output)
    return {row.path: row for row in read_predictions(output) if not row.error and row.covid is not None}


def drop_torn_line(path: Path) -> None:
    """Cut off what a killed run left of a last line."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        say(f"note: {printable(str(path))} ended within a line; that scan is done again")
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
