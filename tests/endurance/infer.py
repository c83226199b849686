"""Answering scans survives kill -9: ``python tests/endurance/infer.py [--kills 100] [--scans 60]``.

A drawn study is answered by a small network with random weights, and the whole process group is killed at random moments, each
time begun again with ``--resume``. Whatever a run has answered stays answered; when it comes to its end, table, provenance and
masks equal those of a run that nobody disturbed, but for the seconds, and no other file is left. Then it begins afresh, until
there were enough kills.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from killing import kill_at_random

from cov3d import NetSettings, Preprocessing, build, save_model
from cov3d.phantom import write_study

NET = NetSettings(base_width=4, penultimate=8)
HEADS = ("classes", "masks")
OUTPUT = "predictions.csv"
FOREVER = 86400.0  # seconds


@dataclass
class Tally:
    """What happened: kills by how many scans were answered by then, and whole runs that were compared."""

    kills: Counter[int] = field(default_factory=Counter)
    whole_runs: int = 0


def prepare(folder: Path) -> list[str]:
    """A model in ``folder``; the words of the command that answers the scans in ``study`` by it."""
    torch.manual_seed(0)
    save_model(folder / "model.safetensors", build(NET, HEADS), NET, Preprocessing(width=32), "both", {}, HEADS)
    options = "--model model.safetensors --masks masks --resume --workers 2 --device cpu --quiet"
    return ["infer", "study", "--output", OUTPUT, *options.split()]


def run_here(folder: str, words: list[str]) -> None:
    """The command in this process."""
    from cov3d.cli import app

    os.chdir(folder)
    app(words)


def endure(folder: Path, attempt: Callable[[int, float], bool], kills: int, seed: int = 0) -> Tally:
    """Begin again and again; raise AssertionError if anything is lost, doubled, different or left behind.

    ``attempt`` runs the command in ``folder``, kills it by chance (a seed) within so many seconds, and says whether it had
    finished before.
    """
    begin = time.monotonic()
    _finish(attempt)
    longest = time.monotonic() - begin
    undisturbed, tally, before = take_away(folder), Tally(), set()
    while tally.kills.total() < kills:
        seed += 1
        if attempt(seed, longest):
            _compare(take_away(folder), undisturbed)
            tally.whole_runs, before = tally.whole_runs + 1, set()
        else:
            answered = _answered(folder / OUTPUT)
            assert before <= set(answered), "an answer was lost"
            assert len(answered) == len(set(answered)), "a scan was answered twice"
            tally.kills[len(answered)] += 1
            before = set(answered)
    _finish(attempt)
    _compare(take_away(folder), undisturbed)
    return tally


def _finish(attempt: Callable[[int, float], bool]) -> None:
    while not attempt(0, FOREVER):  # a moment of a day is hardly within the run
        pass


def take_away(folder: Path) -> dict[str, bytes | list[dict[str, str]]]:
    """All files that a run has written, by name, taken out of the folder; the table without its seconds."""
    found: dict[str, bytes | list[dict[str, str]]] = {}
    for path in [*folder.iterdir(), *folder.glob("masks/*")]:
        if path.is_file() and path.name != "model.safetensors":
            name = path.relative_to(folder).as_posix()
            found[name] = [{**row, "seconds": ""} for row in _rows(path)] if name == OUTPUT else path.read_bytes()
            path.unlink()
    return found


def _compare(found: dict[str, bytes | list[dict[str, str]]], expected: dict[str, bytes | list[dict[str, str]]]) -> None:
    assert found.keys() == expected.keys(), f"other files: {found.keys() ^ expected.keys()}"
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs"


def _answered(table: Path) -> list[str]:
    """Scans with a whole row; a line that was being written does not count."""
    if not table.exists():
        return []
    lines = table.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return [row["scan"] + row["path"] for row in csv.DictReader(lines)]


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Run it, and say what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--scans", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder) / "study", scans=asked.scans, size=64, seed=1)
        begin = time.monotonic()
        command = [sys.executable, "-m", "cov3d", *prepare(Path(folder))]
        env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

        def attempt(seed: int, longest: float) -> bool:
            return kill_at_random(command, folder, seed, longest, env)

        tally = endure(Path(folder), attempt, asked.kills, asked.seed)
    within = sum(n for answered, n in tally.kills.items() if 0 < answered < asked.scans)
    print(
        f"{tally.kills.total()} kills, {within} of them among the answers; {tally.whole_runs + 1} whole runs in between, each "
        f"equal to the undisturbed one, no stray file; {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
