"""A disk that fails: the calls by which files are written are counted, and the n-th one is refused."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Disk:
    """Refuses the call ``first`` with the error ``code``, and those after it too if ``lasting``; counts all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int = 10**9, code: int = 0, lasting: bool = True):
        self.calls, self.first, self.code, self.lasting = 0, first, code, lasting
        for owner, name in (
            (tempfile, "mkstemp"),
            (os, "open"),
            (os, "fsync"),
            (Path, "chmod"),
            (Path, "mkdir"),
            (Path, "replace"),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: io.BufferedWriter(_File(self, descriptor, mode)))

    def refuses(self) -> bool:
        """Whether the next call is refused."""
        self.calls += 1
        return self.calls >= self.first if self.lasting else self.calls == self.first

    def error(self) -> OSError:
        """What the system says then."""
        return OSError(self.code, os.strerror(self.code))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self.refuses():
                raise self.error()
            return call(*arguments, **options)

        return counted


class _File(io.FileIO):
    """A file on such a disk; of what is refused, half is written."""

    def __init__(self, disk: Disk, descriptor: int, mode: str):
        super().__init__(descriptor, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        if self.disk.refuses():
            super().write(bytes(data)[: len(data) // 2])
            raise self.disk.error()
        return super().write(data)
