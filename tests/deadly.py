"""Reading in worker processes, one scan of which ends its worker as the system does that has no memory left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cov3d.scans.tensors import make_tensors

DEADLY = "deadly"


def read_or_die(job):
    """Read a scan, or die of one that holds a file called deadly."""
    if Path(job["path"], DEADLY).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return make_tensors(job)
