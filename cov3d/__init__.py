"""cov3d: chest CT scans in, presence and severity of COVID-19 out.

Research software, not a medical device. What the command line does, a few lines of Python do::

    import cov3d

    study = cov3d.read_study("COV19-CT-DB")
    settings = cov3d.RunSettings(task="severity", preprocessing=cov3d.Preprocessing(width=320))
    run = cov3d.train(study, settings)
    predictions = cov3d.infer(["scans/"], models=[run.folder])

Names are imported when they are first used, so that ``import cov3d`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

ROOMS = {
    "Preprocessing": "cov3d.config",
    "NetSettings": "cov3d.config",
    "LossSettings": "cov3d.config",
    "Training": "cov3d.config",
    "Augmentation": "cov3d.config",
    "RunSettings": "cov3d.config",
    "Pretraining": "cov3d.config",
    "PictureSettings": "cov3d.config",
    "Inference": "cov3d.config",
    "Saving": "cov3d.config",
    "Machine": "cov3d.config",
    "Cov3dError": "cov3d.errors",
    "ModelError": "cov3d.errors",
    "SettingError": "cov3d.errors",
    "StudyError": "cov3d.errors",
    "ScanError": "cov3d.errors",
    "doctor": "cov3d.checkup.doctor",
    "read": "cov3d.scans.read",
    "read_study": "cov3d.scans.study",
    "preprocess": "cov3d.scans.preprocess",
    "fill_cache": "cov3d.scans.cache",
    "build": "cov3d.nets.build",
    "load_model": "cov3d.nets.model",
    "save_model": "cov3d.nets.model",
    "find_recipe": "cov3d.recipes",
    "pretrain": "cov3d.training.pretrain",
    "pretrain_pictures": "cov3d.training.pictures",
    "train": "cov3d.training.train",
    "cross_validate": "cov3d.training.cross_validate",
    "infer": "cov3d.results.infer",
    "evaluate": "cov3d.results.evaluate",
}

__all__ = ["ROOMS", *ROOMS]  # the names are resolved below


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("cov3d")
    if name in ROOMS:
        return getattr(import_module(ROOMS[name]), name)
    raise AttributeError(f"cov3d has no {name!r}; it has {', '.join(sorted(ROOMS))}")
