"""Scores of answers against truth: macro F1, F1 of each class, accuracy, AUC, confusion, intervals, chance. On arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from cov3d.labels import PRESENCE, SEVERITY, UNKNOWN

RESAMPLES = 1000
CONFIDENCE = 0.95


def score_presence(truth: np.ndarray, covid: np.ndarray, threshold: float | np.ndarray = 0.5) -> dict[str, Any]:
    """Scores of presence: truth ``(N,)`` of 0, 1 or UNKNOWN (left out), probabilities ``(N,)``."""
    known = truth != UNKNOWN
    called = (covid >= threshold)[known].astype(int)
    scores = score(truth[known], called, PRESENCE)
    if len(set(truth[known])) == 2:
        scores["auc"] = float(roc_auc_score(truth[known], covid[known]))
    return scores


def score_severity(truth: np.ndarray, severity: np.ndarray) -> dict[str, Any]:
    """Scores of severity: truth ``(N,)`` of 1…4 or UNKNOWN (left out), probabilities ``(N, 4)``."""
    known = truth != UNKNOWN
    return score(truth[known] - 1, severity[known].argmax(1), SEVERITY)


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
    """The 95 % interval of macro F1, by bootstrap over scans; None for fewer than two scans."""
    if len(truth) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a score that never varies has no interval, and scipy says so at length
        found = bootstrap(
            (truth, answer),
            macro_f1,
            paired=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)


def chance(truth: np.ndarray, answer: np.ndarray, seed: int = 0) -> float:
    """Macro F1 of the same answers given to the wrong scans: the mean over shuffles."""
    shuffled = np.random.default_rng(seed).permuted(np.tile(answer, (RESAMPLES, 1)), axis=1)
    return float(macro_f1(truth[None], shuffled).mean())
