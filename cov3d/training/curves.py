"""The curves of a training, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cov3d.commit import commit


def draw_curves(path: Path, history: Sequence[dict[str, Any]], best: dict[str, int]) -> Path:
    """Draw losses and macro F1 over the epochs, the kept epochs marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for name in ("train_loss", "validation_loss"):
        losses = [np.nan if row[name] is None else row[name] for row in history]
        left.plot(epochs, losses, marker=".", label=name.replace("_", " "))
    for task, colour in (("presence", "tab:blue"), ("severity", "tab:red")):
        scores = [np.nan if row[f"{task}_f1"] is None else row[f"{task}_f1"] for row in history]
        right.plot(epochs, scores, marker=".", color=colour, label=task)
        if task in best:
            right.plot(best[task], scores[best[task] - 1], "o", ms=12, mfc="none", color=colour, label="kept")
    left.set(xlabel="epoch", ylabel="loss", yscale="log")
    right.set(xlabel="epoch", ylabel="macro F1 on validation scans", ylim=(0, 1.02))
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return commit(path, lambda file: figure.savefig(file, format="png", dpi=120))
