"""The classes, and probabilities from logits.

A network gives six logits a scan: z0 for presence, z1…z5 for mild, moderate, severe, critical, non-covid
(Turnbull, arXiv 2207.12218). In rows and batches presence is 0 or 1, severity 1…4, and ``UNKNOWN`` where nobody said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, get_args

from cov3d.errors import Cov3dError

if TYPE_CHECKING:
    from torch import Tensor

PRESENCE = ("non-covid", "covid")
SEVERITY = ("mild", "moderate", "severe", "critical")
Task = Literal["presence", "severity", "both"]
TASKS: tuple[Task, ...] = get_args(Task)
LOGITS = 1 + len(SEVERITY) + 1
UNKNOWN = -1
# COV19-CT-DB's tables of severity, by split.
SEVERITY_TABLES = {
    "train": "train_partition_covid_categories.csv",
    "validation": "val_partition_covid_categories.csv",
}


def probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of COVID-19, and of each severity if it is COVID-19, from logits ``(..., 6)``.

    Returns covid ``(...)`` = σ(z0), and severity ``(..., 4)``: the softmax over five classes, its first four renormalised.
    """
    return logits[..., 0].sigmoid(), logits[..., 1:5].softmax(-1)


def mean_over_views(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The same as :func:`probabilities`, averaged over views: logits ``(V, B, 6)`` → covid ``(B,)``, severity ``(B, 4)``.

    The mean is of probabilities, severity's over all five classes, and the first four are renormalised after it (Cov3d,
    section 3.5). In logarithms, so that a sure negative does not become 0/0.
    """
    covid = logits[..., 0].sigmoid().mean(0)
    five = logits[..., 1:].log_softmax(-1)
    return covid, five[..., :4].logsumexp(0).softmax(-1)


def parse_presence(text: str) -> int:
    """0, 1 or ``UNKNOWN`` from what people write: ``covid``, ``Non-COVID``, ``1``, ``0.0``, empty."""
    word = _word(text)
    if not word:
        return UNKNOWN
    if word in ("1", "covid", "positive", "true", "yes"):
        return 1
    if word in ("0", "noncovid", "negative", "false", "no"):
        return 0
    raise Cov3dError(f"presence {text!r} is not one of 0, 1, non-covid, covid")


def parse_outcome(text: str) -> int:
    """What became of a patient, 0 or 1, or ``UNKNOWN`` for an empty cell.

    Raises:
        Cov3dError: it is something else.
    """
    if text.strip() not in ("", "0", "1", "0.0", "1.0"):
        raise Cov3dError(f"outcome {text[:100]!r} is not 0 or 1")
    return int(float(text)) if text.strip() else UNKNOWN


def parse_severity(text: str) -> int:
    """1…4 or ``UNKNOWN`` from ``3``, ``3.0``, ``Severe``, empty."""
    word = _word(text)
    if not word:
        return UNKNOWN
    if word in SEVERITY:
        return SEVERITY.index(word) + 1
    if word in ("1", "2", "3", "4"):
        return int(word)
    raise Cov3dError(f"severity {text!r} is not one of 1, 2, 3, 4, {', '.join(SEVERITY)}")


def _word(text: str) -> str:
    word = re.sub(r"(?<=[a-z])[\s_-]+(?=[a-z])", "", text.strip().lower())  # non-covid; but -1 is not 1
    return re.sub(r"^(\d+)\.0+$", r"\1", word)
