"""A training survives kill -9: ``python tests/endurance/train.py [--kills 30] [--scans 24]``.

For each of both networks, with augmentation, accumulation or a moving average, a training of a drawn study is killed at random
moments, each time gone on with by ``--resume``, until it comes to its end; then it begins afresh, until there were enough kills.
Each whole run's models, answers and history equal those of a run that nobody disturbed, to the bit but for the seconds, and no
other file is left.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from killing import kill_at_random

from cov3d.phantom import write_study

COMMON = "train study --width 32 --depth 32 --device cpu --workers 1 --base-width 4 --learning-rate 1e-3 --save-every 0"
NETS = {
    "resnet18": "--penultimate 8 --batch-size 1 --accumulate 3 --clip 1 --rotate .5 --noise .5 --elastic .5 --flip-width .5",
    "convnext-micro": "--architecture convnext-micro --batch-size 2 --ema .9 --drop-path .5 --schedule cosine",
}
RUN = "run"
FOREVER = 86400.0  # seconds

Attempt = Callable[[list[str], int, float], bool]


@dataclass
class Tally:
    """What happened: kills, those of them after which there was something to go on with, and whole runs that were compared."""

    kills: int = 0
    going_on: int = 0
    whole_runs: int = 0


def words(net: str, epochs: int) -> list[str]:
    """Of the command."""
    return [*COMMON.split(), *NETS[net].split(), "--epochs", str(epochs), "--output-dir", RUN, "--quiet"]


def run_here(folder: str, command: list[str]) -> None:
    """The command in this process."""
    from cov3d.cli import app

    os.chdir(folder)
    app(command)


def endure(folder: Path, command: list[str], attempt: Attempt, kills: int, seed: int = 0) -> Tally:
    """Begin again and again; raise AssertionError if a whole run is not the undisturbed one, or leaves anything behind.

    ``attempt`` runs the command in ``folder``, kills it by chance (a seed) within so many seconds, and says whether it had
    finished before.
    """
    assert attempt(command, 0, FOREVER)
    take_away(folder / RUN)
    begin = time.monotonic()  # the cache is filled by now
    assert attempt(command, 0, FOREVER)
    longest = 1.2 * (time.monotonic() - begin)
    undisturbed, tally = take_away(folder / RUN), Tally()
    while tally.kills < kills or (folder / RUN).exists():
        seed += 1
        begun = (folder / RUN / "state.pt").exists()
        if attempt([*command, "--resume"], seed, longest if tally.kills < kills else FOREVER):
            compare(take_away(folder / RUN), undisturbed)
            tally.whole_runs += 1
        else:
            tally.kills += 1
            tally.going_on += begun
    return tally


def take_away(run: Path) -> dict[str, bytes]:
    """All files of a run by name, taken out of the folder, without the seconds in them."""
    found = {}
    for path in run.iterdir():
        found[path.name] = path.read_bytes()
        path.unlink()
    lines = found["history.csv"].decode().splitlines()
    assert lines[0].endswith(",seconds")
    found["history.csv"] = "\n".join(line.rpartition(",")[0] for line in lines).encode()
    for name in ("state.pt", "config.json", "curves.png"):  # seconds, the command, and seconds in a picture's metadata
        found[name] = b""
    run.rmdir()
    return found


def compare(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Raise AssertionError if two runs differ."""
    assert found.keys() == expected.keys(), f"other files: {found.keys() ^ expected.keys()}"
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs"


def main() -> None:
    """Run it, and say what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for net in NETS:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            write_study(Path(folder) / "study", scans=asked.scans, size=48, seed=1)

            def attempt(command: list[str], seed: int, longest: float, folder: str = folder) -> bool:
                return kill_at_random([sys.executable, "-m", "cov3d", *command], folder, seed, longest, env)

            tally = endure(Path(folder), words(net, asked.epochs), attempt, asked.kills, asked.seed)
        print(
            f"{net}: {tally.kills} kills, {tally.going_on} of them of runs that had gone on before; {tally.whole_runs} whole "
            f"runs, each equal to the undisturbed one to the bit, no stray file; {time.monotonic() - begin:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
