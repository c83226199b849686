"""The COV19-CT-DB challenge's form of answers: a text file a class, holding scan names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cov3d.console import natural
from cov3d.labels import PRESENCE, SEVERITY
from cov3d.predictions import Prediction
from cov3d.tables import write_names

NO_CLASSES = "--submission lists presence and severity, and none of the models answers them"


def write_submission(folder: str | Path, rows: Sequence[Prediction]) -> list[Path]:
    """Write ``covid.csv``, ``non-covid.csv``, ``mild.csv``, … : names one a line, sorted by number, no header.

    Every answered scan stands in one presence file and in one severity file; failed scans stand in none.
    """
    answered = [row.cells() | {"scan": row.scan} for row in rows if row.covid is not None]
    files = []
    for column, classes in (("presence", PRESENCE), ("severity", SEVERITY)):
        for name in classes:
            scans = sorted((row["scan"] for row in answered if row[column] == name), key=natural)
            files.append(write_names(Path(folder) / f"{name}.csv", scans))
    return files
