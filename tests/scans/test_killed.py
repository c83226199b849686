"""A cache survives kill -9 at random moments, and several runs at once; the long way is tests/endurance/preprocess.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "endurance" / "preprocess.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks here, so that they begin at once")
def test_runs_that_are_killed_or_run_at_once_end_with_the_cache_of_an_undisturbed_one():
    options = ["--forked", "--scans", "12", "--size", "32", "--kills", "10", "--races", "1"]
    run = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    counted = re.match(
        r"(\d+) kills, (\d+) of them among the scans, \d+ with a file half-written; (\d+) whole runs", run.stdout
    )
    assert counted is not None and int(counted[1]) >= 10 and int(counted[2]) >= 1 and int(counted[3]) >= 1
