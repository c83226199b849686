"""The rows of ``predictions.csv``: one a scan, its answers or the cause of its failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Prediction:
    """A scan's row. ``severity`` holds four probabilities that add up to 1, *if* COVID-19 is present."""

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

    def cells(self) -> dict[str, Any]:
        """The row as it stands in the table; a failed scan's answers are empty."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row.update(scan=self.scan, path=self.path, warning=self.warning, error=self.error)
        if self.covid is not None:
            likeliest = max(range(len(SEVERITY)), key=self.severity.__getitem__)
            row.update(
                presence=PRESENCE[self.covid >= self.threshold],
                covid_probability=f"{self.covid:.6f}",
                severity=SEVERITY[likeliest],
                models=self.models,
                views=self.views,
                seconds="" if self.seconds is None else f"{self.seconds:.2f}",
                **{name: f"{p:.6f}" for name, p in zip(SEVERITY, self.severity, strict=True)},
            )
        return row


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> Path:
    """Write the table, in natural order: scan 2 before scan 10."""
    ordered = sorted(predictions, key=lambda prediction: natural(prediction.path or prediction.scan))
    return write_table(path, COLUMNS, [prediction.cells() for prediction in ordered])


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
    text = [line["covid_probability"], *(line[name] for name in SEVERITY)]
    about: dict[str, Any] = {name: line.get(name, "") for name in ("scan", "path", "warning", "error")}
    if line.get("error") or not any(text):
        return Prediction(**about)
    try:
        covid, *severity = map(float, text)
        counts: dict[str, Any] = {name: int(line[name]) for name in ("models", "views") if line.get(name)}
        seconds = float(line["seconds"]) if line.get("seconds") else None
    except ValueError as error:
        raise StudyError(f"{path}: row {number}: {error}") from error
    if not all(0 <= p <= 1 for p in (covid, *severity)):
        raise StudyError(f"{path}: row {number} ({line['scan']}): its probabilities are not between 0 and 1")
    # What was called stays called: the threshold is not in the table, but its verdict is.
    threshold = 0.5 if not line.get("presence") else covid if line["presence"] == PRESENCE[1] else covid + 1
    return Prediction(covid=covid, severity=tuple(severity), threshold=threshold, seconds=seconds, **about, **counts)
