"""One run at a time writes a table, and nothing is left to clean up after one that was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cov3d.errors import Cov3dError
from cov3d.results.claim import Claim, claimed, unclaimed
from cov3d.results.ensemble import Ensemble

AT_WORK = "another run is writing it"


def test_a_table_has_one_writer_and_another_after_it(tmp_path: Path):
    table = tmp_path / "p.csv"
    with claimed(table):
        with pytest.raises(Cov3dError, match=AT_WORK):
            Claim(table)
        with pytest.raises(Cov3dError, match=AT_WORK), unclaimed(table):
            pass
    with claimed(table), claimed(tmp_path / "q.csv"):
        pass
    with unclaimed(table), unclaimed(table), unclaimed(tmp_path / "nowhere"):
        pass


def test_a_table_that_was_replaced_is_claimed_again(tmp_path: Path):
    table = tmp_path / "p.csv"
    with claimed(table) as claim:
        (tmp_path / "new").write_text("new")
        (tmp_path / "new").replace(table)
        claim.renew()
        with pytest.raises(Cov3dError, match=AT_WORK):
            Claim(table)
    Claim(table).release()
    assert table.read_text() == "new"


def test_a_killed_run_holds_nothing(tmp_path: Path):
    code = "import sys, time; from pathlib import Path; from cov3d.results.claim import Claim; c = Claim(Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}; print('held', flush=True); time.sleep(60)", tmp_path / "p.csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Cov3dError, match=AT_WORK):
            Claim(tmp_path / "p.csv")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        Claim(tmp_path / "p.csv").release()


@pytest.mark.parametrize("without", ["a drive", "a system"])
def test_where_there_are_no_locks_tables_are_written_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if without == "a drive":
        monkeypatch.setattr("cov3d.locks.fcntl.flock", refuse)
    else:
        monkeypatch.setattr("cov3d.locks.fcntl", None)
    with claimed(tmp_path / "p.csv"), claimed(tmp_path / "p.csv"), unclaimed(tmp_path / "p.csv"):
        pass


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}], ids=["plain", "resume", "overwrite"])
def test_a_second_run_is_refused_as_long_as_the_first_lives(
    options: dict, tmp_path: Path, run: Callable, timeless: Callable, monkeypatch: pytest.MonkeyPatch
):
    output, answer, refused = tmp_path / "p.csv", Ensemble.answer, []

    def meanwhile(self, *arguments):
        before = output.read_bytes(), output.with_name("p.csv.json").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(Ensemble, "answer", answer)
            with pytest.raises(Cov3dError, match=AT_WORK) as error:
                run(output, **options)
        assert before == (output.read_bytes(), output.with_name("p.csv.json").read_bytes())
        refused.append(str(error.value))
        return answer(self, *arguments)

    monkeypatch.setattr(Ensemble, "answer", meanwhile)
    run(output)
    monkeypatch.undo()
    assert len(refused) == 5
    assert "p.csv" in refused[0]
    assert len(timeless(output)) == 6
