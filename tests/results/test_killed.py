"""Answers survive kill -9: a short form of ``tests/endurance/infer.py``."""

from __future__ import annotations

import csv
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import smooth_volume, write_slices
from endurance.infer import FOREVER, OUTPUT, endure, prepare, run_here
from killing import Failed, kill_at_random, kill_call_at_random


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a command that answers eight scans."""
    for k in range(8):
        write_slices(tmp_path / "study" / f"ct_{k}", smooth_volume(4, 32, seed=k))
    return prepare(tmp_path)


def test_a_run_that_is_killed_again_and_again_answers_as_one_that_nobody_disturbed(tmp_path: Path, words: list[str]):
    tally = endure(tmp_path, lambda *moment: kill_call_at_random(run_here, (str(tmp_path), words), *moment), kills=5)
    assert tally.kills.total() == 5


def test_two_processes_at_one_table_are_one_run_and_a_refusal(tmp_path: Path, words: list[str]):
    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(kill_call_at_random, run_here, (str(tmp_path), words), 0, FOREVER) for _ in range(2)]
    failed = [run.exception() for run in runs if run.exception()]
    assert len(failed) <= 1  # none, if the first was done before the second began
    assert all(isinstance(error, Failed) for error in failed)
    with (tmp_path / OUTPUT).open(newline="") as file:
        assert len({row["path"] for row in csv.DictReader(file)}) == len(list((tmp_path / "masks").iterdir())) == 8


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
