"""The losses over presence and severity: Cov3d's joint loss, and the balanced cross entropies of 3D ConvNeXt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cov3d.config import LossSettings, RunSettings
from cov3d.labels import SEVERITY, UNKNOWN, probabilities
from cov3d.scans.study import Row
from cov3d.training.ordinal import cost_of

# Groups of scans, as z1…z5 and then the positives that nobody graded (the superset of the four severities).
NON_COVID, SUPERSET, GROUPS = 4, 5, 6
CHAIN = [NON_COVID, 0, 1, 2, 3]  # from least to most severe


def loss_of(rows: Sequence[Row], settings: RunSettings) -> Loss:
    """The loss of a run, its weights counted from the training rows."""
    kind = JointLoss if settings.loss_kind == "joint" else BalancedCrossEntropy
    presence = np.array([row.presence for row in rows])
    severity = np.array([row.severity for row in rows])
    return kind(presence, severity, settings.severity_factor, settings.loss)


class Loss(nn.Module, ABC):
    """L = (1−λ)·L1 + λ·L2: of presence, and of severity.

    ``presence`` and ``severity`` ``(N,)`` are the training set's labels; all weights are counted from them, unless
    ``--class-weights none``. The means are plain means over the batch, (1/B)·Σ w·l: a quotient by the sum of the weights
    would cancel them whenever a batch holds one class.
    """

    def __init__(self, presence: np.ndarray, severity: np.ndarray, severity_factor: float, settings: LossSettings):
        super().__init__()
        self.severity_factor = severity_factor
        self.weighted = settings.class_weights == "inverse"

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of logits ``(B, 6)`` for labels ``(B, 2)`` = presence, severity; ``weight`` ``(B,)`` of each scan."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        presence, severity = labels[:, 0], labels[:, 1]
        losses = (1 - self.severity_factor) * self.presence_losses(logits[:, 0], presence)
        losses = losses + self.severity_factor * self.severity_losses(logits[:, 1:], presence, severity)
        return (losses if weight is None else losses * weight).mean()

    @abstractmethod
    def presence_losses(self, logit: Tensor, presence: Tensor) -> Tensor:
        """Of presence, for each scan ``(B,)``."""

    @abstractmethod
    def severity_losses(self, logits: Tensor, presence: Tensor, severity: Tensor) -> Tensor:
        """Of severity, for each scan ``(B,)``, from z1…z5 ``(B, 5)``."""

    def activation(self, logits: Tensor) -> Tensor:
        """Probabilities ``(B, 5)``: of COVID-19, and of the four severities if it is COVID-19."""
        covid, severity = probabilities(logits.float())
        return torch.cat([covid[:, None], severity], 1)

    def decodes(self, activated: Tensor) -> Tensor:
        """Answers ``(B, 2)`` from probabilities ``(B, 5)``: presence 0 or 1, severity 1…4."""
        return torch.stack([(activated[:, 0] >= 0.5).long(), activated[:, 1:].argmax(1) + 1], 1)


class JointLoss(Loss):
    """Smoothed binary cross entropy of presence, and cross entropy over the five ordered classes.

    Turnbull, arXiv 2207.12218, section 3.3, its equations 1 to 6. Weights average 1 over the training set. Superset scans
    count in every batch, by cross entropy whatever the others' cost: their class is a set.
    """

    positive_weight: Tensor
    group_weights: Tensor
    targets: Tensor

    def __init__(self, presence: np.ndarray, severity: np.ndarray, severity_factor: float, settings: LossSettings):
        super().__init__(presence, severity, severity_factor, settings)
        self.presence_smoothing, severity_smoothing = settings.smoothing("joint")
        positives, negatives = int((presence == 1).sum()), int((presence == 0).sum())
        weight = negatives / positives if positives and negatives and self.weighted else 1.0
        self.register_buffer("positive_weight", torch.tensor(weight))
        labels = torch.as_tensor(np.stack([presence, severity], 1))
        weights = group_weights(groups(labels[:, 0], labels[:, 1]))
        self.register_buffer("group_weights", weights if self.weighted else torch.ones(GROUPS))
        self.register_buffer("targets", neighbour_targets(severity_smoothing, CHAIN))
        self.cost = cost_of(settings, CHAIN)

    def presence_losses(self, logit: Tensor, presence: Tensor) -> Tensor:
        """Equation 2."""
        smooth = presence * (1 - 2 * self.presence_smoothing) + self.presence_smoothing
        return F.binary_cross_entropy_with_logits(
            logit, smooth.to(logit.dtype), pos_weight=self.positive_weight, reduction="none"
        )

    def severity_losses(self, logits: Tensor, presence: Tensor, severity: Tensor) -> Tensor:
        """Equations 4 and 5 with their class weights."""
        group = groups(presence, severity)
        log_q = logits.log_softmax(-1)
        annotated = self.cost(log_q, self.targets[group.clamp(max=NON_COVID)])
        superset = -log_q[:, : len(SEVERITY)].logsumexp(-1)
        return self.group_weights[group] * torch.where(group == SUPERSET, superset, annotated)


class BalancedCrossEntropy(Loss):
    """Cross entropy of presence over two classes, and of severity over four, on annotated scans only.

    Kienzle et al., arXiv 2206.15073: weights inverse to how often a class occurs, summing to the number of classes. A
    batch's scans without a severity cost nothing there; the others' weights make up for them, so that a batch's mean
    is, on average, that over annotated scans.
    """

    presence_weights: Tensor
    severity_weights: Tensor
    targets: Tensor

    def __init__(self, presence: np.ndarray, severity: np.ndarray, severity_factor: float, settings: LossSettings):
        super().__init__(presence, severity, severity_factor, settings)
        self.presence_smoothing, severity_smoothing = settings.smoothing("balanced-ce")
        annotated = severity[severity != UNKNOWN] - 1
        share = len(annotated) / len(severity)
        weights = balanced_weights(annotated, len(SEVERITY)) if self.weighted else torch.ones(len(SEVERITY))
        self.register_buffer("presence_weights", balanced_weights(presence, 2) if self.weighted else torch.ones(2))
        self.register_buffer("severity_weights", weights / share if share else weights)
        self.register_buffer("targets", neighbour_targets(severity_smoothing, range(len(SEVERITY))))
        self.cost = cost_of(settings, range(len(SEVERITY)))

    def presence_losses(self, logit: Tensor, presence: Tensor) -> Tensor:
        """The cross entropy over two classes whose logits differ by z0."""
        smooth = presence * (1 - 2 * self.presence_smoothing) + self.presence_smoothing
        losses = F.binary_cross_entropy_with_logits(logit, smooth.to(logit.dtype), reduction="none")
        return self.presence_weights[presence] * losses

    def severity_losses(self, logits: Tensor, presence: Tensor, severity: Tensor) -> Tensor:
        """Over z1…z4; z5, non-covid, is not learnt."""
        log_q = logits[:, : len(SEVERITY)].log_softmax(-1)
        klass = (severity - 1).clamp(min=0)
        losses = self.severity_weights[klass] * self.cost(log_q, self.targets[klass])
        return torch.where(severity == UNKNOWN, 0.0, losses)


def groups(presence: Tensor, severity: Tensor) -> Tensor:
    """Each scan's group ``(B,)``: 0…3 the severities, 4 non-covid, 5 positives without a severity."""
    graded = torch.where(severity == UNKNOWN, SUPERSET, severity - 1)
    return torch.where(presence == 0, NON_COVID, graded).long()


def group_weights(group: Tensor) -> Tensor:
    """Weights ``(6,)`` inverse to how often a group occurs, averaging 1 over the training set; 0 for absent groups.

    w_c = (N/G)/n_c with G the number of groups that occur; the paper's G is 6, where all do.
    """
    counts = torch.bincount(group, minlength=GROUPS).float()
    occurring = counts > 0
    share = len(group) / occurring.sum().clamp(min=1)
    return torch.where(occurring, share / counts.clamp(min=1), torch.zeros(()))


def balanced_weights(classes: np.ndarray, count: int) -> Tensor:
    """Weights ``(count,)`` inverse to how often a class occurs, summing to the number that occur; 0 for absent ones."""
    counts = np.bincount(classes, minlength=count)
    inverse = np.divide(1.0, counts, out=np.zeros(count), where=counts > 0)
    return torch.as_tensor(inverse * (counts > 0).sum() / max(inverse.sum(), 1e-12), dtype=torch.float32)


def neighbour_targets(smoothing: float, chain: Sequence[int]) -> Tensor:
    """Targets ``(K, K)``, a row a class, columns as the logits; ``chain`` is the classes from least to most severe.

    Each class gives e to its neighbours in the chain: half to each of two, all to an only one (Turnbull, equation 4).
    """
    targets = torch.zeros(len(chain), len(chain))
    for place, klass in enumerate(chain):
        neighbours = [chain[p] for p in (place - 1, place + 1) if 0 <= p < len(chain)]
        targets[klass, klass] = 1 - smoothing
        for neighbour in neighbours:
            targets[klass, neighbour] = smoothing / len(neighbours)
    return targets
