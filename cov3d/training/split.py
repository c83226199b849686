"""Which scans train and which choose the epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np

from cov3d.config import RunSettings, Task, Training
from cov3d.console import few
from cov3d.errors import StudyError
from cov3d.labels import PRESENCE, SEVERITY, UNKNOWN
from cov3d.scans.study import TEST, VALIDATION, Row

DEFAULT_FRACTION = 0.2


@dataclass(frozen=True)
class Split:
    """Rows that train, and rows that choose the epoch."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows of both."""
        return (*self.train, *self.validation)

    def only(self, scans: Container[str]) -> Split:
        """The same without the rows whose scan is not among ``scans``."""
        kept = (tuple(row for row in part if row.scan in scans) for part in (self.train, self.validation))
        return Split(*kept)


def split_rows(rows: Sequence[Row], settings: Training) -> Split:
    """Training and validation rows with a known presence.

    The study's own validation scans, unless ``validation_fraction`` holds some of the training scans out instead: then
    the study's validation scans are seen by nobody, and scores on them are honest.
    """
    known = [row for row in rows if row.presence != UNKNOWN and row.split != TEST]
    check_patients([row for row in known if row.split != VALIDATION], [row for row in rows if row.split == TEST])
    return split_any(known, settings)


def split_any(rows: Sequence[Row], settings: Training, usual: float = DEFAULT_FRACTION) -> Split:
    """The same of rows whose presence need not be known; ``usual`` is held out where nothing else is said or there."""
    own = [row for row in rows if row.split == VALIDATION]
    train = [row for row in rows if row.split != VALIDATION]
    check_patients(train, own)
    fraction = settings.validation_fraction
    if fraction is None and own:
        return Split(tuple(train), tuple(own))
    return hold_out(train, usual if fraction is None else fraction, settings.seed)


def everything(rows: Sequence[Row]) -> Split:
    """Every scan with a known presence trains, but those kept for tests; nothing chooses."""
    known = tuple(row for row in rows if row.presence != UNKNOWN and row.split != TEST)
    check_patients(known, [row for row in rows if row.split == TEST])
    return Split(known, ())


def learnt_from(split: Split, settings: RunSettings) -> Split:
    """The same, its training rows only those from which the loss learns: graded ones, where presence counts nothing."""
    if settings.loss_kind == "joint" or settings.severity_factor < 1:
        return split
    return Split(tuple(row for row in split.train if row.severity != UNKNOWN), split.validation)


def hold_out(rows: Sequence[Row], fraction: float, seed: int) -> Split:
    """Split rows at random, each class by ``fraction``, no patient into both parts."""
    patients: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        patients[row.person].append(row)
    by_class: dict[tuple[int, int], list[str]] = defaultdict(list)
    for patient, scans in patients.items():
        by_class[max((row.presence, row.severity) for row in scans)].append(patient)
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    seen = taken = 0
    for klass in sorted(by_class):
        # What rounding leaves over goes on to the next class, so that small classes too add up to the fraction.
        seen += sum(len(patients[patient]) for patient in by_class[klass])
        for patient in rng.permutation(np.array(by_class[klass], dtype=object)):
            if taken + len(patients[patient]) / 2 <= fraction * seen:
                held.add(patient)
                taken += len(patients[patient])
    held_rows = {row.scan for patient in held for row in patients[patient]}
    return Split(tuple(r for r in rows if r.scan not in held_rows), tuple(r for r in rows if r.scan in held_rows))


def check_patients(train: Sequence[Row], others: Sequence[Row]) -> None:
    """Raise a StudyError if a patient's scans lie on both sides: a score on the others would be of memory."""
    shared = {row.patient for row in train if row.patient} & {row.patient for row in others}
    if shared:
        some = [row.scan for row in (*train, *others) if row.patient in sorted(shared)[:1]]
        raise StudyError(
            f"{len(shared)} patients have scans both in train and in validation or test ({few(some)}); move all of a "
            "patient's scans to one side"
        )


def check_trainable(split: Split, task: Task, choosing: bool = True) -> list[str]:
    """Warnings about labels that are few; ``choosing`` says whether validation scans choose the epoch.

    Raises:
        StudyError: labels without which the task cannot be learnt or its best epoch chosen, and what is missing.
    """
    problems: list[str] = []
    train, validation = split.train, split.validation
    presences = {row.presence for row in train}
    severities = {row.severity for row in train if row.severity != UNKNOWN}
    if not train:
        problems.append("no training scan has a known presence")
    elif task != "severity" and len(presences) < 2:
        missing = PRESENCE[1 - presences.pop()]
        problems.append(
            f"no training scan is {missing}, and presence is learnt from both; add some, or --task severity"
        )
    if task != "presence" and len(severities) < 2:
        problems.append(
            f"{len(severities)} of the four severities ({', '.join(SEVERITY)}) are annotated in the training scans, "
            "and at least two are needed; add a severity table, or --task presence"
        )
    if train and not validation and choosing:
        problems.append("no scan is left to choose the best epoch by; add scans or raise --validation-fraction")
    elif choosing and task != "presence" and validation and all(row.severity == UNKNOWN for row in validation):
        problems.append("no validation scan has a severity to choose the best epoch by; annotate some")
    if problems:
        raise StudyError("this study cannot be trained: " + "; ".join(problems))
    return _missing_classes(presences, severities, validation, task)


def _missing_classes(presences: set[int], severities: set[int], validation: Sequence[Row], task: Task) -> list[str]:
    warnings = []
    if task == "severity" and len(presences) < 2:
        warnings.append("all training scans are covid, so this model's answers about presence say nothing")
    absent = [name for k, name in enumerate(SEVERITY, 1) if k not in severities]
    if task != "presence" and absent:
        warnings.append(f"no training scan is {' or '.join(absent)}, so no scan will be called that")
    if validation and task != "severity" and len({row.presence for row in validation}) < 2:
        warnings.append("all validation scans are of one presence, so the best epoch says little")
    return warnings


def unused(
    rows: Sequence[Row],
    split: Split,
    lacking: str = "known presence",
    lacks: Callable[[Row], bool] = lambda row: row.presence == UNKNOWN,
) -> list[str]:
    """Why rows of a study are in neither part, in words, with counts; ``lacks`` says which have nothing to be learnt."""
    used = {row.scan for row in split.rows}
    left = [row for row in rows if row.scan not in used]
    known = [row for row in left if not lacks(row)]
    own_folds = any(row.fold is not None for row in split.rows)
    trainable = [row for row in known if row.split not in (TEST, VALIDATION)]
    unnumbered = sum(row.fold is None for row in trainable) if own_folds else 0
    reasons = {
        f"have no {lacking}": len(left) - len(known),
        "have no number of a fold": unnumbered,
        "have no severity, and nothing else is learnt": len(trainable) - unnumbered,
        "are kept for tests": sum(row.split == TEST for row in known),
        "are the study's own validation scans, and are left alone": sum(row.split == VALIDATION for row in known),
    }
    return [f"{count} scans {reason}" for reason, count in reasons.items() if count]
