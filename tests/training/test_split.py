"""Which scans train and which choose the epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cov3d.config import LossSettings, RunSettings, Training
from cov3d.errors import StudyError
from cov3d.labels import UNKNOWN
from cov3d.scans.study import Row
from cov3d.training.split import Split, check_trainable, hold_out, learnt_from, split_rows, unused


def rows(count: int = 100, split: str = "", patients: int = 0) -> list[Row]:
    """Half negatives, a tenth of each severity, a tenth positives that nobody graded."""
    severities = [UNKNOWN] * 5 + [1, 2, 3, 4, UNKNOWN]
    return [
        Row(
            f"{split}scan_{k}",
            Path(f"scan_{k}"),
            presence=int(k % 10 >= 5),
            severity=severities[k % 10],
            split=split,
            patient=str(k % patients) if patients else "",
        )
        for k in range(count)
    ]


def classes(part) -> Counter:
    return Counter((row.presence, row.severity) for row in part)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3])
def test_holding_out_takes_the_fraction_of_every_class(fraction: float):
    split = hold_out(rows(), fraction, seed=0)
    assert classes(split.validation) == {k: round(fraction * n) for k, n in classes(rows()).items()}
    assert {r.scan for r in split.train} | {r.scan for r in split.validation} == {r.scan for r in rows()}
    assert not {r.scan for r in split.train} & {r.scan for r in split.validation}


def test_no_patient_lies_on_both_sides():
    split = hold_out(rows(patients=30), 0.25, seed=3)
    assert not {r.patient for r in split.train} & {r.patient for r in split.validation}
    assert 15 <= len(split.validation) <= 35


@pytest.mark.parametrize("fraction", [0.2, 0.3, 0.5])
def test_small_classes_and_large_patients_add_up_to_the_fraction(fraction: float):
    small = [Row(f"s{k}", Path("s"), presence=int(k >= 2), severity=[UNKNOWN, 1, 2, 3][k // 2]) for k in range(8)]
    assert abs(len(hold_out(small, fraction, 0).validation) - 8 * fraction) <= 0.5
    patients = [Row(f"s{k}", Path("s"), presence=k % 2, patient=str(k // 2 if k < 20 else 99)) for k in range(30)]
    for seed in range(5):
        assert abs(len(hold_out(patients, fraction, seed).validation) - 30 * fraction) <= 5


def test_the_seed_decides():
    assert hold_out(rows(), 0.2, 1) == hold_out(rows(), 0.2, 1)
    assert hold_out(rows(), 0.2, 1) != hold_out(rows(), 0.2, 2)


def test_the_studys_own_validation_scans_are_used_unless_a_fraction_is_asked_for():
    both = [*rows(40, "train"), *rows(20, "validation"), *rows(5, "test")]
    own = split_rows(both, Training())
    assert (len(own.train), len(own.validation)) == (40, 20)
    inner = split_rows(both, Training(validation_fraction=0.25))
    assert {r.split for r in inner.rows} == {"train"}
    assert unused(both, inner) == [
        "5 scans are kept for tests",
        "20 scans are the study's own validation scans, and are left alone",
    ]


def test_a_study_without_validation_scans_holds_a_fifth_out():
    assert len(split_rows(rows(50, "train"), Training()).validation) == 10


def test_a_patient_in_train_and_validation_is_an_error():
    both = [*rows(40, "train", patients=7), *rows(20, "validation", patients=9)]
    for settings in (Training(), Training(validation_fraction=0.2)):  # a patient in the untouched part counts too
        with pytest.raises(StudyError, match="7 patients have scans both in train and in validation"):
            split_rows(both, settings)


def test_one_presence_only_says_what_is_missing():
    negatives = [row for row in rows() if not row.presence]
    split = Split(tuple(negatives[:40]), tuple(negatives[40:]))
    with pytest.raises(StudyError, match="no training scan is covid"):
        check_trainable(split, "presence")
    with pytest.raises(StudyError, match="0 of the four severities"):
        check_trainable(split, "severity")


def test_positives_only_train_severity_with_a_warning_about_presence():
    positives = [row for row in rows() if row.presence]
    split = Split(tuple(positives[:40]), tuple(positives[40:]))
    assert "answers about presence say nothing" in check_trainable(split, "severity")[0]
    with pytest.raises(StudyError, match="no training scan is non-covid"):
        check_trainable(split, "both")


def test_a_severity_that_nobody_has_is_said():
    few = tuple(row for row in rows() if row.severity in (1, 2, UNKNOWN))
    assert "no training scan is severe or critical" in check_trainable(Split(few, few), "both")[0]


def test_validation_without_severities_cannot_choose_for_severity():
    plain = tuple(row for row in rows() if row.severity == UNKNOWN)
    with pytest.raises(StudyError, match="no validation scan has a severity"):
        check_trainable(Split(tuple(rows()), plain), "severity")


def test_where_presence_counts_nothing_only_graded_scans_train():
    split = Split(tuple(rows()), tuple(rows()))
    settings = RunSettings(task="severity", loss=LossSettings(loss="balanced-ce", severity_factor=1.0))
    learnt = learnt_from(split, settings)
    assert {row.severity for row in learnt.train} == {row.severity for row in rows()} - {UNKNOWN}
    assert learnt.validation == split.validation
    left = sum(row.severity == UNKNOWN for row in rows())
    ungraded = Split(learnt.train, ())
    assert unused(rows(), ungraded) == [f"{left} scans have no severity, and nothing else is learnt"]
    assert learnt_from(split, RunSettings(loss=LossSettings(loss="balanced-ce"))) == split
