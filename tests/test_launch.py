"""Processes that were started together know each other from their environment, be it torchrun's or Slurm's."""

from __future__ import annotations

import pytest
import torch

from cov3d.errors import SettingError
from cov3d.launch import Launch, find_launch, first_node, tasks_per_node
from cov3d.nets.inputs import device_of_rank, device_of_share

TORCHRUN = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}
SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "3",
    "SLURM_GPUS_ON_NODE": "8",
}
ELSEWHERE = {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
ONE_MACHINE = {"SLURM_STEP_TASKS_PER_NODE": "16", "SLURM_NODEID": "0", "SLURM_LOCALID": "9"}
PORT = 15673  # 15000 + (10 * 1234567 + 3) % 15000


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch()),
        (TORCHRUN, Launch(9, 16, 1, 8, "torchrun")),
        (SRUN, Launch(9, 16, 1, 8, "srun", "gpu07", PORT, 8)),
        (SRUN | ONE_MACHINE, Launch(9, 16, 9, 16, "srun", "localhost", PORT, 8)),
        (SRUN | ELSEWHERE, Launch(9, 16, 1, 8, "srun", "head", 29500, 8)),
        (SRUN | TORCHRUN, Launch(9, 16, 1, 8, "torchrun")),
        (SRUN | TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, Launch()),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, Launch()),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Launch()),
    ],
    ids=[
        "none",
        "torchrun",
        "srun",
        "srun on one machine",
        "srun that meets elsewhere",
        "torchrun by srun",
        "torchrun of one",
        "srun of one",
        "batch script",
    ],
)
def test_a_process_knows_which_of_how_many_it_is(environment: dict[str, str], expected: Launch):
    assert find_launch(environment, terminal=False) == expected


def test_the_shell_of_srun_pty_is_alone_and_torchrun_at_a_terminal_is_not():
    assert find_launch(SRUN, terminal=True) == Launch()
    assert find_launch(TORCHRUN, terminal=True).size == 16


@pytest.mark.parametrize("environment", [{"RANK": "8", "WORLD_SIZE": "8"}, SRUN | {"SLURM_PROCID": "16"}])
def test_a_rank_that_is_none_is_refused(environment: dict[str, str]):
    with pytest.raises(SettingError, match=r"process (8 of 8|16 of 16), says (torchrun|srun); they are counted from 0"):
        find_launch(environment, terminal=False)


@pytest.mark.parametrize(("said", "counts"), [("4", [4]), ("8(x2)", [8, 8]), ("3(x2),2,1", [3, 3, 2, 1]), ("", [1])])
def test_tasks_per_node_as_slurm_writes_them(said: str, counts: list[int]):
    assert tasks_per_node(said) == counts


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ("localhost", "localhost"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[07-09,12],login", "gpu07"),
        ("gpu[3]", "gpu3"),
        ("gpu[3,5-7]-ib,x", "gpu3-ib"),
        ("rack[0-1]node[04-15]", "rack0node04"),
    ],
)
def test_the_first_of_slurms_nodes(said: str, first: str):
    assert first_node(said) == first


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """A machine on which torch would see some GPUs, for a process with an environment."""

    def pretend(count: int, environment: dict[str, str]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return pretend


@pytest.mark.parametrize(
    ("count", "environment", "name", "index"),
    [
        (8, TORCHRUN, "auto", 1),
        (8, SRUN, "auto", 1),
        (1, SRUN, "auto", 0),  # --gpus-per-task 1 shows each its own
        (1, SRUN, "cuda:0", 0),
        (2, SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4"}, "cuda:1", 1),
        (2, SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2"}, "auto", 1),  # CUDA_VISIBLE_DEVICES=0,1, of 8
        (2, SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_LOCALID": "2"}, "auto", 0),  # --gpus-per-task 2
        (8, {}, "auto", None),
        (8, {}, "cuda:3", 3),
    ],
)
def test_each_process_takes_a_gpu_of_its_own(gpus, count: int, environment: dict, name: str, index: int | None):
    gpus(count, environment)
    assert device_of_rank(name).index == index


@pytest.mark.parametrize(
    ("count", "environment", "name", "advice"),
    [
        (1, TORCHRUN | {"SLURM_GPUS_ON_NODE": "8"}, "auto", "8 processes on a machine with 1 GPU; .*-per-node 1"),
        (4, TORCHRUN, "auto", "8 processes on a machine with 4 GPUs; say torchrun --nproc-per-node 4"),
        (4, SRUN, "auto", "8 processes on a machine with 4 GPUs; say srun --ntasks-per-node 4"),
        (
            1,
            SRUN | {"SLURM_GPUS_ON_NODE": "1"},
            "auto",
            "8 processes on a machine with 1 GPU; say srun --ntasks-per-node 1",
        ),
        (8, SRUN, "cuda:0", "--device cuda:0 is one GPU for 8 processes; leave it at auto"),
    ],
)
def test_processes_that_train_together_share_no_gpu(gpus, count: int, environment: dict, name: str, advice: str):
    gpus(count, environment)
    with pytest.raises(SettingError, match=advice):
        device_of_rank(name)


@pytest.mark.parametrize(
    ("count", "local_rank", "name", "index"),
    [(8, 1, "auto", 1), (2, 5, "auto", 1), (1, 5, "auto", 0), (8, 5, "cuda:3", 3)],
)
def test_processes_that_each_do_a_share_take_gpus_in_turn(gpus, count: int, local_rank: int, name: str, index: int):
    gpus(count, TORCHRUN | {"LOCAL_RANK": str(local_rank)})
    assert device_of_share(name).index == index
