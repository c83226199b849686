"""Shares of a work: each item is in one of them, whoever says which."""

from __future__ import annotations

import pytest

from cov3d.errors import SettingError
from cov3d.shards import Shard, find_shard


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_every_item_is_in_exactly_one_share_and_shares_are_as_even_as_can_be(count: int):
    items = list(range(10))
    shares = [Shard(number, count).of(items) for number in range(count)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def array(task: int, first: int, last: int, count: int) -> dict[str, str]:
    names = ("ID", "MIN", "MAX", "COUNT")
    return {f"SLURM_ARRAY_TASK_{name}": str(n) for name, n in zip(names, (task, first, last, count), strict=True)}


@pytest.mark.parametrize(
    ("said", "environment", "expected"),
    [
        (None, {}, (0, 1)),
        ("3/8", {}, (3, 8)),
        ("0/1", {"RANK": "2", "WORLD_SIZE": "4"}, (0, 1)),
        (None, {"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        (None, {"RANK": "0", "WORLD_SIZE": "1"} | array(5, 0, 7, 8), (5, 8)),
        (None, {"RANK": "2", "WORLD_SIZE": "4"} | array(5, 0, 7, 8), (22, 32)),
        (None, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"} | array(3, 1, 3, 3), (5, 6)),
        (None, array(8, 1, 8, 8), (7, 8)),
        (None, array(15, 5, 20, 4), (2, 4)),
        (None, array(3, 3, 3, 1), (0, 1)),
        (None, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
        (None, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1)),
    ],
)
def test_a_share_is_what_is_said_or_what_the_environment_knows(said, environment, expected):
    shard = find_shard(said, environment)
    assert (shard.number, shard.count) == expected


def test_several_processes_of_each_task_of_an_array_share_the_work_of_all():
    procs = [{"SLURM_PROCID": str(k), "SLURM_STEP_NUM_TASKS": "3"} for k in range(3)]
    shards = [find_shard(None, array(task, 1, 4, 4) | proc) for task in range(1, 5) for proc in procs]
    assert sorted(shard.number for shard in shards) == list(range(12))
    assert {(shard.count, shard.found_in) for shard in shards} == {(12, "a Slurm array and srun")}


@pytest.mark.parametrize("said", ["8/8", "1", "a/b", "-1/4", "1/0", "0/99999", ""])
def test_what_is_no_share_is_refused_with_those_there_are(said: str):
    with pytest.raises(SettingError, match="counted from 0: 0/8 to 7/8"):
        find_shard(said, {})


def test_an_array_of_odd_numbers_is_refused():
    with pytest.raises(SettingError, match="not evenly spaced"):
        find_shard(None, array(5, 1, 9, 3) | {"SLURM_ARRAY_TASK_ID": "4"})
