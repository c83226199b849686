"""How soon ``cov3d --help`` answers, in seconds, the least and the median of ten; .7 is the promise.

python tests/benchmarks/help.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

if __name__ == "__main__":
    taken = []
    for _ in range(10):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cov3d", "--help"], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - begin)
    print(f"{min(taken):.2f} s, median {statistics.median(taken):.2f} s")
