"""Scores of answers against truth: macro F1, F1 of each class, accuracy, AUC, confusion, intervals, chance. On arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from cov3d.labels import PRESENCE, SEVERITY, UNKNOWN

RESAMPLES = 1000
CONFIDENCE = 0.95


def score_presence(truth: np.ndarray, covid: np.ndarray, threshold: float | np.ndarray = 0.5) -> dict[str, Any]:
    """Scores of presence: truth ``(N,)`` of 0, 1 or UNKNOWN (left out), probabilities ``(N,)``."""
    known = truth != UNKNOWN
    called = (covid >= threshold)[known].astype(int)
    scores = score(truth[known], called, PRESENCE)
    scores["log_loss"] = _log_loss(np.where(truth == 1, covid, 1 - covid)[known])
    if len(set(truth[known])) == 2:
        scores["auc"] = float(roc_auc_score(truth[known], covid[known]))
    return scores


def score_severity(truth: np.ndarray, severity: np.ndarray) -> dict[str, Any]:
    """Scores of severity: truth ``(N,)`` of 1…4 or UNKNOWN (left out), probabilities ``(N, 4)``.

    The AUC is the mean over all pairs of classes that occur (Hand and Till, 2001), of two the usual one.
    """
    known = truth != UNKNOWN
    graded, given = truth[known] - 1, severity[known]
    scores = score(graded, given.argmax(1), SEVERITY)
    scores["log_loss"] = _log_loss(given[np.arange(len(graded)), graded])
    if len(set(graded)) > 1:
        scores["auc"] = _pairwise_auc(graded, given)
    return scores


def _pairwise_auc(truth: np.ndarray, given: np.ndarray) -> float:
    """The mean AUC of pairs of classes, each from both sides: how well a class's probability tells it from the other."""
    found = []
    for one, other in permutations(sorted(set(truth.tolist())), 2):
        pair = (truth == one) | (truth == other)
        found.append(roc_auc_score(truth[pair] == one, given[pair, one]))
    return float(np.mean(found))


def score(truth: np.ndarray, answer: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of answers ``(N,)`` among ``classes``; None where a score is not defined.

    Macro F1 is scikit-learn's: the mean over the classes that occur in the truth or in the answers.
    """
    labels = list(range(len(classes)))
    if not len(truth):
        return {"n": 0, "macro_f1": None, "accuracy": None, "f1": {}, "classes": list(classes), "confusion": []}
    each = f1_score(truth, answer, labels=labels, average=None, zero_division=0)
    occurring = set(truth) | set(answer)
    return {
        "n": len(truth),
        "macro_f1": float(macro_f1(truth, answer)),
        "accuracy": float(accuracy_score(truth, answer)),
        "f1": {name: float(each[k]) if k in occurring else None for k, name in enumerate(classes)},
        "classes": list(classes),
        "confusion": confusion_matrix(truth, answer, labels=labels).tolist(),  # rows truth, columns answers
    }


def _log_loss(given: np.ndarray) -> float | None:
    """Mean negative logarithm of the probabilities that were given to the truth."""
    return float(-np.log(np.clip(given, 1e-7, 1)).mean()) if len(given) else None


def macro_f1(truth: np.ndarray, answer: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean F1 over the classes that occur, along ``axis`` of ``(..., N)``: as scikit-learn's, for thousands of draws at once."""
    total = occurring = np.float64(0)
    for k in np.union1d(truth, answer):
        right = ((truth == k) & (answer == k)).sum(axis)
        said = (truth == k).sum(axis) + (answer == k).sum(axis)
        total = total + 2 * right / np.maximum(said, 1)
        occurring = occurring + (said > 0)
    return total / occurring


def interval(truth: np.ndarray, answer: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of macro F1, by bootstrap over the scans of each class; None if a class has fewer than two.

    Drawn within classes: a draw that lost a small class would be scored over fewer classes, and too well.
    """
    if not len(truth) or min(np.unique(truth, return_counts=True)[1]) < 2:
        return None
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(truth == k) for k in np.unique(truth)]
    draws = np.concatenate([rng.choice(found, (RESAMPLES, len(found))) for found in members], axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(macro_f1(truth[draws], answer[draws]), [tail, 100 - tail])
    return float(low), float(high)


def chance(truth: np.ndarray, answer: np.ndarray, seed: int = 0) -> float:
    """Macro F1 of the same answers given to the wrong scans: the mean over shuffles."""
    shuffled = np.random.default_rng(seed).permuted(np.tile(answer, (RESAMPLES, 1)), axis=1)
    return float(macro_f1(truth[None], shuffled).mean())
