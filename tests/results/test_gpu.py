"""Answers and masks on a GPU are those on a CPU: on a real one, or on a pretended one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from pretended_gpu import REAL, any_gpu

from cov3d import Machine, NetSettings, Preprocessing, build, infer, save_model
from cov3d.phantom import write_study
from cov3d.predictions import Prediction


def test_an_ensemble_answers_and_draws_on_a_gpu_as_on_a_cpu(tmp_path: Path):
    scans = write_study(tmp_path / "study", scans=8, size=32, format="nifti") / "validation"
    torch.manual_seed(0)
    models = []
    for architecture, heads in (("resnet18", ("classes",)), ("convnext-micro", ("classes", "masks"))):
        net = NetSettings(architecture, base_width=4, penultimate=8)  # type: ignore[arg-type]
        preprocessing = Preprocessing(width=32, depth=32)
        file = tmp_path / f"{architecture}.safetensors"
        models.append(save_model(file, build(net, heads), net, preprocessing, "both", {}, heads))

    def answered(device: str) -> tuple[list[Prediction], list[np.ndarray]]:
        folder, machine = tmp_path / device, Machine(device=device, workers=1)
        rows = infer([scans], models, tmp_path / f"{device}.csv", machine=machine, masks=folder)
        masks = [np.asarray(nibabel.load(file).dataobj) for file in sorted(folder.iterdir())]  # type: ignore[attr-defined]
        return [replace(row, seconds=None) for row in rows], masks

    with any_gpu():
        there = answered("cuda")
    here = answered("cpu")
    for one, other in zip(there[0], here[0], strict=True):
        assert not one.error and one.covid == pytest.approx(other.covid, abs=1e-2 if REAL else 0)
        assert one.severity == pytest.approx(other.severity, abs=1e-2 if REAL else 0)
    for one, other in zip(there[1], here[1], strict=True):
        assert (one != other).mean() <= (1e-2 if REAL else 0)
