"""Signals that ask for an end: an exception where work may be left, a flag where it may not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cov3d.stopping import HEARD, Interrupted, asked_to_stop, interruptible

pytestmark = pytest.mark.usefixtures("listening")


def raise_signal(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # handlers run between two bytecodes


@pytest.mark.parametrize("number", HEARD)
def test_work_that_may_be_left_is_left_at_once(number: signal.Signals):
    with pytest.raises(Interrupted, match=number.name), interruptible():
        raise_signal(number)


@pytest.mark.parametrize("number", HEARD)
def test_work_that_may_not_be_left_is_asked_and_who_heard_before_hears_again(number: signal.Signals):
    with interruptible():
        with asked_to_stop() as asked:
            assert not asked
            raise_signal(number)
            assert asked and asked.reason == number.name
        with pytest.raises(Interrupted):
            raise_signal(number)


def test_a_second_ctrl_c_ends_at_once():
    with asked_to_stop() as asked:
        raise_signal(signal.SIGINT)
        assert asked
        with pytest.raises(Interrupted):
            raise_signal(signal.SIGINT)


def test_a_scheduler_that_repeats_itself_is_heard_once():
    with asked_to_stop() as asked:
        raise_signal(signal.SIGTERM)
        raise_signal(signal.SIGTERM)
        assert asked.reason == "SIGTERM"


def test_a_signal_that_was_ignored_stays_so():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with interruptible(), asked_to_stop() as asked:
        raise_signal(signal.SIGUSR1)
        assert not asked


def test_time_that_is_up_is_a_reason():
    with asked_to_stop(time.monotonic() + 3600, "--max-hours 1") as asked:
        assert not asked
        asked.end = time.monotonic() - 1
        assert asked and asked.reason == "--max-hours 1"


CODE = """
import os, signal, sys, time
from cov3d.stopping import leaving
with leaving():
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", HEARD)
def test_a_signal_before_anything_was_begun_is_an_orderly_stop_too(number: signal.Signals):
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=10)[1] == f"stopped by {number.name}; nothing was begun\n"
    assert process.returncode == 75


def test_what_torchrun_began_ends_with_it(tmp_path: Path):
    """torchrun dies of SIGUSR1 without a word."""
    parent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
    env = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    process = subprocess.Popen(
        [sys.executable, "-c", parent, CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.communicate(timeout=10)[1] == "stopped by SIGTERM; nothing was begun\n"
