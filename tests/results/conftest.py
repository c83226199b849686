"""What the tests of results share: a small model, a few scans, and tables without their seconds."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import smooth_volume, write_slices

from cov3d import Machine, NetSettings, Preprocessing, build, infer, save_model
from cov3d.config import to_dict
from cov3d.errors import ScanError
from cov3d.scans.frame import Frame
from cov3d.scans.tensors import Tensors, make_tensors

NET = NetSettings(base_width=4, penultimate=8)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A model file with random weights."""
    torch.manual_seed(0)
    return save_model(tmp_path / "net.safetensors", build(NET), NET, Preprocessing(width=32), "both", {})


@pytest.fixture
def five(tmp_path: Path) -> Path:
    """Five scans whose names do not sort as text does."""
    for k in (1, 2, 9, 10, 100):
        write_slices(tmp_path / "scans" / f"ct_{k}", smooth_volume(6, 32, seed=k))
    return tmp_path / "scans"


@pytest.fixture
def run(network: Path, five: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """``infer`` of the five scans by the model; scans are read in this process, since that is quicker."""
    monkeypatch.setattr(importlib.import_module("cov3d.results.infer"), "read_tensors", _read_here)

    def answer(output: Path, **options):
        options = {"scans": [five], "models": [network], "machine": Machine(workers=1, device="cpu"), **options}
        return infer(options.pop("scans"), options.pop("models"), output, **options)

    return answer


@pytest.fixture
def timeless() -> Callable[[Path], list[list[str]]]:
    """A function that reads a table, without its seconds."""

    def read(path: Path) -> list[list[str]]:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        seconds = rows[0].index("seconds")
        return [row[:seconds] + row[seconds + 1 :] for row in rows]

    return read


def _read_here(paths, wanted, reading, machine, frames=False):
    ways = {"reading": to_dict(reading), "settings": [to_dict(settings) for settings in wanted], "frames": frames}
    for index, path in enumerate(paths):
        try:
            answer, parts = make_tensors({"path": str(path), **ways})
        except ScanError as error:
            yield Tensors(index, (), (), 0.0, error.cause)
            continue
        shapes = [(1, *settings.shape) for settings in wanted]
        arrays = [np.frombuffer(bytearray(part), np.uint8).reshape(s) for part, s in zip(parts, shapes, strict=True)]
        lie = tuple(map(Frame.from_dict, answer["frames"]))
        yield Tensors(index, tuple(arrays), tuple(answer["warnings"]), answer["seconds"], "", lie)
