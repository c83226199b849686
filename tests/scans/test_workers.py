"""Worker processes: a crash, a kill or a hang costs the scan that caused it and no other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from troubled import pid, work

from cov3d import Machine
from cov3d.errors import Cov3dError
from cov3d.scans.room import Room
from cov3d.scans.workers import each


def outcomes(jobs, processes: int = 2, timeout: float = 30):
    return {outcome.index: outcome for outcome in each(work, jobs, Machine(workers=processes, timeout=timeout))}


def jobs_with(what: str, at: int = 3, count: int = 8, **values):
    return [{"do": what if n == at else "answer", "n": n, **values} for n in range(count)]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_job_is_answered_by_its_own_answer(processes: int):
    found = outcomes(jobs_with("answer"), processes)
    assert {k: o.answer["n"] for k, o in found.items()} == {k: k for k in range(8)}
    assert all(o.parts == (bytes([k]) * 300_000,) for k, o in found.items())


CAUSES = {"fail": "is damaged", "bug": "unexpected KeyError", "die": "died of SIGKILL, twice", "leave": "exit code 7"}


@pytest.mark.parametrize("what", CAUSES)
def test_trouble_costs_its_own_job_only(what: str):
    found = outcomes(jobs_with(what))
    assert CAUSES[what] in found[3].error
    assert [k for k, o in found.items() if o.error] == [3]
    assert len(found) == 8


def test_a_worker_that_died_by_accident_is_forgiven(tmp_path):
    found = outcomes(jobs_with("die once", mark=str(tmp_path / "mark")))
    assert found[3].answer == {"n": 3}
    assert not any(outcome.error for outcome in found.values())


def test_a_pool_in_which_most_workers_are_killed_finishes_and_each_costs_its_own_scan():
    jobs = [{"do": "die" if n % 3 else "answer", "n": n} for n in range(12)]
    found = outcomes(jobs, processes=3)
    assert {n for n, outcome in found.items() if not outcome.error} == {0, 3, 6, 9}
    assert {outcome.error for outcome in found.values() if outcome.error} == {
        "the process that read it died of SIGKILL, twice (out of memory?); free memory or use fewer --workers"
    }


def test_workers_that_the_system_kills_one_after_the_other_cost_nothing(tmp_path: Path):
    jobs = [{"do": "die once", "n": n, "mark": str(tmp_path / str(n))} for n in range(6)]
    assert {n: outcome.answer for n, outcome in outcomes(jobs, processes=3).items()} == {n: {"n": n} for n in range(6)}
    assert len(list(tmp_path.iterdir())) == 6


SPINNING = """
import sys
from troubled import work
from cov3d import Machine
from cov3d.scans.workers import each
list(each(work, [{"do": "spin", "n": n, "mark": sys.argv[1]} for n in range(3)], Machine(workers=3)))
"""


def session(leader: int) -> list[int]:
    """Processes of a session, those that are dead and not yet buried left out."""
    states = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(leader)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in states.splitlines() if not line.split()[1].startswith("Z")]


def test_no_process_is_left_when_the_parent_is_killed_in_the_middle_of_scans(tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", SPINNING, tmp_path], start_new_session=True, env=env)
    until(lambda: parent.poll() is not None or len(list(tmp_path.iterdir())) == 3)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    try:
        until(lambda: not session(parent.pid), seconds=5)
    finally:
        for orphan in session(parent.pid):
            os.kill(orphan, signal.SIGKILL)


def until(done, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not after {seconds:g} s"
        time.sleep(0.05)


# Memory


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return Machine()


def test_processes_are_added_one_by_one_while_memory_lasts(eight_cores: Machine, monkeypatch: pytest.MonkeyPatch):
    """Each takes what one has been seen to take; of the memory that the others leave, one is always allowed."""
    free = 2.5e9
    monkeypatch.setattr("cov3d.memory.free_memory", lambda *_: free)
    monkeypatch.setattr("cov3d.memory.used_memory", lambda *_: 0)
    monkeypatch.setattr("cov3d.scans.room.peak_memory", lambda process: process)
    room = Room(eight_cores)
    assert [room.beside(busy, None) for busy in ([], [1], [1, 2])] == [True, True, False]  # by a guess
    room.learn(500_000_000)
    assert [len(busy) for busy in ([0] * n for n in range(9)) if room.beside(busy, None)] == [0, 1, 2, 3, 4]
    room.learn(1_200_000_000)
    room.learn(100_000_000)  # the largest counts
    assert [n for n in range(9) if room.beside([0] * n, None)] == [0, 1]
    free = 0
    assert [n for n in range(9) if room.beside([0] * n, None)] == [0]
    free = 1e12
    assert [n for n in range(9) if room.beside([0] * n, None)] == list(range(8))


def test_a_number_that_the_user_said_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cov3d.memory.free_memory", lambda *_: 0)
    room = Room(Machine(workers=3))
    assert [n for n in range(5) if room.beside([0] * n, None)] == [0, 1, 2]


def test_where_memory_and_not_cores_are_the_limit_it_is_said_once_and_all_is_done(
    eight_cores: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("cov3d.memory.free_memory", lambda *_: 0)
    found = {outcome.index: outcome.answer for outcome in each(pid, [{"n": n} for n in range(6)], eight_cores)}
    assert len(found) == 6 and len({answer["pid"] for answer in found.values()}) == 1
    (note,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"note: memory allows 1 of 8 processes at a time, since a scan takes up to \d\.\d GB; .*", note)


def test_a_job_that_takes_for_ever_is_given_up():
    outcomes(jobs_with("", count=1))  # what starts all workers has started
    begin = time.monotonic()
    found = outcomes(jobs_with("hang", count=4), timeout=2)
    assert "longer than 2 s" in found[3].error
    assert time.monotonic() - begin < 30


def test_a_full_disk_stops_the_run():
    with pytest.raises(Cov3dError, match="no space left"):
        outcomes(jobs_with("full"))


def test_a_script_needs_no_main_guard(tmp_path):
    """The script that starts the workers is not run again in each of them."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "from cov3d import Machine\n"
        "from cov3d.scans.workers import each\n"
        "from cov3d.scans.tensors import make_tensors\n"
        "print([o.error for o in each(make_tensors, [{'path': 'nowhere', 'settings': []}], Machine(workers=1))])\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert run.stdout == "once\n['is not there']\n"
    assert run.stderr == ""
