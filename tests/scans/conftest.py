"""What the tests of reading share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hospital import HU, SPACING

from cov3d.forms import write_dicom


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A good series of 40 slices, .7 mm apart."""
    return write_dicom(tmp_path / "series", HU, SPACING, seed=0)
