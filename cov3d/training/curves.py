"""The curves of a training, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cov3d.commit import commit
from cov3d.training.judge import Measure

COLOURS = ("tab:blue", "tab:red", "tab:green")


def draw_curves(
    path: Path, history: Sequence[dict[str, Any]], measures: Mapping[str, Measure], best: Mapping[str, int]
) -> Path:
    """Draw losses and scores over the epochs, the kept epochs marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name in ("train_loss", "validation_loss"):
        losses = [np.nan if row[name] is None else row[name] for row in history]
        left.plot(epochs, losses, marker=".", label=name.replace("_", " "))
    for (scored, measure), colour in zip(measures.items(), COLOURS, strict=False):
        scores = [np.nan if row[measure.column] is None else row[measure.column] for row in history]
        right.plot(epochs, scores, marker=".", color=colour, label=f"{scored} {measure.name}")
        if scored in best:
            right.plot(best[scored], scores[best[scored] - 1], "o", ms=12, mfc="none", color=colour, label="kept")
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    right.set(xlabel="epoch", ylabel="score on validation scans", ylim=(0, 1.02))
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return commit(path, lambda file: figure.savefig(file, format="png", dpi=120))
