"""The run's folder as it grows: the kept epochs, the last one, and the history of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from cov3d.commit import commit_json
from cov3d.config import RunSettings, check_task
from cov3d.console import say
from cov3d.labels import TASKS
from cov3d.nets.build import CLASSES, Heads
from cov3d.nets.model import save_model
from cov3d.runs import CONFIG, FINISHED, clear_run
from cov3d.tables import write_table
from cov3d.training.curves import draw_curves
from cov3d.training.judge import Judge
from cov3d.training.scorer import Scores
from cov3d.training.split import Split

Choice = Literal["best", "last", "unread", "everything"]
# How the kept epoch is chosen, and what that makes of its score.
NOTES: dict[Choice, str] = {
    "best": "these validation scans also chose the epoch, so the score is optimistic; evaluate on scans that nobody chose by",
    "last": "these validation scans did not choose the epoch: it is the last one",
    "unread": "none of the scans held out could be read, so there is no score; the last epoch is kept",
    "everything": "every labelled scan trained, so there is no score; cov3d cross-validate gives one",
}


class Keeper:
    """Keeps the best epoch for each thing that a judge keeps models for.

    ``choice`` says how it is chosen: it is the last unless ``best``. Without validation scans nothing is scored.
    """

    def __init__(
        self,
        folder: Path,
        judge: Judge,
        settings: RunSettings,
        config: dict[str, Any],
        choice: Choice,
        heads: Heads = (CLASSES,),
    ):
        self.folder, self.judge, self.settings, self.config = folder, judge, settings, config
        self.choice, self.note, self.heads = choice, NOTES[choice], heads
        self.scored = choice in ("best", "last")
        self.word = "best" if choice == "best" else "last"
        self.summary = config["summary"]
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, dict[str, Any]] = {}  # by what it is kept for: epoch, rank, scores, evidence

    def state_dict(self) -> dict[str, Any]:
        """What is kept so far, as plain values and tensors."""
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was kept."""
        self.history, self.best = state["history"], state["best"]

    def end_epoch(self, row: dict[str, Any], model: torch.nn.Module, seconds: float) -> None:
        """Score what the judge has seen, keep the model if it is the best so far, and write the history."""
        if not self.history:
            self._begin()
        scores = self.judge.scores()
        row = {**row, **self.judge.columns(scores), "seconds": round(seconds, 2)}
        self.history.append(row)
        ranks = {kept: self.judge.rank(kept, scores) for kept in self.judge.kept_for}
        better = [kept for kept, rank in ranks.items() if self._is_kept(kept, rank, row["epoch"])]
        for kept in better:
            evidence = self.judge.evidence()
            self.best[kept] = {
                "epoch": row["epoch"],
                "rank": ranks[kept],
                "scores": scores[kept],
                "evidence": evidence,
            }
            self._save(model, kept, row["epoch"], {kept: scores[kept]})
        self._say_epoch(row, better)
        if row["epoch"] == self.summary["epochs"]:
            self._save(model, "last", row["epoch"], scores)
        write_table(self.folder / "history.csv", list(row), self.history)

    def _is_kept(self, kept: str, rank: tuple[float, ...], epoch: int) -> bool:
        """Whether an epoch takes the place of the one that is kept."""
        if self.word == "last":
            return bool(epoch == self.summary["epochs"])
        return kept not in self.best or rank > self.best[kept]["rank"]

    def finish(self) -> None:
        """Write answers and scores of the kept epochs, and the curves."""
        self.judge.write(self.folder, {kept: best["evidence"] for kept, best in self.best.items()})
        epochs = {kept: best["epoch"] for kept, best in self.best.items()}
        draw_curves(self.folder / "curves.png", self.history, self.judge.measures, epochs)
        scores = {kept: best["scores"] if self.scored else {} for kept, best in self.best.items()}
        found = {kept: {"epoch": epochs[kept], **scores[kept]} for kept in self.best}
        commit_json(self.folder / FINISHED, {**found, "chosen": self.choice, "note": self.note})
        for kept, epoch in epochs.items():
            name, number = self.judge.measures[kept].name, self.judge.number(kept, scores[kept])
            say(f"{self.word} {kept} {f'{name} {four(number)} in' if self.scored else 'model:'} epoch {epoch}")
        say(f"note: {self.note}")

    def _begin(self) -> None:
        """Take the place of an earlier run: only now, when an epoch is done and all that could fail at once has not."""
        clear_run(self.folder)
        commit_json(self.folder / CONFIG, self.config)

    def _save(self, model: torch.nn.Module, name: str, epoch: int, scores: Scores) -> None:
        task = check_task(name) if name in TASKS else self.settings.task
        scored_on = f"its validation scans; {self.note}" if self.scored else self.note
        summary = {**self.summary, "epoch": epoch, **self._numbers(scores), "scored_on": scored_on}
        settings, file = self.settings, self.folder / f"{name}.safetensors"
        save_model(file, model, settings.net, settings.preprocessing, task, summary, self.heads)

    def _numbers(self, scores: Scores) -> dict[str, dict[str, float | None]]:
        """The numbers that people look at, by their key and what is scored."""
        numbers: dict[str, dict[str, float | None]] = {}
        for scored, found in scores.items():
            numbers.setdefault(self.judge.measures[scored].key, {})[scored] = self.judge.number(scored, found)
        return numbers

    def _say_epoch(self, row: dict[str, Any], better: Sequence[str]) -> None:
        measures = self.judge.measures
        if row["epoch"] == 1:
            names = [f"{scored} {measure.name.rpartition(' ')[2]}" for scored, measure in measures.items()]
            say("  ".join(["epoch  train loss  valid loss", *(f"{name:>11}" for name in names), "seconds"]))
        scores = (f"{four(row[measure.column]):>11}" for measure in measures.values())
        numbers = [f"{row['epoch']:>5}", f"{row['train_loss']:>10.4f}", f"{four(row['validation_loss']):>10}", *scores]
        best = [f"{self.word} {' and '.join(better)}"] if better else []
        say("  ".join([*numbers, f"{row['seconds']:>7.1f}", *best]))


def four(score: float | None) -> str:
    """A score with four digits after the point."""
    return "n/a" if score is None else f"{score:.4f}"


def choice_of(wanted: Split, usable: Split, keep_last: bool) -> Choice:
    """How the kept epoch is chosen, by the scans held out and those of them that can be read."""
    if not wanted.validation:
        return "everything"
    if not usable.validation:
        return "unread"
    return "last" if keep_last else "best"
