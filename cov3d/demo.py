"""The whole way on drawn chests: ``cov3d demo``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cov3d.config import Machine, NetSettings, Preprocessing, RunSettings, Training
from cov3d.console import say, show

# Small enough for two CPU cores, large enough to learn from.
SCANS, PIXELS = 160, 96
SETTINGS = RunSettings(
    task="both",
    preprocessing=Preprocessing(width=64),
    net=NetSettings(base_width=16, dropout=0.1, penultimate=64),
    training=Training(epochs=14, batch_size=8, learning_rate=3e-3, validation_fraction=0.2),
)


def demo(
    folder: str | Path = "cov3d-demo", seed: int = 0, machine: Machine | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Draw a study, preprocess, train, infer and evaluate it; return the scores.

    A fifth of the training scans is held out to watch the epochs by, so the study's validation scans, on which the scores
    are made, have chosen nothing. The last epoch answers: on so few scans the best one is luck.
    """
    from cov3d.phantom import write_study
    from cov3d.results.evaluate import evaluate, report
    from cov3d.results.infer import infer
    from cov3d.scans.study import read_study
    from cov3d.training.train import train

    folder = Path(folder)
    say(f"1 of 4: drawing {SCANS} chests into {folder / 'study'}")
    study = read_study(write_study(folder / "study", scans=SCANS, size=PIXELS, seed=seed, overwrite=overwrite))
    say("2 of 4: preprocessing and training")
    settings = replace(SETTINGS, training=replace(SETTINGS.training, seed=seed))
    run = train(study, settings, machine, folder / "cache", folder / "outputs" / "both", overwrite)
    say("3 of 4: inferring the validation scans")
    predictions = folder / "predictions.csv"
    infer(
        [folder / "study" / "validation"],
        [run.folder / "last.safetensors"],
        predictions,
        machine=machine,
        overwrite=overwrite,
    )
    say("4 of 4: evaluating")
    result = evaluate(predictions, study)
    result["notes"] = []  # the validation scans chose nothing here
    show(report(result))
    show(_last_words(result, predictions, run.folder))
    return result


def _last_words(result: dict[str, Any], predictions: Path, run: Path) -> str:
    scores = [
        f"{task} {result[task]['macro_f1']:.2f} (chance {result[task]['chance']:.2f})"
        for task in ("presence", "severity")
    ]
    return (
        f"\nThe predictions are in {predictions}; their macro F1: {', '.join(scores)}.\n"
        f"How the training went is in {run / 'curves.png'}. The chests are drawn: this shows the way, not a diagnosis."
    )
