"""Pseudo-labels: lesion masks that a teacher draws, put into the cache beside the scans.

Kienzle et al. (arXiv 2206.15073) call it segmia. Their code let the teacher see each scan randomly augmented and kept its mask
for the scan as it is, so that most masks lay beside their lesions; here it sees what it draws on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from cov3d.config import Machine, Preprocessing, Pretraining, Reading
from cov3d.console import plural, progress, say
from cov3d.errors import Cov3dError, ModelError
from cov3d.nets.build import MASKS
from cov3d.nets.inputs import as_input, memory_advice
from cov3d.nets.model import Model, load_model
from cov3d.runs import KEPT
from cov3d.scans.cache import Cache, pseudo_cache
from cov3d.scans.resample import resample
from cov3d.scans.study import Row
from cov3d.scans.tensors import read_tensors

WHITE = 255


def load_teacher(named: str, device: torch.device) -> Model:
    """The model that draws masks: a file, or the one that is kept in a run's folder.

    Raises:
        ModelError: it is not there, cannot be read, or draws no masks.
    """
    path = Path(named)
    if path.is_dir():
        kept = [path / name for name in reversed(KEPT) if (path / name).is_file()]
        if not kept:
            raise ModelError(
                f"{path}: holds no {' or '.join(reversed(KEPT))}; name a run of cov3d pretrain, or a model file"
            )
        path = kept[0]
    model = load_model(path, device)
    if MASKS not in model.heads:
        raise ModelError(f"{path} draws no masks; a teacher comes from cov3d pretrain --method segmentation")
    return model


def pseudo_masks(
    rows: Sequence[Row],
    volumes: Cache,
    preprocessing: Preprocessing,
    teacher: Model,
    how: Pretraining,
    reading: Reading,
    machine: Machine,
) -> Cache:
    """Masks of the scans in ``volumes``, drawn on each as it is by ``teacher``; those that are there already stay.

    ``preprocessing`` is that of ``volumes``. A teacher that wants scans otherwise sees them as it wants, and its masks are
    brought into the others' geometry.
    """
    rows = [row for row in rows if row.scan in volumes.entries]
    answer = "soft" if how.soft else f"above {how.threshold}"
    cache = pseudo_cache(rows, preprocessing, volumes.folder.parent, reading, f"teacher {teacher.sha256} {answer}")
    missing = [row for row in rows if row.scan not in cache.entries]
    if teacher.preprocessing == preprocessing:
        drawn = _on_cached(missing, volumes, teacher)
    else:
        say(
            f"note: the teacher sees scans as it learnt to ({_in_words(teacher.preprocessing)}); its masks are resampled"
        )
        drawn = _on_read(missing, teacher, preprocessing, reading, machine)
    with memory_advice("--width, or choose a smaller teacher"), progress(len(missing), "draw masks") as step:
        for row, probability in drawn:
            cache.keep(row.scan, _mask(probability, how), volumes.entries[row.scan])
            step(row.scan)
    lost = [row for row in rows if row.scan not in cache.entries]
    if lost:
        raise Cov3dError(
            f"{plural(len(lost), 'scan')} could not be read again for the teacher, as {lost[0].scan}; run again"
        )
    return cache


def _on_cached(rows: Sequence[Row], volumes: Cache, teacher: Model) -> Iterator[tuple[Row, np.ndarray]]:
    for row in rows:
        yield row, draw(teacher, volumes.load(row.scan))


def _on_read(
    rows: Sequence[Row], teacher: Model, preprocessing: Preprocessing, reading: Reading, machine: Machine
) -> Iterator[tuple[Row, np.ndarray]]:
    """As the teacher wants the scans, and from there to the geometry of the network's."""
    wanted = (teacher.preprocessing, preprocessing)
    paths = [row.path for row in rows]
    for tensors in read_tensors(paths, wanted, reading, machine, frames=True):
        if tensors.error:
            say(f"note: {rows[tensors.index].scan}: {tensors.error}")
            continue
        seen, asked = tensors.frames
        probability = draw(teacher, torch.from_numpy(tensors.arrays[0]))
        yield rows[tensors.index], resample(probability, seen, asked, preprocessing.shape)


@torch.inference_mode()
def draw(teacher: Model, scan: torch.Tensor) -> np.ndarray:
    """How likely each voxel of a scan uint8 ``(1, D, H, W)`` is lesion: float32 ``(D, H, W)``."""
    device = next(teacher.net.parameters()).device
    return teacher.masks(as_input(scan[None].to(device)))[0, 0].float().sigmoid().cpu().numpy()


def _in_words(preprocessing: Preprocessing) -> str:
    depth, height, width = preprocessing.shape
    window = f"{preprocessing.window_low:g}…{preprocessing.window_high:g} HU"
    return f"{depth}×{height}×{width}, {window}, crop {preprocessing.crop}"


def _mask(probability: np.ndarray, how: Pretraining) -> np.ndarray:
    """Probabilities ``(D, H, W)`` as they are kept: uint8 ``(1, D, H, W)``."""
    likely = probability if how.soft else probability > how.threshold
    return np.rint(likely * np.float32(WHITE)).astype(np.uint8)[None]
