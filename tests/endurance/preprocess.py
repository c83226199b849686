"""A cache survives kill -9: ``python tests/endurance/preprocess.py [--kills 100] [--scans 60] [--races 10]``.

A drawn study is preprocessed, and the whole process group is killed at random moments and begun again. At no moment is an entry
lost, or one there that vouches for something else than what lies beside it. When a run comes to its end, the cache equals that
of a run that nobody disturbed, byte for byte, but for the seconds that a scan took; no other file is left. Then it begins
afresh, until there were enough kills. At last runs fill one cache at the same time, some of them killed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from caches import differences, faults
from killing import kill_at_random

from cov3d.commit import TEMPORARY_PREFIX
from cov3d.phantom import write_study

ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
FOR_EVER = 3600.0  # seconds


@dataclass
class Tally:
    """What happened: kills by how many scans were made by then, those that left something half-written, and whole runs."""

    kills: Counter[int] = field(default_factory=Counter)
    torn: int = 0
    whole_runs: int = 0


def prepare(folder: Path, scans: int, size: int = 64, width: int = 64) -> list[str]:
    """A drawn study in ``folder``, and the command that fills ``folder/cache`` from it."""
    write_study(folder / "study", scans=scans, size=size, seed=1)
    options = ["--width", str(width), "--cache", "cache", "--workers", "2", "--quiet"]
    return [sys.executable, "-m", "cov3d", "preprocess", "study", *options]


def undisturbed(folder: Path, command: list[str]) -> float:
    """Fill the cache and keep it as ``folder/undisturbed``; the seconds that it took."""
    begin = time.monotonic()
    assert _runs(folder, command), "the undisturbed run takes an hour"
    (folder / "cache").rename(folder / "undisturbed")
    return time.monotonic() - begin


def endure(folder: Path, command: list[str], kills: int, longest: float, seed: int = 0, shortest: float = 0.0) -> Tally:
    """Kill the command so many times; raise AssertionError if anything is lost, different or left behind."""
    tally, before = Tally(), set()
    while tally.kills.total() < kills:
        seed += 1
        if kill_at_random(command, folder, seed, longest, ENVIRONMENT, shortest):
            _compare(folder)
            tally.whole_runs, before = tally.whole_runs + 1, set()
        else:
            entries = _look(folder / "cache", before)
            tally.kills[len(entries)] += 1
            tally.torn += any((folder / "cache").rglob(f"{TEMPORARY_PREFIX}*"))
            before = entries
    assert _runs(folder, command)
    _compare(folder)
    tally.whole_runs += 1
    return tally


def race(folder: Path, command: list[str], longest: float, seed: int = 0) -> None:
    """Fill one cache by three runs at the same time, one of them killed; each that ends leaves the same."""
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(_runs, folder, command) for _ in range(2)]
        killed = threads.submit(kill_at_random, command, folder, seed, longest, ENVIRONMENT)
    assert all(run.result() for run in runs)
    if not killed.result():  # the others may have swept before it was killed
        assert _runs(folder, command)
    _compare(folder)


def _runs(folder: Path, command: list[str]) -> bool:
    return kill_at_random(command, folder, 0, FOR_EVER, ENVIRONMENT, shortest=FOR_EVER)


def _look(cache: Path, before: set[str]) -> set[str]:
    """The entries of a cache whose run was killed."""
    entries = {path.name for path in cache.rglob("*-*.json")}
    assert before <= entries, f"lost: {before - entries}"
    wrong = faults(cache)
    assert not wrong, f"entries without the tensor that they vouch for: {wrong}"
    return entries


def _compare(folder: Path) -> None:
    """Hold the cache against the undisturbed one, and remove it."""
    different = differences(folder / "cache", folder / "undisturbed")
    assert not different, f"differ: {different}"
    shutil.rmtree(folder / "cache")


def main() -> None:
    """Run it, and say what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--scans", type=int, default=60)
    parser.add_argument("--races", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, begin = Path(name), time.monotonic()
        command = prepare(folder, asked.scans)
        longest = undisturbed(folder, command)
        tally = endure(folder, command, asked.kills, longest, asked.seed)
        for number in range(asked.races):
            race(folder, command, longest, asked.seed + number)
    within = sum(n for made, n in tally.kills.items() if 0 < made < asked.scans)
    print(
        f"{tally.kills.total()} kills, {within} of them among the scans, {tally.torn} of them with a file half-written; "
        f"{tally.whole_runs} whole runs in between and {asked.races} times three runs at once, each with the undisturbed cache "
        f"and no stray file; {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
