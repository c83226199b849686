"""Every setting: its name, type, default, help and limits, and the combinations that cannot be.

A group of settings is a frozen dataclass. :mod:`cov3d.options` turns its fields into command-line options; the whole
group travels down to the functions it steers, into the run's ``config.json`` and into the model file.
"""

from cov3d.config.augmentation import PUBLISHED_AUGMENTATION, Augmentation, AugmentationNumbers
from cov3d.config.fields import UID, from_dict, from_options, hide_uid, recorded, to_dict
from cov3d.config.loss import LossKind, LossSettings
from cov3d.config.machine import Inference, Machine, Messages
from cov3d.config.net import LEAST_SIDE, PUBLISHED_NETS, Architecture, Family, NetNumbers, NetSettings
from cov3d.config.pictures import PictureSettings
from cov3d.config.pretraining import Method, Pretraining, check_said, parse_labels
from cov3d.config.reading import Preprocessing, Reading
from cov3d.config.run import RunSettings, check_task
from cov3d.config.saving import Saving
from cov3d.config.training import Training
from cov3d.labels import Task

__all__ = [
    "LEAST_SIDE",
    "PUBLISHED_AUGMENTATION",
    "PUBLISHED_NETS",
    "UID",
    "Architecture",
    "Augmentation",
    "AugmentationNumbers",
    "Family",
    "Inference",
    "LossKind",
    "LossSettings",
    "Machine",
    "Messages",
    "Method",
    "NetNumbers",
    "NetSettings",
    "PictureSettings",
    "Preprocessing",
    "Pretraining",
    "Reading",
    "RunSettings",
    "Saving",
    "Task",
    "Training",
    "check_said",
    "check_task",
    "from_dict",
    "from_options",
    "hide_uid",
    "parse_labels",
    "recorded",
    "to_dict",
]
