"""Signals that ask for an end: Ctrl-C, a scheduler's SIGTERM, and those that Slurm sends before it.

Most work may be left anywhere, since files appear whole or not at all: there a signal is an exception. A training is left
between two steps only: there it is a flag.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from cov3d.errors import Cov3dError

HEARD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal that ended the work where it was; its text is the signal's name."""


class Stopped(Cov3dError):
    """A work that was asked to end, and ended with all that it had done on the disk."""

    exit_code = 75


@contextmanager
def interruptible() -> Iterator[None]:
    """Any of the signals raises :class:`Interrupted` where the work is; one that was ignored stays so."""
    with _handled(_interrupt):
        yield


@contextmanager
def leaving() -> Iterator[None]:
    """Any of the signals ends the process with exit code 75, while there is nothing yet to be saved or said.

    A process of torchrun's is sent SIGTERM when that is gone: it dies of some signals without a word to those it began.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    with _handled(_leave):
        yield


class Asked:
    """Whether the work is asked to end: by a signal, or because its time is up."""

    def __init__(self, end: float | None = None, late: str = "its time") -> None:
        self.reason, self.end, self.late = "", end, late

    def __bool__(self) -> bool:
        if not self.reason and self.end is not None and time.monotonic() > self.end:
            self.reason = self.late
        return bool(self.reason)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C ends the work at once."""
        if self.reason and number == signal.SIGINT:
            _interrupt(number, frame)
        self.reason = signal.Signals(number).name


@contextmanager
def asked_to_stop(end: float | None = None, late: str = "its time") -> Iterator[Asked]:
    """Something that is true from the moment at which the work is asked to end, or the monotonic clock is past ``end``.

    Its ``reason`` says by what: a signal's name, or ``late``.
    """
    asked = Asked(end, late)
    with _handled(asked.hear):
        yield asked


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Let ``handler`` hear the signals; outside the main thread nobody can, and nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in HEARD}
    heard = [number for number, old in before.items() if old not in (signal.SIG_IGN, None)]
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def ignore_stops(*_: object) -> None:
    """Let a worker process be deaf to the signals: its parent answers them, and the worker ends when that does."""
    for number in HEARD:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def born_deaf() -> Iterator[None]:
    """Processes that begin in here are deaf to the signals before they can say :func:`ignore_stops`.

    What is sent meanwhile is heard afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        resource_tracker.ensure_running()  # it inherits what is blocked, but unblocks some of it here
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"stopped by {signal.Signals(number).name}; nothing was begun\n".encode())
    os._exit(Stopped.exit_code)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
