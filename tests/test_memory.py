"""How much memory may still be taken: on a drawn system of files, and here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cov3d.memory import die_first, free_memory, has_room, peak_memory, used_memory

GB, MB = 2**30, 2**20


def system(root: Path, available: int, cgroup: str = "0::/\n") -> Path:
    """The files of a machine that has so many bytes left, and on which this process is in these groups."""
    write(root / "proc/meminfo", f"MemTotal:       99999999 kB\nMemAvailable:   {available // 1024} kB\n")
    write(root / "proc/self/cgroup", cgroup)
    return root


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def group(folder: Path, most: object, used: int, files: int = 0, version: int = 2) -> None:
    """A group of processes that may have, and has, so many bytes, some of them pages of files."""
    limit, usage = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}[version]
    prefix = {2: "", 1: "total_"}[version]
    write(folder / limit, most)
    write(folder / usage, used)
    # What a group has itself stands beside what it has with the groups in it (version 1).
    write(
        folder / "memory.stat", f"anon 5\ninactive_file 7\n{prefix}inactive_file {files}\n{prefix}active_file {files}"
    )


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path):
    assert free_memory(system(tmp_path, 3 * GB)) == 3 * GB


@pytest.mark.parametrize(
    "version, line, mount",
    [
        (2, "0::/job/step\n", "sys/fs/cgroup"),
        (2, "0::/job/step\n", "sys/fs/cgroup/unified"),
        (1, "11:cpu:/other\n7:hugetlb,memory:/job/step\n0::/\n", "sys/fs/cgroup/memory"),
    ],
)
@pytest.mark.parametrize("which", ["job/step", "job", "."])
def test_the_tightest_group_counts_and_pages_of_files_can_be_had(
    tmp_path: Path, version: int, line: str, mount: str, which: str
):
    root = system(tmp_path, 64 * GB, line)
    for name in ("job/step", "job", "."):
        group(root / mount / name, 32 * GB, GB, version=version)
    group(root / mount / which, 8 * GB, 7 * GB, files=GB, version=version)
    assert free_memory(root) == 3 * GB


@pytest.mark.parametrize("most, version, line", [("max", 2, "0::/a"), (9223372036854771712, 1, "4:memory:/a")])
def test_a_group_without_a_limit_limits_nothing(tmp_path: Path, most: object, version: int, line: str):
    root = system(tmp_path, 5 * GB, line)
    group(root / "sys/fs/cgroup" / ("memory" if version == 1 else "") / "a", most, GB, version=version)
    assert free_memory(root) == 5 * GB


def test_a_container_sees_its_own_group_only_and_that_counts(tmp_path: Path):
    """Its name is that of the machine outside, its files lie where the outermost group's would."""
    root = system(tmp_path, 64 * GB, "0::/docker/0123abcd")
    group(root / "sys/fs/cgroup", 4 * GB, GB)
    assert free_memory(root) == 3 * GB


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path):
    root = system(tmp_path, 64 * GB, "0::/a")
    group(root / "sys/fs/cgroup/a", GB, 2 * GB)
    assert free_memory(root) == 0


def test_where_nobody_tells_it_is_unknown_and_there_is_room(tmp_path: Path):
    assert free_memory(tmp_path) is None
    assert used_memory(1, tmp_path) is None
    assert has_room(GB, None, [1, 2], tmp_path)


@pytest.mark.parametrize(
    "available, process, others, room",
    [
        (GB, None, [], True),
        (GB - MB, None, [], False),
        (GB, None, [7], False),  # which may yet take 600 MB
        (GB + 624 * MB, None, [7], True),
        (GB + 624 * MB, None, [7, 9], True),  # 9 has what it will have
        (GB + 1023 * MB, None, [7, 8], False),
        (623 * MB, 7, [], False),  # it has 400 MB already
        (624 * MB, 7, [], True),
        (1248 * MB, 7, [8], True),
        (1247 * MB, 7, [8], False),
    ],
)
def test_there_is_room_if_all_may_grow_to_what_one_took(
    tmp_path: Path, available: int, process: int | None, others: list[int], room: bool
):
    root = system(tmp_path, available)
    for number, used in ((7, 400), (8, 400), (9, 1500)):
        write(root / f"proc/{number}/status", f"Name:\tcov3d\nVmHWM:\t{2000 * 1024} kB\nVmRSS:\t{used * 1024} kB")
    assert has_room(GB, process, others, root) is room


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell")


@needs_proc
def test_a_process_here_is_seen_to_take_memory_and_to_give_it_back():
    before = used_memory(os.getpid())
    taken = np.ones(300 * MB, np.uint8)
    during = used_memory(os.getpid())
    del taken
    after, peak = used_memory(os.getpid()), peak_memory(os.getpid())
    assert None not in (before, during, after, peak)
    assert during - before > 290 * MB and during - after > 290 * MB and peak > before + 290 * MB
    assert 0 < free_memory() < 2**50


@needs_proc
def test_who_is_to_die_first_says_so_to_the_system():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        die_first()
        os.write(writer, Path("/proc/self/oom_score_adj").read_bytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reader, 100)) == 500
    os.close(reader)
    os.close(writer)
