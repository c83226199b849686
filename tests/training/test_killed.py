"""A training survives kill -9: a short form of ``tests/endurance/train.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_study
from endurance.train import NETS, endure, run_here, words
from killing import kill_call_at_random


@pytest.mark.parametrize("net", NETS)
def test_a_training_that_is_killed_again_and_again_ends_as_one_that_nobody_disturbed(tmp_path: Path, net: str):
    make_study(tmp_path / "study", per_class=3)

    def attempt(command: list[str], seed: int, longest: float) -> bool:
        return kill_call_at_random(run_here, (str(tmp_path), command), seed, longest)

    assert endure(tmp_path, words(net, 2), attempt, kills=4).kills == 4
