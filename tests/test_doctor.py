"""The doctor: every look says what it found, whether that is well, and what to do; and leaves everything as it was."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import socket
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

import cov3d
from cov3d.checkup import convolution, device, disk, limits, versions
from cov3d.checkup import doctor as whole
from cov3d.checkup.convolution import Measured, judge_fp32, judge_half, measure, relative_error
from cov3d.checkup.device import Gpu, judge_absent, judge_cpu, judge_gpu
from cov3d.checkup.disk import SCAN, Speed, judge_files, judge_room, judge_speed
from cov3d.checkup.findings import Finding, Report, report_json, report_text, size
from cov3d.checkup.limits import judge_cores, judge_memory, judge_open_files, judge_shared, look_at_share
from cov3d.checkup.versions import judge_cov3d, judge_packages, judge_torch
from cov3d.cli import app
from cov3d.errors import Cov3dError, SettingError

CPU = torch.device("cpu")
KERNELS = ("sm_75", "sm_80", "sm_90", "compute_90")
NEEDED = {"fastai": "2.8", "numpy": "1.26", "torchvision": "0.25"}
THERE = {"fastai": "2.8.12", "numpy": "2.4.6", "torchvision": "0.25.0"}


def gpu(capability=(9, 0), total=80e9, free=79e9) -> Gpu:
    return Gpu(0, "NVIDIA H100 80GB HBM3", capability, int(total), int(free))


def took(precision: str, seconds: float, error: float = 1e-4) -> Measured:
    return Measured(precision, seconds, 1e11 / seconds, error)


def fast(rate: float, error: float = 1e-6) -> Measured:
    return Measured("fp32", 1e10 / rate, rate, error)


CASES = {
    # versions
    "cov3d is installed": (judge_cov3d("0.1.0"), "ok", ""),
    "cov3d runs from its folder": (judge_cov3d(None), "note", "pip install"),
    "torch is new enough": (judge_torch("2.10.0+cu128", "2.10", "CUDA 12.8"), "ok", ""),
    "a later torch's number is not a smaller one": (judge_torch("3.0", "2.10", "for CPUs"), "ok", ""),
    "torch 2.9": (
        judge_torch("2.9.1", "2.10", "CUDA 12.8, cuDNN 9.10.2"),
        "bad",
        "half precision.*torch 2.10 or later",
    ),
    "torch 2.2": (judge_torch("2.2.0", "2.10", "for CPUs"), "bad", "cov3d needs torch 2.10 or later"),
    "packages are there": (judge_packages(NEEDED, THERE, {}, "2.10.0", "2.10.0+cpu"), "ok", ""),
    "a package is missing": (
        judge_packages(NEEDED, {**THERE, "fastai": None}, {}),
        "bad",
        "fastai is missing; .*fastai",
    ),
    "a package is old": (judge_packages(NEEDED, {**THERE, "numpy": "1.9"}, {}), "bad", "numpy 1.26 or later"),
    "a package is broken": (judge_packages(NEEDED, THERE, {"fastai": "libGL.so"}), "bad", "fastai cannot be.*libGL.so"),
    "torchvision of another torch": (
        judge_packages(NEEDED, THERE, {}, "2.9.1", "2.10.0"),
        "bad",
        "made for torch 2.9.1",
    ),
    # the device
    "a GPU": (judge_gpu(gpu(), ["NVIDIA H100"], "550.54", KERNELS), "ok", ""),
    "a GPU that torch was not built for": (judge_gpu(gpu((6, 1)), [], "", KERNELS), "bad", "sm_61"),
    "a later GPU runs portable kernels": (judge_gpu(gpu((12, 0)), [], "", KERNELS), "ok", ""),
    "a later GPU without them": (judge_gpu(gpu((12, 0)), [], "", KERNELS[:3]), "bad", "sm_120"),
    "a GPU of another kind of kernels": (judge_gpu(gpu(), [], "", ["gfx90a"]), "ok", ""),
    "a GPU that others fill": (judge_gpu(gpu(free=30e9), [], "", KERNELS), "note", "cuda:1"),
    "a small GPU": (judge_gpu(gpu(total=6e9, free=6e9), [], "", KERNELS), "note", "--batch-size 1"),
    "no GPU": (judge_cpu("auto", 2, "", None), "note", "20 s .* two cores"),
    "no GPU wanted": (judge_cpu("cpu", 2, "550.54", "12.8"), "ok", ""),
    "a driver, and torch for CPUs": (judge_cpu("auto", 2, "550.54", None), "note", "torch is for CPUs"),
    "a driver, and a torch that is newer": (judge_cpu("auto", 2, "450.80", "12.8"), "note", "too old for CUDA 12.8"),
    "a GPU that is not there": (judge_absent("cuda:3", 2, "550.54", None), "bad", "torch is for CPUs"),
    "fewer GPUs than asked for": (judge_absent("cuda:3", 2, "", "12.8"), "bad", "another --device"),
    # 3D convolution
    "fp32 as fast as can be expected": (judge_fp32(fast(40e9), 50e9), "ok", ""),
    "fp32 rather slow": (judge_fp32(fast(9e9), 50e9), "note", "nothing else may run"),
    "fp32 broken": (judge_fp32(fast(2e9), 50e9), "bad", "reinstall torch"),
    "fp32 wrong": (judge_fp32(fast(40e9, error=0.02), 50e9), "bad", "train nothing here"),
    "fp32 no number": (judge_fp32(fast(40e9, error=math.nan), 50e9), "bad", "train nothing here"),
    "bf16 fast": (judge_half(took("bf16", 0.004), took("fp32", 0.01), (9, 0)), "ok", ""),
    "bf16 a little slow": (judge_half(took("bf16", 0.012), took("fp32", 0.01), (9, 0)), "note", "--precision fp32"),
    "bf16 as torch 2.9 has it": (judge_half(took("bf16", 0.04), took("fp32", 0.01), (9, 0)), "bad", "torch 2.10"),
    "fp16 as torch 2.9 has it": (judge_half(took("fp16", 0.04), took("fp32", 0.01), (9, 0)), "bad", "torch 2.10"),
    "bf16 on a GPU without": (judge_half(took("bf16", 0.04), took("fp32", 0.01), (7, 5)), "note", "--precision fp16"),
    "bf16 rounded": (judge_half(took("bf16", 0.004, 0.01), took("fp32", 0.01), (9, 0)), "ok", ""),
    "fp16 wrong": (judge_half(took("fp16", 0.004, 0.01), took("fp32", 0.01), (9, 0)), "bad", "train nothing here"),
    "fp16 after fp32 failed": (judge_half(took("fp16", 0.004), None, (9, 0)), "ok", ""),
    # limits
    "cores": (judge_cores(8, None), "ok", ""),
    "a container's cores": (judge_cores(64, 2.5), "note", "OMP_NUM_THREADS=2.*--workers 2"),
    "a container of all cores": (judge_cores(4, 4.0), "ok", ""),
    "memory": (judge_memory(int(16e9)), "ok", ""),
    "little memory": (judge_memory(int(3e9)), "note", "--workers 1"),
    "hardly any memory": (judge_memory(int(5e8)), "bad", "--mem"),
    "memory unknown": (judge_memory(None), "ok", ""),
    "shared memory": (judge_shared(int(8e9), int(8e9), gpu=True), "ok", ""),
    "shared memory as Docker gives it": (judge_shared(2**26, 2**26, gpu=True), "note", "--shm-size"),
    "shared memory all but full": (judge_shared(int(8e9), int(6e7), gpu=True), "bad", "--shm-size"),
    "shared memory without a GPU": (judge_shared(2**23, 2**23, gpu=False), "ok", ""),
    "open files": (judge_open_files(1024, 4096), "ok", ""),
    "few open files": (judge_open_files(256, 2048), "note", "ulimit -n 2048"),
    "few open files, and no leave for more": (judge_open_files(256, 256), "note", "administrator"),
    "open files without a limit": (judge_open_files(-1, -1), "ok", ""),
    "all of the work": (look_at_share({}), "ok", ""),
    "a share": (look_at_share({"RANK": "2", "WORLD_SIZE": "8"}), "ok", ""),
    # folders
    "room for a study": (judge_room("cache", "cache", "ext4", int(1e12), None), "ok", ""),
    "room for few scans": (judge_room("cache", "cache", "ext4", int(2e9), None), "note", "16.4 MB.*--cache"),
    "no room for scans": (judge_room("cache", "cache", "", int(5e8), None), "bad", "make room.*--cache"),
    "room, but not for files": (judge_room("cache", "cache", "", int(1e12), 500), "note", "two files"),
    "room for runs": (judge_room("outputs", "outputs", "", int(1e10), 10**6), "ok", ""),
    "room for a run": (judge_room("outputs", "outputs", "", int(3e9), None), "note", "--output-dir"),
    "no room for a run": (judge_room("outputs", "outputs", "", 0, None), "bad", "--output-dir"),
    "a fast disk": (judge_speed(Speed(300, 900, True, True)), "ok", ""),
    "a disk slow to write": (judge_speed(Speed(20, 900, True, True)), "note", "local"),
    "a disk slow to read": (judge_speed(Speed(300, 20, False, True)), "note", "local"),
    "a disk that forgets": (judge_speed(Speed(300, 900, True, False)), "bad", "not what was written"),
    "files as they should be": (judge_files("cache", True, True), "ok", ""),
    "files without locks": (judge_files("cache", True, False), "note", "two runs"),
    "files on a system without locks": (judge_files("cache", True, None), "ok", ""),
    "files not replaced whole": (judge_files("outputs", False, True), "bad", "--output-dir"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_look_gives_its_verdict_and_what_to_do(case: str):
    finding, verdict, advice = CASES[case]
    assert finding.verdict == verdict
    assert finding.found
    assert bool(finding.advice) == (verdict != "ok")
    assert re.search(advice, finding.advice), finding.advice


def test_what_was_found_is_told_in_the_units_people_use():
    assert "4000 scans of width 320 fit" in judge_room("cache", "cache", "nfs4", 4000 * SCAN, None).found
    assert SCAN == 160 * 320 * 320
    assert "reads 328 MB/s: 20 scans/s" in judge_speed(Speed(300, 327.68, True, True)).found
    assert "4 times as long as fp32" in judge_half(took("bf16", 0.04), took("fp32", 0.01), (9, 0)).found
    assert "2/8 of the work, says torchrun" in look_at_share({"RANK": "2", "WORLD_SIZE": "8"}).found
    found = judge_gpu(gpu(), ["NVIDIA L4"], "550.54", KERNELS).found
    assert found == (
        "0: NVIDIA H100 80GB HBM3, compute capability 9.0, 80 GB, 79 GB free, driver 550.54; 1 more: NVIDIA L4"
    )
    assert [size(n) for n in (12, 16384000, 999.6e6, 25.3e9, 3.2e12)] == [
        "12 bytes",
        "16.4 MB",
        "1000 MB",
        "25.3 GB",
        "3.2 TB",
    ]


def test_an_array_that_cannot_be_shared_is_bad():
    numbers = {"ID": "5", "MIN": "1", "MAX": "9", "COUNT": "4"}
    finding = look_at_share({f"SLURM_ARRAY_TASK_{name}": number for name, number in numbers.items()})
    assert (finding.verdict, "not evenly spaced" in finding.advice) == ("bad", True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that take no time."""
    monkeypatch.setattr(disk, "PROBE", 4 * disk.BLOCK)
    monkeypatch.setitem(convolution.SHAPES, "cpu", (4, 8, 8))
    monkeypatch.setitem(convolution.MATRICES, "cpu", 128)


# Versions


def test_requirements_are_read_as_packages_write_them():
    lines = ["torch>=2.10", "Pillow >=10.3", "typer", 'openpyxl>=3.1; extra == "excel"', "numpy!=2.0"]
    assert versions.requirements(lines) == {
        "torch": (">=", "2.10"),
        "pillow": (">=", "10.3"),
        "typer": ("", ""),
        "numpy": ("", ""),
    }
    assert versions.requirements(["torch==2.9.1"]) == {"torch": ("==", "2.9.1")}


@pytest.mark.parametrize(("told", "expected"), [(91002, "9.10.2"), (8902, "8.9.2"), (90100, "9.1.0"), (None, "none")])
def test_cudnn_is_told_as_people_say_it(told: int | None, expected: str):
    assert versions._cudnn(told) == expected


def test_a_broken_package_is_told_without_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "shattered.py").write_text("raise ImportError(\"no name 'x' in 'y' (/home/jane doe/lib/y.py)\")")
    monkeypatch.syspath_prepend(tmp_path)
    cause = versions.import_error("shattered")
    assert cause.startswith("no name 'x' in 'y'") and "/" not in cause
    assert versions.import_error("json") == ""


@pytest.mark.usefixtures("small")
def test_without_torch_the_rest_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place in (versions, whole):
        monkeypatch.setattr(place, "import_error", lambda package: "libcudnn.so.9" if package == "torch" else "")
    findings = {f.look: f for f in whole._looks(tmp_path / "cache", tmp_path / "outputs", "auto")}
    assert findings["torch"].verdict == "bad" and "cannot be imported: libcudnn.so.9" in findings["torch"].found
    assert "gpu" not in findings and "conv3d fp32" not in findings
    assert findings["cache speed"].found


# The device


def test_the_driver_is_read_where_nvidia_says_it(tmp_path: Path):
    told = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs-builder@U16)\nGCC 12.3.0"
    (tmp_path / "version").write_text(told)
    assert device.driver_version(tmp_path / "version") == "550.54.15"
    assert device.driver_version(tmp_path / "none") == ""


def test_a_device_that_is_not_there_is_bad_and_not_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (finding,) = device.look_at_device("cuda:7")
    assert (finding.look, finding.verdict) == ("gpu", "bad")
    assert device.find_device("cuda:7") is None
    assert device.find_device("cpu") == CPU


def test_the_gpu_that_is_meant_is_told_and_the_others_named(monkeypatch: pytest.MonkeyPatch):
    names = ["NVIDIA L4", "NVIDIA H100", "NVIDIA A40"]
    properties = namedtuple("properties", "name major minor")
    faked = {
        "is_available": lambda: True,
        "device_count": lambda: 3,
        "current_device": lambda: 0,
        "get_device_name": lambda number: names[number],
        "get_device_properties": lambda number: properties(names[number], 9, 0),
        "mem_get_info": lambda number: (60 * 10**9, 80 * 10**9),
        "get_arch_list": lambda: list(KERNELS),
    }
    for name, fake in faked.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    (first,), (second,) = device.look_at_device("auto"), device.look_at_device("cuda:1")
    assert first.found.startswith("0: NVIDIA L4,") and first.found.endswith("; 2 more: NVIDIA H100, NVIDIA A40")
    assert "1: NVIDIA H100, compute capability 9.0, 80 GB, 60 GB free" in second.found
    assert first.verdict == second.verdict == "ok"


# 3D convolution


def pieces(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """A convolution of torch's and its gradients, channels not as many as voxels along any axis."""
    generator = torch.Generator().manual_seed(3)
    x, gradient = (torch.randn((1, 6, 5, 7, 8), generator=generator, dtype=dtype) for _ in range(2))
    weights = torch.randn((6, 6, 3, 3, 3), generator=generator, dtype=dtype)
    x.requires_grad_(), weights.requires_grad_()
    answer = functional.conv3d(x, weights, padding=1)
    answer.backward(gradient)
    assert x.grad is not None and weights.grad is not None
    return [piece.detach() for piece in (x, weights, gradient, answer, x.grad, weights.grad)]


def test_samples_worked_out_one_by_one_equal_torchs_own_convolution():
    assert relative_error(*pieces()) < 1e-12
    assert 1e-9 < relative_error(*pieces(torch.float32)) < 1e-6


@pytest.mark.parametrize("place", [3, 4, 5], ids=["answer", "gradient of x", "gradient of the weights"])
@pytest.mark.parametrize("spoil", [lambda t: t * 1.05, lambda t: t.flip(-1), lambda t: t * math.nan])
def test_a_wrong_answer_or_gradient_is_noticed(place: int, spoil: Callable):
    spoilt = pieces()
    spoilt[place] = spoil(spoilt[place])
    assert not relative_error(*spoilt) < 0.04


# Where a CPU has no instructions for it, torch adds the 27 taps of the input's gradient up in bf16: √27 · 2⁻⁹ / √3 = .006.
BF16_ERROR = 5e-3 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 1e-2


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("fp32", 1e-8, 1e-5), ("bf16", 1e-4, BF16_ERROR), ("fp16", 1e-5, 2e-3)]
)
def test_the_error_of_each_precision_is_that_of_its_rounding(precision, least, most, monkeypatch):
    monkeypatch.setitem(convolution.SHAPES, "cpu", (4, 6, 8))
    monkeypatch.setattr(convolution, "REPEATS", 1)
    state = torch.get_rng_state()
    measured = measure(CPU, precision)
    assert least < measured.error < most
    assert measured.rate == pytest.approx(6 * 27 * 64**2 * 4 * 6 * 8 / measured.seconds)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("no kernel image")])
def test_a_convolution_that_fails_is_bad_and_the_next_is_looked_at(error, monkeypatch: pytest.MonkeyPatch):
    def failing(device: torch.device, precision: str) -> Measured:
        if precision == "fp32":
            raise error
        return took(precision, 0.01)

    monkeypatch.setattr(convolution, "measure", failing)
    monkeypatch.setattr(convolution, "matrix_rate", lambda device: 1e12)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    findings = list(convolution.look_at_convolution(torch.device("cuda")))
    assert [(f.look, f.verdict) for f in findings] == [
        ("conv3d fp32", "bad"),
        ("conv3d bf16", "ok"),
        ("conv3d fp16", "ok"),
    ]
    assert findings[0].found in ("the memory is full", "it failed: no kernel image")


# Limits


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/job", {"job/cpu.max": "max 100000", "cpu.max": "250000 100000"}, 2.5),
        ("0::/job/step", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "100000 100000"}, 1),
        ("4:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "100000"}, 1.5),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {}, None),
    ],
)
def test_the_cores_of_a_container_are_the_least_that_any_group_allows(tmp_path: Path, membership, files, expected):
    for name, content in {
        "proc/self/cgroup": membership,
        **{f"sys/fs/cgroup/{k}": v for k, v in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert limits.cpu_quota(tmp_path) == expected


def test_little_shared_memory_counts_where_a_gpu_trains(monkeypatch: pytest.MonkeyPatch):
    small = namedtuple("usage", "total used free")(10**7, 0, 10**7)
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda folder: small)
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no /dev/shm here")
    assert [f.verdict for f in limits.look_at_limits(gpu=True) if f.look == "/dev/shm"] == ["bad"]
    assert [f.verdict for f in limits.look_at_limits(gpu=False) if f.look == "/dev/shm"] == ["ok"]


# Folders


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.mark.usefixtures("small")
def test_folders_are_left_as_they_were_and_not_made(tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kept").write_text("kept")
    before = everything(tmp_path)
    cache, outputs = tmp_path / "cache", tmp_path / "new" / "deep" / "outputs"
    findings = [*disk.look_at_cache(cache), *disk.look_at_outputs(outputs)]
    assert everything(tmp_path) == before
    looks = ["cache folder", "cache speed", "cache files", "outputs folder", "outputs files"]
    assert [finding.look for finding in findings] == looks
    assert findings[2].found == findings[4].found == "are replaced whole and can be locked"


def test_an_interrupted_look_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), disk.probing(tmp_path / "a" / "b") as probe:
        (probe / "file").write_text("x")
        raise KeyboardInterrupt
    assert everything(tmp_path) == {}


def test_a_folder_that_somebody_fills_meanwhile_stays(tmp_path: Path):
    with disk.probing(tmp_path / "cache"):
        (tmp_path / "cache" / "entry").write_text("x")
    assert everything(tmp_path) == {"cache": b"", "cache/entry": b"x"}


def test_a_folder_that_cannot_be_written_is_bad(tmp_path: Path):
    (tmp_path / "file").touch()
    (finding,) = disk.look_at_cache(tmp_path / "file" / "cache")
    assert finding.verdict == "bad" and "cannot be written: Not a directory" in finding.found
    assert "--cache" in finding.advice


def test_a_disk_that_is_full_only_now_is_bad_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, write: Callable) -> Path:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise Cov3dError(f"cannot write {path}") from error

    monkeypatch.setattr(disk, "commit", full)
    findings = list(disk.look_at_cache(tmp_path / "cache"))
    assert findings[-1].verdict == "bad" and findings[-1].found.endswith("cannot be written: No space left on device")
    assert everything(tmp_path) == {}


@pytest.mark.usefixtures("small")
def test_a_disk_that_gives_back_other_bytes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert disk.measure_speed(tmp_path).equal
    monkeypatch.setattr(disk, "_fill", lambda file, block, begin: file.write(block[:-1] + bytes([block[-1] ^ 1])))
    assert not disk.measure_speed(tmp_path).equal


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_drive_without_locks_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    fcntl = pytest.importorskip("fcntl")
    assert disk.locks(tmp_path)

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert disk.locks(tmp_path) is False
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)  # a lock that keeps nobody out
    assert disk.locks(tmp_path) is False


# The whole


@pytest.mark.usefixtures("small")
def test_the_doctor_looks_at_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    report = cov3d.doctor("my cache", "my outputs", cov3d.Machine(device="cpu"))
    looks = [finding.look for finding in report.findings]
    assert looks[:5] == ["cov3d", "torch", "packages", "gpu", "conv3d fp32"]
    assert looks[-5:] == ["cache folder", "cache speed", "cache files", "outputs folder", "outputs files"]
    assert not {"cov3d", "torch", "packages"} & {finding.look for finding in report.of("bad")}
    assert everything(tmp_path) == {}
    told = report_text(report) + report_json(report)
    assert "my cache: " in told and "my outputs: " in told
    for secret in (str(tmp_path), str(Path.home()) + "/", sys.prefix, socket.gethostname()):
        assert secret not in told


def faked(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr(whole, "_looks", lambda cache, outputs, asked: iter(findings))


def test_what_is_bad_is_one_sentence_at_the_end_and_exit_1(monkeypatch: pytest.MonkeyPatch):
    bad = Finding("/dev/shm", "40 MB", "bad", "give it more")
    faked(monkeypatch, Finding("torch", "2.10"), bad, Finding("open files", "at most 256", "note", "ulimit"))
    run = CliRunner().invoke(app, ["doctor"])
    assert run.exit_code == 1
    assert run.stderr == "1 of 3 looks is bad: /dev/shm (40 MB)\n"
    assert run.stdout.splitlines()[2:] == [
        "ok    torch       2.10",
        "bad   /dev/shm    40 MB",
        "                  -> give it more",
        "note  open files  at most 256",
        "                  -> ulimit",
    ]
    assert run.stdout.startswith("3 looks: 1 bad, 1 note, ")


def test_notes_alone_are_exit_0_and_json_has_all(monkeypatch: pytest.MonkeyPatch):
    faked(monkeypatch, Finding("gpu", "none", "note", "x"))
    run = CliRunner().invoke(app, ["doctor", "--json"])
    assert (run.exit_code, run.stderr) == (0, "")
    told = json.loads(run.stdout)
    assert told["findings"] == [{"look": "gpu", "found": "none", "verdict": "note", "advice": "x"}]
    assert told["exit_code"] == 0


def test_a_device_of_no_kind_is_a_usage_error():
    assert CliRunner().invoke(app, ["doctor", "--device", "tpu"]).exit_code == 2
    with pytest.raises(SettingError, match="is not one of auto, cpu, cuda"):
        cov3d.doctor(machine=cov3d.Machine(device="tpu"))


def test_what_was_found_never_commands_a_terminal():
    report = Report((Finding("cache folder", "a\x1b[31m: 1 GB free"),), 0.1)
    assert "\x1b" not in report_text(report)
