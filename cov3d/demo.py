"""The whole way on drawn chests: ``cov3d demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cov3d.config import LossSettings, Machine, NetSettings, Preprocessing, Training
from cov3d.console import say, show

# Small enough for two CPU cores, large enough to learn from.
SCANS = 120
PREPROCESSING = Preprocessing(width=64)
NET = NetSettings(base_width=16, dropout=0.1, penultimate=64)
TRAINING = Training(epochs=12, batch_size=4, learning_rate=1e-3, weights="none", validation_fraction=0.2)


def demo(
    folder: str | Path = "cov3d-demo", seed: int = 0, machine: Machine | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Draw a study, preprocess, train, infer and evaluate it; return the scores.

    The epoch is chosen on a fifth of the training scans, so the study's validation scans, on which the scores are made,
    have chosen nothing.
    """
    from dataclasses import replace

    from cov3d.phantom import write_study
    from cov3d.results.evaluate import evaluate, report
    from cov3d.results.infer import infer
    from cov3d.scans.study import read_study
    from cov3d.training.train import train

    folder = Path(folder)
    say(f"1 of 4: drawing {SCANS} chests into {folder / 'study'}")
    study = read_study(write_study(folder / "study", scans=SCANS, seed=seed, overwrite=overwrite))
    say("2 of 4: preprocessing and training")
    training = replace(TRAINING, seed=seed)
    cache, runs = folder / "cache", folder / "outputs"
    run = train(study, "both", PREPROCESSING, NET, LossSettings(), training, machine, cache, runs / "both", overwrite)
    say("3 of 4: inferring the validation scans")
    predictions = folder / "predictions.csv"
    infer([folder / "study" / "validation"], [run.folder], predictions, machine=machine, overwrite=overwrite)
    say("4 of 4: evaluating")
    result = evaluate(predictions, study)
    result["notes"] = []  # the validation scans chose nothing here
    show(report(result))
    scores = [
        f"{task} {result[task]['macro_f1']:.2f} (chance {result[task]['chance']:.2f})"
        for task in ("presence", "severity")
    ]
    show(f"\nThe predictions are in {predictions}; macro F1: {', '.join(scores)}.")
    show(
        f"Look at {run.folder / 'curves.png'} and at a scan in {folder / 'study'}; the chests are drawn, so it shows the way only."
    )
    return result
