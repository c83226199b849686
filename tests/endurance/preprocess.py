"""A cache survives kill -9: ``python tests/endurance/preprocess.py [--kills 100] [--scans 60] [--races 10] [--forked]``.

A drawn study is preprocessed, and the whole process group is killed at random moments and begun again. At no moment is an entry
lost, or one there that vouches for something else than what lies beside it. When a run comes to its end, the cache equals that
of a run that nobody disturbed, byte for byte, but for the seconds that a scan took; no other file is left. Then it begins
afresh, until there were enough kills. At last runs fill one cache at the same time, one of them killed.

With ``--forked`` runs and their workers are forks of this process, which has imported all that they need: many more kills a
minute.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
os.environ.update(ENVIRONMENT)

from caches import differences, faults
from killing import kill_at_random

from cov3d.commit import TEMPORARY_PREFIX
from cov3d.phantom import write_study

OPTIONS = ["--width", "64", "--cache", "cache", "--workers", "2", "--quiet"]
COMMAND = [sys.executable, "-m", "cov3d", "preprocess", "study", *OPTIONS]
FOR_EVER = 3600.0  # seconds

# Begins a run with a seed, and kills it after a random time between two; whether it had come to its end before that.
Run = Callable[[int, float, float], bool]


@dataclass
class Tally:
    """What happened: kills by how many scans were made by then, those that left something half-written, and whole runs."""

    kills: Counter[int] = field(default_factory=Counter)
    torn: int = 0
    whole_runs: int = 0


def commands(folder: Path) -> Run:
    """Runs as a user begins them."""
    return lambda seed, shortest, longest: kill_at_random(COMMAND, folder, seed, longest, ENVIRONMENT, shortest)


def forks(folder: Path) -> Run:
    """Runs, and workers, that are forks of this process."""
    import multiprocessing

    from cov3d.scans import cache, workers

    assert cache.fill_cache  # imported here, and so in all forks
    workers._context = lambda: multiprocessing.get_context("fork")

    def run(seed: int, shortest: float, longest: float) -> bool:
        process = os.fork()
        if process == 0:
            os.setpgid(0, 0)
            _preprocess(folder)
        os.setpgid(process, process)  # here, too: whoever comes first, it has a group of its own before it is killed
        end = time.monotonic() + random.Random(seed).uniform(shortest, longest)
        while time.monotonic() < end:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                assert status == 0, f"a run ended with status {status}"
                return True
            time.sleep(0.002)
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return False

    return run


def _preprocess(folder: Path) -> None:
    """The command, in this process; it ends here."""
    from cov3d.cli import main

    os.chdir(folder)
    sys.argv = ["cov3d", "preprocess", "study", *OPTIONS]
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    code = 1
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def undisturbed(folder: Path, run: Run) -> float:
    """Fill the cache and keep it as ``folder/undisturbed``; the seconds that it took."""
    begin = time.monotonic()
    assert run(0, FOR_EVER, FOR_EVER), "the undisturbed run takes an hour"
    (folder / "cache").rename(folder / "undisturbed")
    return time.monotonic() - begin


def endure(folder: Path, run: Run, kills: int, longest: float, seed: int = 0) -> Tally:
    """Kill runs so many times, and once among the scans; raise AssertionError if anything is lost, different or left behind."""
    tally = Tally()
    before: set[str] = set()
    scans = sum(1 for _ in (folder / "undisturbed").rglob("*-*.json"))
    while tally.kills.total() < kills or not any(0 < made < scans for made in tally.kills):
        seed += 1
        if run(seed, 0.0, longest):
            _compare(folder)
            tally.whole_runs, before = tally.whole_runs + 1, set()
        else:
            before = _look(folder / "cache", before)
            tally.kills[len(before)] += 1
            tally.torn += any((folder / "cache").rglob(f"{TEMPORARY_PREFIX}*"))
    assert run(seed, FOR_EVER, FOR_EVER)
    _compare(folder)
    tally.whole_runs += 1
    return tally


def race(folder: Path, run: Run, longest: float, seed: int = 0) -> None:
    """Fill one cache by three runs at the same time, one of them killed; those that end leave the same."""
    moments = [(0, FOR_EVER, FOR_EVER), (0, FOR_EVER, FOR_EVER), (seed, 0.0, longest)]
    ended = _at_once([lambda m=moment: run(*m) for moment in moments])
    assert ended[:2] == [True, True]
    if not ended[2]:  # the others may have swept before it was killed
        assert run(0, FOR_EVER, FOR_EVER)
    _compare(folder)


def _at_once(calls: list[Callable[[], bool]]) -> list[bool]:
    processes = []
    for call in calls:
        processes.append(os.fork())
        if processes[-1] == 0:
            code = 1
            try:
                code = 0 if call() else 3
            finally:
                os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    assert set(codes) <= {0, 3}, f"a run failed: {codes}"
    return [code == 0 for code in codes]


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
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--races", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forked", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, begin = Path(name), time.monotonic()
        write_study(folder / "study", scans=asked.scans, size=asked.size, seed=1)
        run = forks(folder) if asked.forked else commands(folder)
        longest = undisturbed(folder, run)
        tally = endure(folder, run, asked.kills, longest, asked.seed)
        for number in range(asked.races):
            race(folder, run, longest, asked.seed + number)
    within = sum(n for made, n in tally.kills.items() if 0 < made < asked.scans)
    print(
        f"{tally.kills.total()} kills, {within} of them among the scans, {tally.torn} with a file half-written; "
        f"{tally.whole_runs} whole runs in between and {asked.races} times three runs at once, each with the undisturbed cache "
        f"and no stray file; {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
