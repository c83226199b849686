"""Caches held against each other: the same files, the same bytes; only how long a scan took may differ."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

TIMED = "seconds"


def differences(one: Path, other: Path) -> list[str]:
    """Files that only one of two folders has, and those that are not the same in both."""
    found, expected = contents(one), contents(other)
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder by its place, hidden ones and leftovers too: its bytes, or what it says without the time."""
    return {path.relative_to(folder).as_posix(): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in values.items() if name != TIMED}
    if path.name == "manifest.csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: cell for name, cell in row.items() if name != TIMED} for row in csv.DictReader(file)]
    return path.read_bytes()


def faults(folder: Path) -> list[str]:
    """What no cache may hold at any moment at which nobody writes it: an entry that vouches for what is not there."""
    wrong = []
    for file in folder.rglob("*-*.json"):
        entry = json.loads(file.read_text(encoding="utf-8"))
        tensor = file.with_name(entry["file"])
        if not tensor.exists() or hashlib.sha256(tensor.read_bytes()).hexdigest() != entry["sha256"]:
            wrong.append(file.name)
    return wrong
