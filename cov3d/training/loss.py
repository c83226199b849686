"""The joint loss over presence and severity (Turnbull, arXiv 2207.12218, section 3.3, its equations 1 to 6)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cov3d.labels import SEVERITY, UNKNOWN, probabilities

# Groups of scans, as z1…z5 and then the positives that nobody graded (the superset of the four severities).
NON_COVID, SUPERSET, GROUPS = 4, 5, 6


class JointLoss(nn.Module):
    """L = (1−λ)·L1 + λ·L2: smoothed binary cross entropy of presence, and cross entropy over the five ordered classes.

    ``presence`` and ``severity`` ``(N,)`` are the training set's labels; all weights are counted from them. The means
    are plain means over the batch, (1/B)·Σ w·l: the weights average 1 over the training set, and a quotient by their
    sum would cancel them whenever a batch holds one class. Superset scans count in every batch.
    """

    positive_weight: Tensor
    group_weights: Tensor
    targets: Tensor

    def __init__(
        self,
        presence: np.ndarray,
        severity: np.ndarray,
        severity_factor: float,
        presence_smoothing: float = 0.0,
        severity_smoothing: float = 0.0,
    ):
        super().__init__()
        self.severity_factor = severity_factor
        self.presence_smoothing = presence_smoothing
        positives, negatives = int((presence == 1).sum()), int((presence == 0).sum())
        weight = negatives / positives if positives and negatives else 1.0
        self.register_buffer("positive_weight", torch.tensor(weight))
        labels = torch.as_tensor(np.stack([presence, severity], 1))
        self.register_buffer("group_weights", group_weights(groups(labels[:, 0], labels[:, 1])))
        self.register_buffer("targets", neighbour_targets(severity_smoothing))

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of logits ``(B, 6)`` for labels ``(B, 2)`` = presence, severity; ``weight`` ``(B,)`` of each scan."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        presence, severity = labels[:, 0], labels[:, 1]
        losses = (1 - self.severity_factor) * self.presence_losses(logits[:, 0], presence)
        losses = losses + self.severity_factor * self.severity_losses(logits[:, 1:], groups(presence, severity))
        return (losses if weight is None else losses * weight).mean()

    def presence_losses(self, logit: Tensor, presence: Tensor) -> Tensor:
        """Equation 2, for each scan ``(B,)``."""
        smooth = presence * (1 - 2 * self.presence_smoothing) + self.presence_smoothing
        return F.binary_cross_entropy_with_logits(
            logit, smooth.to(logit.dtype), pos_weight=self.positive_weight, reduction="none"
        )

    def severity_losses(self, logits: Tensor, group: Tensor) -> Tensor:
        """Equations 4 and 5 with their class weights, for each scan ``(B,)``, from z1…z5 ``(B, 5)``."""
        log_q = logits.log_softmax(-1)
        annotated = -(self.targets[group.clamp(max=NON_COVID)] * log_q).sum(-1)
        superset = -log_q[:, : len(SEVERITY)].logsumexp(-1)
        return self.group_weights[group] * torch.where(group == SUPERSET, superset, annotated)

    def activation(self, logits: Tensor) -> Tensor:
        """Probabilities ``(B, 5)``: of COVID-19, and of the four severities if it is COVID-19."""
        covid, severity = probabilities(logits.float())
        return torch.cat([covid[:, None], severity], 1)

    def decodes(self, activated: Tensor) -> Tensor:
        """Answers ``(B, 2)`` from probabilities ``(B, 5)``: presence 0 or 1, severity 1…4."""
        return torch.stack([(activated[:, 0] >= 0.5).long(), activated[:, 1:].argmax(1) + 1], 1)


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


def neighbour_targets(smoothing: float) -> Tensor:
    """Targets ``(5, 5)``, a row a class, columns as z1…z5.

    Each class gives e to its neighbours in the chain non-covid – mild – moderate – severe – critical: half to each of
    two, all to an only one (equation 4).
    """
    chain = [NON_COVID, 0, 1, 2, 3]
    targets = torch.zeros(5, 5)
    for place, klass in enumerate(chain):
        neighbours = [chain[p] for p in (place - 1, place + 1) if 0 <= p < len(chain)]
        targets[klass, klass] = 1 - smoothing
        for neighbour in neighbours:
            targets[klass, neighbour] = smoothing / len(neighbours)
    return targets
