"""Labels that can be told without looking at the picture: from sizes, spacing, and how the files were written.

Where that works, a network may learn the hospital or the export instead of the disease, and no score on this study shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

FOLDS = 5
FEWEST = 10  # scans of each class; in fewer nothing can be told from chance
SUSPECT = 0.8  # AUC
CHANCE = 0.005  # how rarely chance alone may give such an AUC
# Answers of five models vary more than those of one: by 1.5 to 2 times the variance that Mann and Whitney give, on random facts.
OVERDISPERSION = 2.0
ABSENT = -1.0  # of a fact that a scan's files do not have, such as JPEG's in NIfTI


@dataclass(frozen=True)
class Shortcut:
    """How well one label is told from file facts alone, by scans that were not learnt from.

    ``auc`` is of all facts together, ``fact_auc`` of ``fact``, which alone tells most. ``chance`` is how probable as high an
    AUC is where facts tell nothing.
    """

    label: str
    scans: int
    auc: float
    chance: float
    fact: str
    fact_auc: float

    @property
    def suspect(self) -> bool:
        """Whether that is well enough to warn."""
        return self.auc > SUSPECT and self.chance < CHANCE


def find_shortcut(
    label: str, facts: Sequence[Mapping[str, float]], truth: np.ndarray, patients: Sequence[str]
) -> Shortcut | None:
    """Learn a label, bool ``(N,)``, from the facts of scans, and see how well it is told of other patients' scans.

    None if a class has too few patients, or no fact differs from scan to scan.
    """
    names = sorted({name for one in facts for name in one})
    table = np.array([[one.get(name, ABSENT) for name in names] for one in facts], float).reshape(len(facts), -1)
    varying = [column for column in range(len(names)) if len(np.unique(table[:, column])) > 1]
    classes = [len({patient for patient, it in zip(patients, truth, strict=True) if it == k}) for k in (False, True)]
    if not varying or min(classes) < FEWEST:
        return None
    splits = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(table, truth, patients))
    leaf = max(2, len(truth) // 100)
    forest = RandomForestClassifier(100, min_samples_leaf=leaf, random_state=0)
    auc = _auc(forest, table[:, varying], truth, splits)
    tree = DecisionTreeClassifier(max_leaf_nodes=8, min_samples_leaf=leaf, random_state=0)
    alone = {column: _auc(tree, table[:, [column]], truth, splits) for column in varying}
    best = max(varying, key=lambda column: alone[column])
    return Shortcut(label, len(truth), auc, chance_of(auc, truth), names[best], alone[best])


def chance_of(auc: float, truth: np.ndarray) -> float:
    """How probable such an AUC or a higher one is by chance, by the normal distribution around .5.

    Its variance is Mann and Whitney's, (n₁ + n₀ + 1) / (12 n₁ n₀) for the classes' counts, times :data:`OVERDISPERSION`.
    """
    ones = int(truth.sum())
    zeros = len(truth) - ones
    variance = OVERDISPERSION * (ones + zeros + 1) / (12 * ones * zeros)
    return float(norm.sf((auc - 0.5) / np.sqrt(variance)))


def _auc(model, table: np.ndarray, truth: np.ndarray, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """AUC of answers that were each given by a model which had not seen the scan."""
    answers = np.zeros(len(truth))
    for train, others in splits:
        answers[others] = model.fit(table[train], truth[train]).predict_proba(table[others])[:, -1]
    return float(roc_auc_score(truth, answers))
