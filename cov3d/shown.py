"""What a model was shown, by the summary of its training, and which of its answers therefore say nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cov3d.labels import PRESENCE, SEVERITY

OUTCOME = "outcome"  # a summary's ``learnt``, where severity was learnt from it
MEANS_OUTCOME = (
    "severities mean an outcome: mild that it was 0, critical that it was 1; a model that gives them was shown no moderate "
    "and no severe scan"
)

Summary = Mapping[str, Any]  # a model file's ``training``


def was_shown(summary: Summary, task: str) -> bool:
    """Whether a model was shown two classes of a task, and its loss counted them; a model that does not say, was."""
    counts, factor = summary.get("train_counts"), summary.get("severity_factor")
    if counts is None:
        return True
    classes, ignored = (PRESENCE, 1.0) if task == "presence" else (SEVERITY, 0.0)
    return sum(counts.get(name, 0) > 0 for name in classes) > 1 and factor != ignored


def blind_spots(presence: Sequence[Summary], severity: Sequence[Summary]) -> list[str]:
    """What answers do not say, given the models that give each task's."""
    spots = [
        f"answers about {task} say nothing: no model that gives them learnt it"
        for task, summaries in (("presence", presence), ("severity", severity))
        if summaries and not any(was_shown(summary, task) for summary in summaries)
    ]
    return [*spots, MEANS_OUTCOME] if any(summary.get("learnt") == OUTCOME for summary in severity) else spots
