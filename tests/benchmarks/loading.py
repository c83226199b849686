"""How fast cached scans come: read by threads, as training reads them, or by the processes of torch's DataLoader.

    python tests/benchmarks/loading.py [--scans 64] [--width 320] [--rounds 3]

Random voxels in a cache's own form. Printed are scans a second of each way, the median of the rounds, and ratios to one thread;
``first`` is an epoch in which each file's SHA-256 is looked at, ``later`` one in which it is not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from cov3d.config import Preprocessing, Reading
from cov3d.scans.cache import Cache
from cov3d.scans.entry import entry_job, keep_entry
from cov3d.scans.study import Row
from cov3d.training.loaders import CachedScans, ReadAhead
from cov3d.training.order import Order

VOLUME = {"fingerprint": "", "content": "", "slices": 1, "spacing": None, "flaws": []}


def random_cache(folder: Path, scans: int, settings: Preprocessing) -> tuple[Cache, list[Row]]:
    """A cache of noise, and the rows that it holds."""
    rng, rows = np.random.default_rng(0), [Row(f"scan {k}", folder / f"scan {k}") for k in range(scans)]
    jobs = {row.scan: entry_job(row.scan, row.path, folder, settings, Reading()) for row in rows}
    noise = rng.integers(0, 256, (1, *settings.shape), np.uint8)
    entries = {scan: keep_entry(job, noise ^ np.uint8(k), VOLUME) for k, (scan, job) in enumerate(jobs.items())}
    return Cache(folder, entries, {}, scans, jobs), rows


def seconds(batches: Iterable) -> float:
    begin = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scans", type=int, default=64)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache, rows = random_cache(Path(folder), asked.scans, Preprocessing(width=asked.width))
        items, order = CachedScans(cache, rows), Order(len(rows), 2)
        ways = {f"{n} threads": ReadAhead(items.__getitem__, order, n, False) for n in (1, 2, 4, 8)}
        ways |= {f"{n} processes": DataLoader(items, batch_sampler=order, num_workers=n) for n in (2, 4, 8)}
        taken: dict[tuple[str, str], list[float]] = {}
        for _ in range(asked.rounds):
            for name, way in ways.items():
                cache.verified.clear()
                taken.setdefault((name, "first"), []).append(seconds(way))
                cache.verified.update(row.scan for row in rows)
                taken.setdefault((name, "later"), []).append(seconds(way))
        for when in ("first", "later"):
            one = statistics.median(taken["1 threads", when])
            for name in ways:
                median = statistics.median(taken[name, when])
                print(f"{when:6} {name:12} {asked.scans / median:7.1f} scans/s   {one / median:5.2f} of one thread")


if __name__ == "__main__":
    main()
