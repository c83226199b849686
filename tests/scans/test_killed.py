"""A cache survives kill -9 at random moments, and runs at the same time; the long way is tests/endurance/preprocess.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from endurance.preprocess import endure, prepare, race, undisturbed


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], float]:
    """A folder with a study and the cache of an undisturbed run, the command, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("killed")
    command = prepare(folder, scans=12, size=32)
    return folder, command, undisturbed(folder, command)


def test_a_run_that_is_killed_again_and_again_ends_with_the_cache_of_an_undisturbed_one(prepared):
    folder, command, seconds = prepared
    tally = endure(folder, command, kills=5, longest=seconds, shortest=seconds / 2)
    assert tally.kills.total() == 5 and tally.whole_runs


def test_three_processes_at_once_of_which_one_is_killed_leave_the_cache_of_one(prepared):
    folder, command, seconds = prepared
    race(folder, command, longest=seconds)
