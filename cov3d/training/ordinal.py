"""What an answer over ordered classes costs: cross entropy, focal loss, or the earth mover's distance.

Each is a function of log-probabilities and targets, both ``(B, K)``, and gives one number for each scan, ``(B,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from cov3d.config import LossSettings

Cost = Callable[[Tensor, Tensor], Tensor]


def cost_of(settings: LossSettings, order: Sequence[int]) -> Cost:
    """The cost that ``--severity-loss`` names; ``order`` is in which order the columns stand from least to most severe."""
    if settings.severity_loss == "focal":
        return partial(focal, gamma=settings.gamma)
    return cross_entropy if settings.severity_loss == "ce" else partial(earth_movers, order=order)


def cross_entropy(log_q: Tensor, targets: Tensor) -> Tensor:
    """−Σ t log q."""
    return -(targets * log_q).sum(-1)


def focal(log_q: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """−Σ t (1−q)^γ log q: what is answered well already counts less (Lin et al., arXiv 1708.02002)."""
    return -(targets * (1 - log_q.exp()).clamp(min=0) ** gamma * log_q).sum(-1)


def earth_movers(log_q: Tensor, targets: Tensor, order: Sequence[int]) -> Tensor:
    """The squared earth mover's distance (Hou et al., arXiv 1611.05916): a class twice as far costs more than twice."""
    difference = (log_q.exp() - targets)[:, list(order)]
    return difference.cumsum(-1).square().sum(-1)
