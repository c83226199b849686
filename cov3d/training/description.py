"""A run in plain values, for ``config.json`` and the model file."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from cov3d.config import Machine, RunSettings, hide_uid, recorded
from cov3d.labels import PRESENCE, SEVERITY
from cov3d.scans.cache import Cache
from cov3d.scans.study import Row, Study
from cov3d.training.split import Split


def summarise(study: Study, split: Split, settings: RunSettings) -> dict[str, Any]:
    """What the model file says of its training: counts, epochs, seed, study."""
    return {
        "train_scans": len(split.train),
        "validation_scans": len(split.validation),
        "train_counts": class_counts(split.train),
        "loss": settings.loss_kind,
        "severity_factor": settings.severity_factor,
        "epochs": settings.training.epochs,
        "seed": settings.training.seed,
        "study_fingerprint": study.fingerprint,
    }


def class_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Scans of each presence and of each severity, for the model file."""
    counts = {name: sum(row.presence == k for row in rows) for k, name in enumerate(PRESENCE)}
    return counts | {name: sum(row.severity == k for row in rows) for k, name in enumerate(SEVERITY, 1)}


def describe(
    study: Study, settings: RunSettings, machine: Machine, summary: dict[str, Any], processes: int = 1
) -> dict[str, Any]:
    """What ``config.json`` says of a run: command, versions, study, every setting, and how many processes train."""
    return {
        "command": command(),
        "versions": versions(),
        "study": {"source": study.source.resolve().name, "fingerprint": study.fingerprint},
        "severity_factor": settings.severity_factor,
        **recorded(settings),
        "machine": recorded(machine),
        "processes": processes,
        "summary": summary,
    }


def name_of(config: Mapping[str, Any], split: Split, *caches: tuple[Cache, Cache]) -> str:
    """A hash of what a run is: its settings, and its scans and masks as they are in the caches of training and validation.

    Only the same run goes on with what was saved of it.
    """
    parts = [
        [[row.scan, *(pair[part].entries[row.scan]["sha256"] for pair in caches)] for row in rows]
        for part, rows in enumerate((split.train, split.validation))
    ]
    where = ("command", "versions", "machine")
    described = {key: value for key, value in config.items() if key not in where}
    return hashlib.sha256(json.dumps([described, parts], sort_keys=True).encode()).hexdigest()


def command() -> list[str]:
    """The command that was typed."""
    return ["cov3d", *_without_uid(sys.argv[1:])]


def _without_uid(words: Sequence[str]) -> Iterator[str]:
    """A command's words, with a series' UID as its hash."""
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if option == "--series" and equals:
            yield f"{option}={hide_uid(value)}"
        else:
            yield hide_uid(word) if before == "--series" else word


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("cov3d", "torch", "torchvision", "fastai", "numpy", "scipy", "pillow", "nibabel")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
