"""The errors that cov3d raises on purpose. Each is advice: what came, what was expected, what to do."""

from __future__ import annotations

from pathlib import Path


class Cov3dError(Exception):
    """Something that a user can mend. Its text is one sentence; the command line prints it and exits with ``exit_code``."""

    exit_code = 1


class SettingError(Cov3dError):
    """An impossible setting or combination of settings: a usage error."""

    exit_code = 2


class StudyError(Cov3dError):
    """A study's table or folder that cannot be used, with every wrong row named."""


class ModelError(Cov3dError):
    """A model or weights file that cannot be used."""


class ScanError(Cov3dError):
    """A scan that cannot be read. It costs one row: ``path`` says which scan, ``cause`` why and what to do."""

    def __init__(self, path: str | Path, cause: str):
        super().__init__(f"{path}: {cause}")
        self.path = Path(path)
        self.cause = cause
