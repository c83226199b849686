"""Folds: every class dealt evenly, no patient in two, every scan held out once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cov3d.errors import StudyError
from cov3d.labels import UNKNOWN
from cov3d.scans.study import Row
from cov3d.training.folds import CLASSES, class_of, deal


def rows(count: int = 120, patients: int = 0) -> list[Row]:
    """Half negatives, a tenth of each severity, a tenth positives that nobody graded."""
    severities = [UNKNOWN] * 5 + [1, 2, 3, 4, UNKNOWN]
    return [
        Row(
            f"scan_{k}",
            Path(f"scan_{k}"),
            presence=int(k % 10 >= 5),
            severity=severities[k % 10],
            patient=str(k % patients) if patients else "",
        )
        for k in range(count)
    ]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_class_is_dealt_evenly_negatives_and_ungraded_ones_too(count: int):
    folds = deal(rows(), count, seed=0)
    for fold in range(count):
        held = Counter(class_of(row) for row in folds.split(fold).validation)
        assert set(held) == set(CLASSES)
        for name, number in held.items():
            whole = sum(class_of(row) == name for row in rows())
            assert abs(number - whole / count) < 1
    assert sum(line["scans"] for line in folds.table()) == 120


def test_every_scan_is_held_out_once_and_trains_in_all_other_folds():
    folds = deal(rows(), 5, seed=0)
    held = [row.scan for fold in range(5) for row in folds.split(fold).validation]
    assert sorted(held) == sorted(row.scan for row in rows())
    for fold in range(5):
        split = folds.split(fold)
        assert {row.scan for row in split.train}.isdisjoint(row.scan for row in split.validation)
        assert len(split.rows) == 120


def test_a_patients_scans_stay_together():
    folds = deal(rows(200, patients=70), 5, seed=1)
    places: dict[str, set[int]] = {}
    for row, number in zip(folds.rows, folds.numbers, strict=True):
        places.setdefault(row.patient, set()).add(number)
    assert all(len(numbers) == 1 for numbers in places.values())


def test_the_seed_deals_and_the_same_one_deals_the_same():
    assert deal(rows(), 5, 0).numbers == deal(rows(), 5, 0).numbers != deal(rows(), 5, 1).numbers


def test_the_studys_validation_and_test_scans_and_unlabelled_ones_stay_unseen():
    unseen = [
        Row("v", Path("v"), presence=1, split="validation"),
        Row("t", Path("t"), presence=0, split="test"),
        Row("u", Path("u")),
    ]
    assert {row.scan for row in deal([*rows(), *unseen], 5, 0).rows} == {row.scan for row in rows()}


def test_fewer_scans_of_a_class_than_folds_are_refused_by_name():
    few = [row for row in rows() if row.severity != 4 or row.scan in ("scan_8", "scan_18")]
    with pytest.raises(StudyError, match=r"^2 patients .* are critical, fewer than --folds 5; lower it"):
        deal(few, 5, 0)


def test_scans_of_one_patient_count_as_one():
    one = [Row(f"x{k}", Path(f"x{k}"), presence=1, severity=4, patient="7") for k in range(9)]
    with pytest.raises(StudyError, match=r"^1 patients .* are critical"):
        deal([*(row for row in rows() if row.severity != 4), *one], 3, 0)


def test_the_table_is_written_with_a_line_a_scan(tmp_path: Path):
    lines = deal(rows(), 5, 0).write(tmp_path / "folds.csv").read_text().splitlines()
    assert lines[0] == "scan,fold,class" and len(lines) == 121


def test_a_studys_own_folds_stay_as_its_table_says():
    own = [replace(row, fold=k % 3, split="validation" if k % 3 == 0 else "train") for k, row in enumerate(rows())]
    folds = deal([*own, Row("without a number", Path("x"), presence=1)], 3, seed=0)
    assert folds.rows == tuple(own) and folds.numbers == tuple(k % 3 for k in range(120))


def test_another_number_of_folds_than_the_tables_is_refused_with_its_number():
    own = [replace(row, fold=k % 3) for k, row in enumerate(rows())]
    with pytest.raises(StudyError, match=r"the study's table has 3 folds \(0, 1, 2\) and --folds is 5; say --folds 3"):
        deal(own, 5, seed=0)


def test_a_patient_in_two_of_the_tables_folds_is_refused():
    own = [replace(row, fold=k % 3) for k, row in enumerate(rows(patients=7))]
    with pytest.raises(StudyError, match=r"one patient in different folds \(scan_0"):
        deal(own, 3, seed=0)


def test_folds_may_be_numbered_from_one():
    own = [replace(row, fold=1 + k % 3) for k, row in enumerate(rows())]
    assert deal(own, 3, seed=0).numbers == tuple(k % 3 for k in range(120))
