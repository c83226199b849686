"""The hardest stop there is: kill -9 of a whole process group, at a random moment."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path


class Failed(RuntimeError):
    """A command ended by itself, with another exit status than 0: not what a kill is about."""


def kill_at_random(
    command: Sequence[str],
    cwd: str | Path,
    seed: int,
    longest: float,
    env: dict[str, str] | None = None,
    shortest: float = 0.0,
) -> bool:
    """Run `command` and kill it and all its children at a random moment.

    It starts in a new session, so that its process group is its own and nobody
    else's; kill -9 goes to the whole group at a moment drawn evenly between
    `shortest` and `longest` seconds after the start (by `seed`). Returns True if
    the command had finished before that, False if it was killed. Raises Failed,
    with what it wrote, if it ended by itself with another status than 0.
    """
    moment = random.Random(seed).uniform(shortest, longest)
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        end_group(process)
        process.communicate()
        return False
    except BaseException:  # the test itself is stopped: nothing is left running behind it
        end_group(process)
        raise
    if process.returncode:
        raise Failed(f"exit {process.returncode}: {said}")
    return True


def kill_call_at_random(target: Callable[..., None], arguments: Sequence[object], seed: int, longest: float) -> bool:
    """The same of a function, in a process that is forked from one that has imported everything: it begins at once.

    What it starts in its turn is not in its group, and must end by itself. ``target`` stands in a module that can be imported.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["cov3d.scans.cache", "cov3d.results.infer", "cov3d.training.train", "torch._dynamo"]
    )
    process = context.Process(target=_alone, args=(target, *arguments))
    process.start()
    process.join(random.Random(seed).uniform(0, longest))
    finished = process.exitcode is not None
    process.kill()
    process.join()
    if finished and process.exitcode:
        raise Failed(f"exit {process.exitcode}")
    return finished


def _alone(target: Callable[..., None], *arguments: object) -> None:
    os.setsid()
    target(*arguments)


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill -9 the process and everything that it started in its session's group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
