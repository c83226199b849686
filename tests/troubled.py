"""A task for worker processes that has every trouble there is; in a module of its own, which the workers can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cov3d.errors import Cov3dError, ScanError


def work(job):
    """What a job says: answer, fail, crash, hang, or die once."""
    if job["do"] == "fail":
        raise ScanError("scan", "is damaged")
    if job["do"] == "bug":
        raise KeyError("oops")
    if job["do"] == "full":
        raise Cov3dError("no space left on the disk")
    if job["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job["do"] == "leave":
        os._exit(7)
    if job["do"] == "die once":
        try:
            Path(job["mark"]).mkdir()
        except FileExistsError:
            return {"n": job["n"]}, []
        os.kill(os.getpid(), signal.SIGKILL)
    if job["do"] == "hang":
        time.sleep(600)
    if job["do"] == "spin":  # as a library does that is stuck
        Path(job["mark"], str(os.getpid())).touch()
        while True:
            pass
    return {"n": job["n"]}, [bytes([job["n"]]) * 300_000]


def pid(job):
    """Who works."""
    return {"pid": os.getpid()}, []
