"""What people see while cov3d works: messages and progress on standard error, names always made printable."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0
NAMES_SHOWN = 5
_quiet = _mute = False


def set_quiet(quiet: bool) -> None:
    """Show errors and results only."""
    global _quiet
    _quiet = quiet


def mute() -> None:
    """Show errors only: another process speaks for all."""
    global _quiet, _mute
    _quiet = _mute = True


def muted() -> bool:
    """Whether another process speaks for all."""
    return _mute


def say(message: str) -> None:
    """Print a message for the user on standard error, unless ``--quiet``."""
    if not _quiet:
        complain(message)


def complain(message: str) -> None:
    """Print an error on standard error, ``--quiet`` or not."""
    try:
        print(printable(message), file=sys.stderr, flush=True)  # noqa: T201
    except BrokenPipeError:  # nobody reads our messages; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def show(result: str) -> None:
    """Print a result on standard output."""
    if _mute:
        return
    for line in result.split("\n"):
        print(printable(line), flush=True)  # noqa: T201


def printable(text: str) -> str:
    """Text with control characters and undecodable bytes as ``\\x1b``: data on the screen, never commands to a terminal."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e]", lambda m: repr(m.group())[1:-1], text)
    return text.encode("utf-8", errors="backslashreplace").decode()


def few(names: Sequence[str], separator: str = ", ") -> str:
    """The first names of many, for an error."""
    return separator.join(names[:NAMES_SHOWN]) + (
        f"{separator}and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    )


def plural(count: int, noun: str) -> str:
    """``1 slice``, ``2 slices``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts scan 2 before scan 10."""
    return [
        (0, int(part), "") if re.fullmatch("[0-9]{1,18}", part) else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
    ]


@contextmanager
def progress(total: int, verb: str, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Show how far a long work is, of which ``done`` is done already: a bar on a terminal, else a line every so often.

    Yields a function to call after each item with what is to be said beside the count.
    """
    if _quiet or total == 0:
        yield _silent
    elif sys.stderr.isatty():
        with _bar(total, verb, done) as step:
            yield step
    else:
        yield _lines(total, verb, done)


@contextmanager
def _bar(total: int, verb: str, done: int) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(verb), total=total, completed=done, text="")

        def step(text: str = "") -> None:
            bar.update(task, advance=1, text=escape(printable(text)))

        yield step


def _silent(text: str = "") -> None:
    pass


def _lines(total: int, verb: str, done: int) -> Callable[[str], None]:
    begin = last = time.monotonic()

    def step(text: str = "") -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if done == total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            say(f"{verb}: {done} of {total}, {now - begin:.0f} s {text}".rstrip())

    return step
