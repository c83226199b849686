"""Worker processes: a crash, a kill or a hang costs the scan that caused it and no other."""

from __future__ import annotations

import time

import pytest
from troubled import work

from cov3d.errors import Cov3dError
from cov3d.scans.workers import each


def outcomes(jobs, processes: int = 2, timeout: float = 30):
    return {outcome.index: outcome for outcome in each(work, jobs, processes, timeout)}


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


def test_a_job_that_takes_for_ever_is_given_up():
    begin = time.monotonic()
    found = outcomes(jobs_with("hang", count=4), timeout=2)
    assert "longer than 2 s" in found[3].error
    assert time.monotonic() - begin < 30


def test_a_full_disk_stops_the_run():
    with pytest.raises(Cov3dError, match="no space left"):
        outcomes(jobs_with("full"))


def test_a_script_needs_no_main_guard(tmp_path):
    """The script that starts the workers is not run again in each of them."""
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "from cov3d.scans.workers import each\n"
        "from cov3d.scans.tensors import make_tensors\n"
        "print([o.error for o in each(make_tensors, [{'path': 'nowhere', 'settings': []}], 1, 30)])\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert run.stdout == "once\n['is not there']\n"
    assert run.stderr == ""
