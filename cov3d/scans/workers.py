"""Worker processes, one scan in each at a time, so that a scan's crash or hang costs only that scan.

Python's own pools cannot: ``multiprocessing.Pool`` waits for ever for a killed worker, ``ProcessPoolExecutor`` fails
everything that was still to be done. Here the parent knows which scan each process has, blames the right one, starts
another process, and tries the scan once more by itself. Jobs and answers are JSON and bytes, so that whatever a damaged
scan does to a worker, the parent unpickles nothing of it.

There are as many workers as cores, and no more than memory allows: the system kills whom it likes when it has none left.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any

from cov3d.config import Machine
from cov3d.errors import Cov3dError, ScanError
from cov3d.memory import die_first
from cov3d.scans.boundary import unheard
from cov3d.scans.room import Room
from cov3d.stopping import born_deaf, ignore_stops

Job = dict[str, Any]
Task = Callable[[Job], tuple[dict[str, Any], Sequence[bytes]]]
STARTING = threading.Lock()  # of one process after the other, where threads begin them


@dataclass(frozen=True)
class Outcome:
    """What became of one job: its answer and the bytes that came with it, or the cause of its failure."""

    index: int
    answer: dict[str, Any]
    parts: tuple[bytes, ...] = ()
    error: str = ""


def each(task: Task, jobs: Sequence[Job], machine: Machine) -> Iterator[Outcome]:
    """Run ``task`` on every job in worker processes and yield outcomes as they come, in any order.

    A ScanError fails its job, and so does the death of its process (after a second try alone) or ``machine.timeout`` seconds.

    Raises:
        Cov3dError: a task met something that no other scan can escape, such as a full disk.
    """
    died: list[int] = []
    for outcome in _run(task, jobs, range(len(jobs)), machine):
        if isinstance(outcome, _Death):
            died.append(outcome.index)
        else:
            yield outcome
    for index in died:
        for outcome in _run(task, jobs, [index], replace(machine, workers=1)):
            yield outcome if isinstance(outcome, Outcome) else Outcome(index, {}, error=outcome.cause)


@dataclass(frozen=True)
class _Death:
    """A process that ended with its job undone."""

    index: int
    exit_code: int

    @property
    def cause(self) -> str:
        if self.exit_code < 0:
            name = signal.Signals(-self.exit_code).name
            return (
                f"the process that read it died of {name}, twice (out of memory?); free memory or use fewer --workers"
            )
        return f"the process that read it ended, twice, with exit code {self.exit_code}; please report it"


def _run(task: Task, jobs: Sequence[Job], indices: Sequence[int], machine: Machine) -> Iterator[Outcome | _Death]:
    waiting = deque(indices)
    busy: list[_Worker] = []
    idle: list[_Worker] = []
    room = Room(machine)
    try:
        while waiting or busy:
            while waiting and room.beside([other.number for other in busy], idle[-1].number if idle else None):
                worker = idle.pop() if idle else _Worker(task)
                worker.give(waiting.popleft(), jobs, machine.timeout)
                busy.append(worker)
            wait([worker.connection for worker in busy], timeout=_until_first_deadline(busy))
            for worker in [worker for worker in busy if worker.has_news()]:
                busy.remove(worker)
                room.learn(worker.number)
                yield worker.outcome(machine.timeout)
                if worker.process.is_alive():
                    idle.append(worker)
    finally:
        for worker in busy + idle:
            worker.stop()


def _until_first_deadline(busy: Sequence[_Worker]) -> float:
    return max(0.0, min(worker.deadline for worker in busy) - time.monotonic())


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, task: Task):
        context = _context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, task), daemon=True)
        with born_deaf(), _own_main():
            self.process.start()
        # A worker does not hear the SIGTERM by which multiprocessing would end it when Python exits.
        Finalize(self, self.process.kill, exitpriority=10)
        theirs.close()
        self.number: int = self.process.pid
        self.index = -1
        self.deadline = float("inf")

    def give(self, index: int, jobs: Sequence[Job], timeout: float) -> None:
        self.index = index
        self.deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError):  # it died while idle; receiving will tell
            self.connection.send_bytes(json.dumps(jobs[index]).encode())

    def has_news(self) -> bool:
        return self.connection.poll() or time.monotonic() > self.deadline

    def outcome(self, timeout: float) -> Outcome | _Death:
        if not self.connection.poll():
            self.stop()
            return Outcome(self.index, {}, error=f"took longer than {timeout:g} s and was given up (--timeout)")
        try:
            message = json.loads(self.connection.recv_bytes())
            parts = tuple(self.connection.recv_bytes() for _ in range(message["parts"]))
        except (EOFError, OSError):
            self.process.join(5)
            self.stop()
            return _Death(self.index, self.process.exitcode or 0)
        if message["fatal"]:
            raise Cov3dError(message["fatal"])
        return Outcome(self.index, message["answer"], parts, message["error"])

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _context() -> Any:
    """Forkserver: torch is imported once for all workers, and no thread or lock of the parent is copied."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cov3d.scans.cache"])
    return context


@contextlib.contextmanager
def _own_main() -> Iterator[None]:
    """Start processes that do not run the caller's script again.

    multiprocessing imports the main script in each child, which runs a script without a ``__main__`` guard once more in
    every worker. No task of ours needs it, so for a moment there is none.
    """
    with STARTING:
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _serve(connection: Connection, task: Task) -> None:
    """A worker's life: take a job, answer, until the parent is gone."""
    from threadpoolctl import threadpool_limits

    ignore_stops()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    die_first()
    with unheard(), threadpool_limits(1):  # a thread a core in every worker would make them wait for each other
        while True:
            try:
                job = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            message, parts = _answer(task, job)
            try:
                connection.send_bytes(json.dumps(message).encode())
                for part in parts:
                    connection.send_bytes(part)
            except OSError:  # nobody is left to hear it
                return


def _end_with_the_parent() -> None:
    """End within a scan, too: a killed parent's worker would read on, with nobody to hear it, and hang where scans hang."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(task: Task, job: Job) -> tuple[dict[str, Any], Sequence[bytes]]:
    answer: dict[str, Any] = {}
    parts: Sequence[bytes] = ()
    error = fatal = ""
    try:
        answer, parts = task(job)
    except ScanError as problem:
        error = problem.cause
    except Cov3dError as problem:
        fatal = str(problem)
    except Exception as problem:  # a fault of ours must not cost the other scans; it is named in this one's row
        error = f"unexpected {type(problem).__name__} while it was read; please report it"
    return {"answer": answer, "parts": len(parts), "error": error, "fatal": fatal}, parts
