"""Folds: the labelled scans dealt out so that each is scored once by a model that has not seen it.

A study whose table gives its scans the numbers of folds has dealt them itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from cov3d.console import few
from cov3d.errors import Cov3dError, StudyError
from cov3d.labels import PRESENCE, SEVERITY, UNKNOWN
from cov3d.scans.study import TRAIN, Row
from cov3d.tables import write_table
from cov3d.training.split import Split, check_patients

CLASSES = (PRESENCE[0], *SEVERITY, "covid, ungraded")


@dataclass(frozen=True)
class Folds:
    """Rows, and the fold that each is held out in."""

    rows: tuple[Row, ...]
    numbers: tuple[int, ...]
    count: int

    def split(self, fold: int) -> Split:
        """A fold's scans validate, all others train."""
        both = list(zip(self.rows, self.numbers, strict=True))
        return Split(
            tuple(row for row, number in both if number != fold), tuple(row for row, number in both if number == fold)
        )

    def table(self) -> list[dict[str, object]]:
        """How many scans of each class are held out in each fold."""
        counts = Counter((number, class_of(row)) for row, number in zip(self.rows, self.numbers, strict=True))
        return [
            {"fold": fold, **{name: counts[fold, name] for name in CLASSES}, "scans": self.numbers.count(fold)}
            for fold in range(self.count)
        ]

    def write(self, path: Path) -> Path:
        """Write which scan is held out in which fold."""
        cells = [
            {"scan": row.scan, "fold": number, "class": class_of(row)}
            for row, number in zip(self.rows, self.numbers, strict=True)
        ]
        return write_table(path, ("scan", "fold", "class"), cells)


def deal(rows: Sequence[Row], count: int, seed: int) -> Folds:
    """Deal the training rows with a known presence into ``count`` folds: each class evenly, no patient into two.

    Validation and test scans of the study stay unseen. Where the study's table has dealt its scans, so it stays.

    Raises:
        StudyError: a class has fewer scans, or its scans fewer patients, than there are folds; or a patient has scans both
            here and among those that stay unseen; or the table has dealt another number of folds, or a patient into two.
    """
    if any(row.fold is not None for row in rows):
        return dealt(rows, count)
    unseen = [row for row in rows if row.split not in (TRAIN, "")]
    rows = tuple(row for row in rows if row.presence != UNKNOWN and row.split in (TRAIN, ""))
    check_patients(rows, unseen)
    classes = np.array([class_of(row) for row in rows])
    patients = np.array([row.person for row in rows])
    for name in dict.fromkeys(classes.tolist()):
        groups = len(set(patients[classes == name]))
        if groups < count:
            raise StudyError(
                f"{groups} patients (or scans, where nobody says whose they are) are {name}, fewer than --folds {count}; "
                "lower it, or add such scans"
            )
    if len(set(classes.tolist())) < 2:
        raise StudyError("all labelled training scans are of one class, from which nothing can be learnt")
    numbers = np.empty(len(rows), int)
    shuffled = shuffle_groups(patients, seed)
    for fold, (_, held) in enumerate(StratifiedGroupKFold(count).split(classes, classes, shuffled)):
        numbers[held] = fold
    folds = Folds(rows, tuple(numbers.tolist()), count)
    _check_apart(folds, patients)
    return folds


def shuffle_groups(groups: np.ndarray, seed: int) -> np.ndarray:
    """Number groups ``(N,)`` in a random order, for a split that takes them in the order of their numbers.

    ``StratifiedGroupKFold(shuffle=True)`` does the same from scikit-learn 1.8 on; before, its folds were not stratified.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    return np.argsort(np.random.RandomState(seed).permutation(len(names)))[numbers]


def dealt(rows: Sequence[Row], count: int) -> Folds:
    """The folds of a study's own table: its labelled scans with a number, the least of which is fold 0.

    Raises:
        StudyError: they are not ``count``, or a patient is in two.
    """
    rows = tuple(row for row in rows if row.presence != UNKNOWN and row.fold is not None)
    found = sorted({row.fold for row in rows if row.fold is not None})
    if len(found) != count:
        raise StudyError(
            f"the study's table has {len(found)} folds ({few([str(number) for number in found])}) and --folds is {count}; say "
            f"--folds {len(found)}, or leave out the table's column to have them dealt"
        )
    numbers = tuple(found.index(row.fold) for row in rows if row.fold is not None)
    places: dict[str, set[int]] = defaultdict(set)
    for row, number in zip(rows, numbers, strict=True):
        places[row.person].add(number)
    if torn := [row.scan for row in rows if len(places[row.person]) > 1]:
        raise StudyError(
            f"the study's table has scans of one patient in different folds ({few(torn)}): scores would be of memory; "
            "give all of a patient's scans one number"
        )
    return Folds(rows, numbers, count)


def class_of(row: Row) -> str:
    """A row's class: non-covid, one of the severities, or covid that nobody graded."""
    if row.presence == 0:
        return CLASSES[0]
    return CLASSES[-1] if row.severity == UNKNOWN else SEVERITY[row.severity - 1]


def _check_apart(folds: Folds, patients: np.ndarray) -> None:
    """Raise a Cov3dError if a patient lies in two folds: scores would be of memory."""
    places = set(zip(patients.tolist(), folds.numbers, strict=True))
    if len(places) != len(set(patients.tolist())):
        raise Cov3dError("a patient was dealt into two folds; this is a fault of cov3d, please report it")
