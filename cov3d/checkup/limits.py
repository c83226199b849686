"""What the machine, its container and its scheduler give to one process: cores, memory, shared memory, open files, a share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from cov3d.checkup.findings import Finding, Verdict, size
from cov3d.errors import SettingError
from cov3d.memory import free_memory
from cov3d.shards import find_shard

LEAST_SHARED, ENOUGH_SHARED = 64e6, 1e9  # bytes of /dev/shm; Docker gives a little more than the first
LEAST_MEMORY, ENOUGH_MEMORY = 1e9, 4e9
ENOUGH_FILES = 1024


def look_at_limits(gpu: bool) -> Iterator[Finding]:
    """Cores, memory, ``/dev/shm``, open files, and the share of the work that the environment says is this process's."""
    yield judge_cores(usable_cores(), cpu_quota())
    yield judge_memory(free_memory())
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        yield judge_shared(usage.total, usage.free, gpu)
    files = _open_files()
    if files:
        yield judge_open_files(*files)
    yield look_at_share(os.environ)


# Cores


def judge_cores(cores: int, quota: float | None) -> Finding:
    """``cores`` that this process may run on, and how many of them its container may keep busy."""
    if quota is not None and quota < cores:
        whole = max(1, int(quota))
        advice = (
            f"the container may keep {quota:g} busy; set OMP_NUM_THREADS={whole}, and say --workers {whole} where there "
            "is that option, else processes wait for each other"
        )
        return Finding("cores", f"{cores}, of which the container may keep {quota:g} busy", "note", advice)
    return Finding("cores", f"{cores}")


def usable_cores() -> int:
    """On how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many cores this process' control groups may keep busy, or None where nothing says so."""
    quotas = []
    for folder in control_groups(root, "cpu"):
        both = _read(folder / "cpu.max").split()  # version 2: "200000 100000" or "max 100000"
        if not both:
            both = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(both) == 2 and all(part.isdigit() for part in both) and int(both[1]):
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas, default=None)


def control_groups(root: Path, controller: str) -> list[Path]:
    """Folders of the control groups of this process, its own and those around it, of either version."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if number != "0":
            if controller not in controllers.split(","):
                continue
            base = base / controller
        group = base / path.lstrip("/")
        found += [folder for folder in (group, *group.parents) if folder == base or base in folder.parents]
    return found


# Memory


def judge_memory(free: int | None) -> Finding:
    """Bytes that may still be taken, by the machine and by each control group."""
    if free is None:
        return Finding("memory", "this system does not tell")
    found = f"{size(free)} may be taken"
    if free < LEAST_MEMORY:
        return Finding("memory", found, "bad", "end other programs, or ask the scheduler for more (Slurm: --mem 8G)")
    if free < ENOUGH_MEMORY:
        advice = "fewer scans are read at a time: say --workers 1 if memory runs out, and ask the scheduler for more"
        return Finding("memory", found, "note", advice)
    return Finding("memory", found)


def judge_shared(total: int, free: int, gpu: bool) -> Finding:
    """``/dev/shm``: through it processes hand pictures to a GPU, and GPUs talk to each other."""
    found = f"{size(total)}, {size(free)} free"
    advice = (
        "too little for 'pretrain --method imagenet' and for several GPUs; give it more: docker run --shm-size 8g, or in "
        "Kubernetes an emptyDir with medium Memory at /dev/shm"
    )
    if not gpu:
        return Finding("/dev/shm", f"{found}; used where a GPU trains")
    verdict: Verdict = "bad" if free < LEAST_SHARED else "note" if free < ENOUGH_SHARED else "ok"
    return Finding("/dev/shm", found, verdict, "" if verdict == "ok" else advice)


# Files and shares


def judge_open_files(soft: int, hard: int) -> Finding:
    """How many files a process may have open, and how far it may raise that itself; -1 is without a limit."""
    found = "no limit" if soft < 0 else f"at most {soft}"
    if 0 <= soft < ENOUGH_FILES:
        most = ENOUGH_FILES * 4 if hard < 0 else min(ENOUGH_FILES * 4, hard)
        told = f"run 'ulimit -n {most}' before cov3d" if most > soft else "ask the administrator for more (nofile)"
        return Finding("open files", found, "note", f"{told}: processes that read take several each")
    return Finding("open files", found)


def look_at_share(environment: Mapping[str, str]) -> Finding:
    """The share of the work that torchrun's or Slurm's environment gives to this process."""
    try:
        shard = find_shard(environment=environment)
    except SettingError as error:
        return Finding("share", "unknown", "bad", str(error))
    if shard.whole:
        return Finding("share", "all of the work: no torchrun, srun or Slurm array of several tasks")
    return Finding("share", f"{shard} of the work, says {shard.found_in}; shares are counted from 0")


def _open_files() -> tuple[int, int] | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return tuple(-1 if it == resource.RLIM_INFINITY else it for it in (soft, hard))  # type: ignore[return-value]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
