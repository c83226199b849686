"""How a long training is kept."""

from __future__ import annotations

from dataclasses import dataclass

from cov3d.config.fields import check_limits, option


@dataclass(frozen=True)
class Saving:
    """How a long training is kept."""

    save_every: float = option(
        10.0, "Minutes after which all is saved that --resume needs, beside the end of each epoch.", min=0.0
    )
    max_hours: float | None = option(
        None, "Hours after which the training is saved and ends with exit code 75, as by a scheduler's signal.", min=0.0
    )

    def __post_init__(self) -> None:
        check_limits(self)
