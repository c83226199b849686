"""Memory: how much may still be taken, by what the machine has and what our groups of processes may; what a process uses.

Everything is None where the system does not tell: elsewhere than on Linux.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path("/")
# Above this the system means that there is no limit (cgroup v1 writes nearly 2**63).
NO_LIMIT = 2**60
# Of what a group uses: files' pages, which the system takes back when somebody needs room.
RECLAIMABLE = ("inactive_file", "active_file")
DIES_BEFORE = 500  # of -1000 … 1000


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that may still be taken here: the least of what the machine has left and what each group (cgroup) has."""
    machine = _kilobytes(_text(root / "proc" / "meminfo"), "MemAvailable")
    return None if machine is None else max(0, min([machine, *_of_groups(root)]))


def used_memory(process: int, root: Path = ROOT) -> int | None:
    """Bytes that a process has in memory now."""
    return _status(process, "VmRSS", root)


def peak_memory(process: int, root: Path = ROOT) -> int | None:
    """Bytes that it had when it had most."""
    return _status(process, "VmHWM", root)


def has_room(peak: int, process: int | None, others: Sequence[int], root: Path = ROOT) -> bool:
    """Whether one more process may grow to ``peak`` bytes, when the others may, too; None is one that is yet to be started.

    Where nobody can tell there is room.
    """
    free = free_memory(root)
    growing = others if process is None else [process, *others]
    yet_to_come = sum(max(0, peak - (used_memory(number, root) or 0)) for number in growing)
    return free is None or free >= yet_to_come + (peak if process is None else 0)


def die_first() -> None:
    """When memory is out, let the system end this process, and not the one that started it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(ROOT / "proc" / "self" / "oom_score_adj", os.O_WRONLY)
        try:
            os.write(descriptor, str(DIES_BEFORE).encode())
        finally:
            os.close(descriptor)


def _status(process: int, name: str, root: Path) -> int | None:
    return _kilobytes(_text(root / "proc" / str(process) / "status"), name)


def _of_groups(root: Path) -> Iterator[int]:
    """What is left of each limit that holds for this process: its group's, and those of the groups around it."""
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if hierarchy == "0":  # version 2; beside version 1 it is called unified
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                yield from _of_group(root / mount, group, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            yield from _of_group(root / "sys/fs/cgroup/memory", group, *names)


def _of_group(mount: Path, group: str, limit: str, usage: str, prefix: str) -> Iterator[int]:
    """What is left in a group and in those around it; in a container the outer ones are not to be seen."""
    place = mount / group.strip("/")
    for folder in (place, *place.parents):
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None and most < NO_LIMIT:
            yield most - used + _reclaimable(folder, prefix)
        if folder == mount:
            return


def _reclaimable(folder: Path, prefix: str) -> int:
    counts = dict(re.findall(r"^(\w+) (\d+)$", _text(folder / "memory.stat"), re.MULTILINE))
    return sum(int(counts.get(f"{prefix}{name}", 0)) for name in RECLAIMABLE)


def _kilobytes(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
