"""Which network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from cov3d.config.fields import check_limits, option
from cov3d.errors import SettingError

Architecture = Literal[
    "resnet18", "mc3-18", "r2plus1d-18", "convnext-micro", "convnext-tiny", "convnext-small", "convnext-base"
]
Family = Literal["resnet", "convnext"]

LEAST_SIDE = 32  # voxels, of which a ConvNeXt's last stage makes one


class NetNumbers(NamedTuple):
    """The numbers of a network's settings."""

    base_width: int
    dropout: float
    penultimate: int
    drop_path: float


# As published: Turnbull (arXiv 2207.12218) for ResNets, Kienzle et al. (arXiv 2206.15073) for ConvNeXts.
PUBLISHED_NETS: dict[str, NetNumbers] = {
    **dict.fromkeys(("resnet18", "mc3-18", "r2plus1d-18"), NetNumbers(64, 0.5, 512, 0.0)),
    "convnext-micro": NetNumbers(64, 0.0, 512, 0.1),
    "convnext-tiny": NetNumbers(96, 0.0, 768, 0.1),
    "convnext-small": NetNumbers(96, 0.0, 768, 0.4),
    "convnext-base": NetNumbers(128, 0.0, 1024, 0.5),
}


@dataclass(frozen=True)
class NetSettings:
    """Which network."""

    architecture: Architecture = option(
        "resnet18", "The network: a 3D ResNet of torchvision's family, or a 3D ConvNeXt."
    )
    base_width: int | None = option(
        None, "Channels of the first stage; as published if not said; 8 to 16 train on a CPU.", min=2, max=256
    )
    pool: Literal["avg", "max"] = option("avg", "How features are pooled over the volume.")
    dropout: float | None = option(
        None,
        "Share of features dropped: .5 after each stage and in the head of a ResNet; 0, a ConvNeXt's head only.",
        min=0.0,
        max=0.95,
    )
    penultimate: int | None = option(None, "Features of the head's hidden layer; as published if not said.", min=1)
    drop_path: float | None = option(
        None, "Share of a ConvNeXt's deepest branches dropped in training; as published if not said.", min=0.0, max=0.95
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.drop_path and self.family != "convnext":
            raise SettingError(f"--drop-path is for ConvNeXts; --architecture {self.architecture} has none")

    @property
    def family(self) -> Family:
        """What kind of network it is."""
        return "convnext" if self.architecture.startswith("convnext") else "resnet"

    @property
    def numbers(self) -> NetNumbers:
        """Its numbers: those that were said, and the published ones for the others."""
        published = PUBLISHED_NETS[self.architecture]
        said = {name: getattr(self, name) for name in NetNumbers._fields if getattr(self, name) is not None}
        if "base_width" in said and self.penultimate is None and self.family == "convnext":
            said["penultimate"] = 8 * said["base_width"]  # its hidden layer is as wide as the last stage
        return published._replace(**said)
