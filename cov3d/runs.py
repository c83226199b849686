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
STATE_BEFORE = "state-before.pt"  # what was saved before it
FLAT_WEIGHTS = "weights.safetensors"  # of a 2D network
OVERLAPS = "overlaps.csv"  # of masks
RUN_FILES = (
    CONFIG,
    "history.csv",
    *KEPT,
    "last.safetensors",
    FLAT_WEIGHTS,
    STATE,
    STATE_BEFORE,
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


def clear_run(folder: Path) -> None:
    """Take an earlier run away, but for the state: a run that has saved one within its first epoch may still need it."""
    for name in RUN_FILES:
        if name not in (STATE, STATE_BEFORE):
            (folder / name).unlink(missing_ok=True)
