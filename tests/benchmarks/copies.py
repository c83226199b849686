"""What `cov3d check` finds in drawn chests: copies, turned and mixed scans, and what it wrongly takes for such.

    python tests/benchmarks/copies.py

Chests are drawn as for `cov3d phantom` and looked at as `check` does, without files between. Before that, scans of random
facts are compared with each other, for time and memory (of the whole process, on Linux).
"""

from __future__ import annotations

import argparse
import io
import resource
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from cov3d.chest import draw
from cov3d.config import Preprocessing
from cov3d.forms import WINDOW
from cov3d.phantom import SLICES
from cov3d.scans import twins
from cov3d.scans.examine import COARSE, DETAILS, DIGEST, WIDTH, Facts, coarse_of, details_of
from cov3d.scans.findings import find_all, find_shortcuts
from cov3d.scans.jumps import find_jumps
from cov3d.scans.preprocess import preprocess
from cov3d.scans.scan import Scan
from cov3d.scans.study import Row
from cov3d.scans.turned import FEWEST, TURNS, find_turned

SEVERITIES = (0, 0, 0, 0, 1, 2, 3, 4)  # half of the chests are negative, as in a study
EVERY = 5  # one chest in so many is copied
STUDIES, LARGEST = 400, 60  # drawn at random from the chests, to look for turned scans; and scans in the largest


def grey(hu: np.ndarray, low: float = WINDOW[0], high: float = WINDOW[1], noise: float = 0) -> np.ndarray:
    levels = np.clip((hu - low) / (high - low), 0, 1) * 255 + np.random.default_rng(0).normal(0, noise, hu.shape)
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def copies_of(hu: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of a chest in grey levels, by kind."""
    plain, tenth, half = grey(hu), len(hu) // 10, (hu.shape[2] // 2, hu.shape[1] // 2)
    return {
        **{f"JPEG quality {q}": np.stack([jpeg(pixels, q) for pixels in plain]) for q in (95, 75, 50)},
        "half the size": np.stack([np.asarray(Image.fromarray(pixels).resize(half)) for pixels in plain]),
        "the first slice missing": plain[1:],
        "a tenth missing at each end": plain[tenth:-tenth],
        "every second slice": plain[::2],
        "window -1000…500 HU": grey(hu, -1000, 500),
        "window -160…240 HU": grey(hu, -160, 240),
        "noise of 8 grey levels": grey(hu, noise=8),
        "mirrored": plain[:, :, ::-1],
        "feet first": plain[::-1],
        "moved by one pixel": np.roll(plain, 1, 2),
    }


def in_small(volume: np.ndarray) -> np.ndarray:
    """A volume in grey levels as `check` looks at it, float32 ``(D, WIDTH, WIDTH)``."""
    scan = Scan(Path("drawn"), list(volume), "grey")
    return preprocess(scan, Preprocessing(width=WIDTH, depth=len(volume)))[0].astype(np.float32)


def draw_chests(size: int, count: int) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Chests in small, and the details of copies by kind."""
    chests: list[np.ndarray] = []
    copies: dict[str, list[np.ndarray]] = {}
    for index in range(count):
        slices = int(np.random.default_rng([0, index]).integers(*SLICES, endpoint=True))
        hu = draw([0, index], SEVERITIES[index % len(SEVERITIES)], size, slices).hu
        chests.append(in_small(grey(hu)))
        for kind, copy in copies_of(hu).items() if index % EVERY == 0 else ():
            copies.setdefault(kind, []).append(details_of(in_small(copy)))
    return chests, copies


def highest(own: np.ndarray) -> float:
    """The highest likeness of different chests: of all pairs as they lie, and of those most alike in any turn."""
    alike = [float(twins._aligned(one, own[k + 1 :]).max()) for k, one in enumerate(own[:-1])]
    limits, (twins.NEARLY, twins.LEAST) = (twins.NEARLY, twins.LEAST), (-1.0, -1.0)
    turned = [like.correlation for like in twins.near_pairs(own)]
    twins.NEARLY, twins.LEAST = limits
    return max(alike + turned)


def lowest(own: np.ndarray, copies: list[np.ndarray]) -> str:
    """The lowest likeness of copies to what they are copied from, and how many are found among all chests."""
    turned = [np.concatenate([turn(copy[None]) for turn in twins.AXIAL]) for copy in copies]
    least = min(twins._aligned(one, ways).max() for one, ways in zip(own[::EVERY], turned, strict=True))
    pairs = {(like.first, like.second) for like in twins.near_pairs(np.concatenate([own, copies]))}
    return f"{least:.3f}, {sum((k * EVERY, len(own) + k) in pairs for k in range(len(copies)))} of {len(copies)}"


def turned_cells(chests: list[np.ndarray]) -> dict[str, str]:
    """How many scans of sound studies are called turned; and how many are found when an eighth of the scans is."""
    rng, mark = np.random.default_rng(0), np.arange(27).reshape(1, 3, 3, 3)
    coarse, scans, false = np.stack([coarse_of(chest) for chest in chests]), 0, 0
    answers: dict[str, list[tuple[bool, bool]]] = {"axial": [], "not axial": []}  # found, and the turn is right
    for count in rng.integers(FEWEST, min(LARGEST, len(chests)), STUDIES, endpoint=True):
        chosen = rng.choice(len(chests), count, replace=False)
        study, turns = coarse[chosen], [TURNS[k] for k in rng.integers(1, len(TURNS), count // 8)]
        scans, false = scans + count, false + len(find_turned(study))
        study[: len(turns)] = [coarse_of(turn(chests[k][None])[0]) for turn, k in zip(turns, chosen, strict=False)]
        told = find_turned(study)
        scans, false = scans + count - len(turns), false + sum(k >= len(turns) for k in told)
        for k, turn in enumerate(turns):
            right = k in told and np.array_equal(told[k](turn(mark)), mark)
            answers["not axial" if turn.axes[0] else "axial"].append((k in told, right))
    cells = {"called turned, of sound ones": f"{false} of {scans}"}
    for kind, given in answers.items():
        found, right = np.sum(given, 0)
        cells[f"found turned, {kind}; turn right"] = f"{found}, {right} of {len(given)}"
    return cells


def mixed_cells(chests: list[np.ndarray]) -> dict[str, str]:
    """Chests that are called mixed; and halves and slices in turns of two, and gaps in one, that are."""
    seen = lambda slices: find_jumps(np.reshape(slices, (len(slices), -1)))  # noqa: E731
    halves = [([*a[: len(a) // 2], *b[len(b) // 2 :]], len(a) // 2 - 1) for a, b in pairwise(chests)]
    in_turns = [[one for both in zip(a, b, strict=False) for one in both] for a, b in pairwise(chests)]
    asked = {
        "called mixed, of sound ones": [seen(chest) != ([], False) for chest in chests],
        "called mixed, of every third slice": [seen(chest[::3]) != ([], False) for chest in chests],
        "found: half of one, half of another": [seen(slices) == ([seam], False) for slices, seam in halves],
        "found: slices of two in turns": [seen(slices)[1] for slices in in_turns],
        "found: four slices missing": [seen(np.delete(chest, range(20, 24), 0))[0] == [19] for chest in chests],
    }
    return {name: f"{sum(answers)} of {len(answers)}" for name, answers in asked.items()}


def compare_random(count: int) -> None:
    """Scans as alike as drawn chests, so that of each eight pairs are looked at closely: seconds and memory."""
    rng = np.random.default_rng(0)
    alike, body = rng.integers(-4, 5, DETAILS, np.int8), rng.integers(0, 128, COARSE, np.uint8)
    rows = [Row(str(k), Path(str(k)), presence=k % 2) for k in range(count)]
    facts = {}
    for row in rows:
        hashes, own = tuple(rng.bytes(DIGEST) for _ in range(50)), rng.integers(-4, 5, DETAILS, np.int8)
        coarse, files = body + rng.integers(0, 128, COARSE, np.uint8), {"bytes a voxel": rng.random()}
        facts[row.scan] = Facts((50, 512, 512), None, (), False, (), False, files, hashes, alike + own, coarse)
    begin = time.monotonic()
    find_all(rows, facts, find_shortcuts(rows, facts))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{count} scans compared in {time.monotonic() - begin:.0f} s, {memory:.1f} GB at most\n", flush=True)


def measure(size: int, count: int) -> dict[str, str]:
    chests, copies = draw_chests(size, count)
    own = np.stack([details_of(chest) for chest in chests])
    cells = {"different chests, highest": f"{highest(own):.3f}", "copies, lowest, found": ""}
    cells |= {f"  {kind}": lowest(own, made) for kind, made in copies.items()}
    return {**cells, **turned_cells(chests), **mixed_cells(chests)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chests", type=int, default=400, help="drawn chests of each size (default: 400)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 64], help="their pixels (default: 128 64)")
    parser.add_argument("--timed", type=int, default=8000, help="scans that are compared for time (default: 8000)")
    asked = parser.parse_args()
    compare_random(asked.timed)
    columns = [measure(size, asked.chests) for size in asked.sizes]
    print(f"{f'nearly the same above {twins.NEARLY}':38}" + "".join(f"{f'{size}×{size}':>20}" for size in asked.sizes))
    for name in columns[0]:
        print(f"{name:38}" + "".join(f"{cells[name]:>20}" for cells in columns))


if __name__ == "__main__":
    main()
