"""What stands in a run's folder, and in a cross-validation's: names that training and inference agree on."""

from __future__ import annotations

from pathlib import Path

PRETRAINED = Path("pretrained")  # beside outputs/, where infer looks for models that answer

CONFIG = "config.json"
ANSWERING = ("presence.safetensors", "severity.safetensors")
KEPT = (*ANSWERING, "masks.safetensors")
FINISHED = "metrics.json"  # the last thing that a run writes
PREDICTIONS = "predictions.csv"
STATE = "state.pt"  # what a stopped run goes on with
FLAT_WEIGHTS = "weights.safetensors"  # of a 2D network
OVERLAPS = "overlaps.csv"  # of masks
RUN_FILES = (
    CONFIG,
    "history.csv",
    *KEPT,
    "last.safetensors",
    FLAT_WEIGHTS,
    STATE,
    OVERLAPS,
    PREDICTIONS,
    FINISHED,
    "curves.png",
)

PLAN = "cross-validation.json"  # in a cross-validation's folder, and nowhere else
FOLDS = "folds.csv"
OUT_OF_FOLD = "out-of-fold.csv"
MOST_FOLDS = 100


def fold_folder(folder: Path, number: int) -> Path:
    """The run of a cross-validation's fold."""
    return folder / f"fold-{number}"
