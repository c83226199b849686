"""How training scans are varied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from cov3d.config.fields import check_limits, option
from cov3d.config.net import Family
from cov3d.config.reading import Preprocessing
from cov3d.errors import SettingError


class AugmentationNumbers(NamedTuple):
    """What an augmentation does: a probability for each step, and how far the steps go."""

    random_crop: float = 0.0
    flip_depth: float = 0.0
    flip_height: float = 0.0
    flip_width: float = 0.0
    rotate: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    turn: float = 0.0
    elastic: float = 0.0
    rotate_degrees: float = 30.0
    elastic_voxels: float | None = None

    @property
    def chances(self) -> tuple[float, ...]:
        """The nine probabilities."""
        return self[:9]


# As published: Turnbull (arXiv 2207.12218) for ResNets, Kienzle et al. (arXiv 2206.15073) for ConvNeXts, whose quarter
# turns belong to some submissions only.
PUBLISHED_AUGMENTATION: dict[Family, AugmentationNumbers] = {
    "resnet": AugmentationNumbers(flip_width=0.5),
    "convnext": AugmentationNumbers(
        random_crop=0.5,
        flip_depth=0.25,
        flip_height=0.25,
        flip_width=0.25,
        rotate=0.2,
        blur=0.2,
        noise=0.2,
        elastic=0.5,
    ),
}


@dataclass(frozen=True)
class Augmentation:
    """How training scans are varied. A probability that is not said is the one published for the network's family."""

    random_crop: float | None = option(None, "Probability of a crop, with --crop-from.", min=0.0, max=1.0)
    flip_depth: float | None = option(None, "Probability of a flip head to feet.", min=0.0, max=1.0)
    flip_height: float | None = option(None, "Probability of a flip front to back.", min=0.0, max=1.0)
    flip_width: float | None = option(None, "Probability of a flip right to left.", min=0.0, max=1.0)
    rotate: float | None = option(None, "Probability of a rotation about the body's long axis.", min=0.0, max=1.0)
    blur: float | None = option(None, "Probability of a Gaussian blur of .6 to .8 voxels.", min=0.0, max=1.0)
    noise: float | None = option(None, "Probability of noise of .9 to 3 % of the grey scale.", min=0.0, max=1.0)
    turn: float | None = option(None, "Probability of quarter turns about each axis.", min=0.0, max=1.0)
    elastic: float | None = option(None, "Probability of an elastic deformation.", min=0.0, max=1.0)
    rotate_degrees: float | None = option(
        None, "Rotations go this far to either side; 30 if not said.", min=0.0, max=180.0
    )
    elastic_voxels: float | None = option(
        None,
        "Elastic deformations move voxels so far (rms); as published, .06 to .44 at width 224, if not said.",
        min=0.0,
        max=100.0,
    )
    crop_from: int | None = option(
        None, "Cache training scans at this width, and crop --width of it or shrink the whole.", min=16, max=2048
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.random_crop and self.crop_from is None:
            raise SettingError(
                f"--random-crop {self.random_crop:g} has nothing to crop from; say --crop-from, a width above --width"
            )

    def numbers(self, family: Family) -> AugmentationNumbers:
        """The numbers for a family of networks: those that were said, and the published ones for the others."""
        said = {name: getattr(self, name) for name in AugmentationNumbers._fields if getattr(self, name) is not None}
        if self.crop_from is None:
            said["random_crop"] = 0.0
        return PUBLISHED_AUGMENTATION[family]._replace(**said)

    def check_used(self, family: Family) -> None:
        """Raise a SettingError for how far a step goes that never happens, and that nobody said never does."""
        numbers = self.numbers(family)
        for step, amount in {
            "rotate": "rotate_degrees",
            "elastic": "elastic_voxels",
            "random_crop": "crop_from",
        }.items():
            if getattr(self, amount) is not None and getattr(self, step) is None and not getattr(numbers, step):
                wanted, said = f"--{step.replace('_', '-')}", f"--{amount.replace('_', '-')}"
                raise SettingError(
                    f"{said} says nothing where {wanted} is 0, as it is here; say {wanted} .5, or leave it out"
                )

    def to_cache(self, preprocessing: Preprocessing) -> Preprocessing:
        """How training scans are cached: at ``crop_from`` if there is one, depth in proportion.

        Raises:
            SettingError: ``crop_from`` is less than the network's width.
        """
        if self.crop_from is None:
            return preprocessing
        depth, _, width = preprocessing.shape
        if self.crop_from <= width:
            raise SettingError(
                f"--crop-from {self.crop_from} is not above --width {width}, which is cropped from it; "
                f"choose {round(width * 8 / 7)}, as published 256 for 224, or leave it"
            )
        return replace(preprocessing, width=self.crop_from, depth=round(depth * self.crop_from / width))
