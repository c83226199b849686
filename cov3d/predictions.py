"""The rows of ``predictions.csv``: one a scan, its answers or the cause of its failure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cov3d.commit import as_written
from cov3d.console import natural
from cov3d.errors import StudyError
from cov3d.labels import PRESENCE, SEVERITY
from cov3d.tables import read_table, write_table

COLUMNS = (
    "scan",
    "path",
    "presence",
    "covid_probability",
    "severity",
    *SEVERITY,
    "models",
    "views",
    "seconds",
    "warning",
    "error",
)
LESIONS = ("lesion_percent", "lesion_ml")  # only where a model draws masks


@dataclass(frozen=True)
class Prediction:
    """A scan's row.

    ``severity`` holds four probabilities that add up to 1, *if* COVID-19 is present. ``lesion_percent`` is the share of the
    lungs that is lesion, ``lesion_ml`` how much lesion there is. Models that only draw masks say nothing of presence and
    severity.
    """

    scan: str
    path: str
    covid: float | None = None
    severity: tuple[float, ...] = ()
    threshold: float = 0.5
    models: int | None = None
    views: int | None = None
    seconds: float | None = None
    warning: str = ""
    error: str = ""
    lesion_percent: float | None = None
    lesion_ml: float | None = None
    called: str = ""  # the severity that a table names: rounded probabilities may have become alike

    @property
    def answered(self) -> bool:
        """Whether a model answered for the scan, with classes or with a mask; else the row says why none did."""
        return self.covid is not None or self.models is not None

    def cells(self) -> dict[str, Any]:
        """The row as it stands in the table; a failed scan's answers are empty."""
        row: dict[str, Any] = dict.fromkeys((*COLUMNS, *LESIONS), "")
        row.update(scan=self.scan, path=self.path, warning=self.warning, error=self.error)
        if self.answered:
            row.update(
                models=self.models,
                views=self.views,
                seconds=_number(self.seconds, 2),
                lesion_percent=_number(self.lesion_percent, 3),
                lesion_ml=_number(self.lesion_ml, 3),
            )
        if self.covid is not None:
            likeliest = max(range(len(SEVERITY)), key=self.severity.__getitem__)
            row.update(
                presence=PRESENCE[self.covid >= self.threshold],
                covid_probability=_number(self.covid, 6),
                severity=self.called or SEVERITY[likeliest],
                **{name: _number(p, 6) for name, p in zip(SEVERITY, self.severity, strict=True)},
            )
        return row


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def write_predictions(path: str | Path, predictions: Sequence[Prediction], columns: Sequence[str] = COLUMNS) -> Path:
    """Write the table, in natural order: scan 2 before scan 10."""
    return write_table(path, columns, [prediction.cells() for prediction in in_order(predictions)])


def in_order(predictions: Sequence[Prediction]) -> list[Prediction]:
    """In natural order; paths that it takes for one (``ct_1``, ``ct_01``) in that of text, whoever answered first."""

    def key(row: Prediction) -> tuple[list[tuple[int, int, str]], str]:
        path = as_written(row.path or row.scan).strip()  # as it will be read
        return natural(path), path

    return sorted(predictions, key=key)


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read a table of predictions.

    Raises:
        StudyError: a column is missing, or cells that are no probabilities.
    """
    columns, lines = read_table(path)
    missing = [column for column in ("scan", "covid_probability", *SEVERITY) if column not in columns]
    if missing:
        raise StudyError(f"{path}: is no table of predictions: the columns {', '.join(missing)} are missing")
    return [_prediction(path, number, line) for number, line in enumerate(lines, 2)]


def _prediction(path: str | Path, number: int, line: dict[str, str]) -> Prediction:
    about: dict[str, Any] = {name: line.get(name, "") for name in ("scan", "path", "warning", "error")}
    if line.get("error"):
        return Prediction(**about)
    try:
        about |= {name: int(line[name]) for name in ("models", "views") if line.get(name)}
        about |= {name: float(line[name]) for name in ("seconds", *LESIONS) if line.get(name)}
        covid, severity = _probabilities(line)
    except ValueError as error:
        raise StudyError(f"{path}: row {number}: {error}") from error
    if not all(0 <= p <= 1 for p in (covid or 0, *severity)):
        raise StudyError(f"{path}: row {number} ({line['scan']}): its probabilities are not between 0 and 1")
    if not (0 <= about.get(LESIONS[0], 0) <= 100 and 0 <= about.get(LESIONS[1], 0) < math.inf):
        raise StudyError(
            f"{path}: row {number} ({line['scan']}): its lesions are not 0 to 100 %, or not of 0 ml and more"
        )
    if covid is None:
        return Prediction(**about)
    # What was called stays called: the threshold is not in the table, but its verdict is.
    threshold = 0.5 if not line.get("presence") else covid if line["presence"] == PRESENCE[1] else covid + 1
    called = line.get("severity", "")
    return Prediction(
        covid=covid, severity=severity, threshold=threshold, called=called if called in SEVERITY else "", **about
    )


def _probabilities(line: dict[str, str]) -> tuple[float | None, tuple[float, ...]]:
    """Of COVID-19 and of each severity; nothing where a scan failed, or only masks were drawn."""
    text = [line["covid_probability"], *(line[name] for name in SEVERITY)]
    if not any(text):
        return None, ()
    covid, *severity = map(float, text)
    return covid, tuple(severity)
