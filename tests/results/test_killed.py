"""Answers survive kill -9: a short form of ``tests/endurance/infer.py``."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from endurance.infer import OUTPUT, endure, prepare
from killing import Failed, kill_at_random


def test_a_run_that_is_killed_again_and_again_answers_as_one_that_nobody_disturbed(tmp_path: Path):
    tally = endure(tmp_path, prepare(tmp_path, scans=8, size=48), kills=5, seed=3)
    assert tally.kills.total() == 5


def test_two_processes_at_one_table_are_one_run_and_a_refusal(tmp_path: Path):
    command = prepare(tmp_path, scans=6, size=48)
    runs = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes in ([0, 1], [0, 0])  # both, if the first was done before the second began
    if codes == [0, 1]:
        assert "another run is writing it" in "".join(said)
    with (tmp_path / OUTPUT).open(newline="") as file:
        assert len({row["path"] for row in csv.DictReader(file)}) == 6


@pytest.mark.parametrize(("longest", "finished"), [(0.2, False), (60, True)])
def test_the_killing_kills(longest: float, finished: bool, tmp_path: Path):
    """What it has started, too; and what has ended by itself was not killed."""
    sleep = "30" if not finished else "0"
    script = f"import subprocess, sys; open('begun', 'w'); subprocess.run(['sleep', '{sleep}']); open('ended', 'w')"
    shortest = 60 if finished else 0.1
    assert kill_at_random([sys.executable, "-c", script], tmp_path, 0, longest, shortest=shortest) is finished
    assert (tmp_path / "ended").exists() is finished


def test_a_command_that_fails_by_itself_is_no_kill(tmp_path: Path):
    with pytest.raises(Failed, match="exit 3"):
        kill_at_random([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, 0, 60, shortest=60)
