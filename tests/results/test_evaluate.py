"""Evaluation: scores against scikit-learn and hand-worked values, and honesty about what was not answered."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from conftest import make_study, smooth_volume
from sklearn.metrics import f1_score

from cov3d import Machine, NetSettings, Preprocessing, build, evaluate, infer, read_study, save_model
from cov3d.config import Reading
from cov3d.errors import Cov3dError, StudyError
from cov3d.forms import write_dicom
from cov3d.predictions import Prediction, read_predictions, write_predictions
from cov3d.results.evaluate import match_rows, report
from cov3d.scans.series import every_series

GRADES = {1: (0.7, 0.1, 0.1, 0.1), 2: (0.1, 0.7, 0.1, 0.1), 3: (0.1, 0.1, 0.7, 0.1), 4: (0.1, 0.1, 0.1, 0.7)}


@pytest.fixture
def rows(study: Path):
    return [row for row in read_study(study).rows if row.split == "validation"]


def predict(row, covid: float, severity: int = 1, **values) -> Prediction:
    return Prediction(row.scan, row.path.as_posix(), covid, GRADES[severity], models=1, views=2, **values)


def test_scores_are_scikit_learns(study: Path, rows, tmp_path: Path):
    covid = [0.9, 0.8, 0.3, 0.6, 0.2, 0.7, 0.1, 0.4]
    table = write_predictions(
        tmp_path / "p.csv", [predict(r, p, 1 + k % 2) for k, (r, p) in enumerate(zip(rows, covid, strict=True))]
    )
    result = evaluate(table, read_study(study))
    truth, called = [r.presence for r in rows], [int(p >= 0.5) for p in covid]
    assert result["presence"]["macro_f1"] == pytest.approx(f1_score(truth, called, average="macro"))
    assert result["presence"]["confusion"] == [[3, 1], [1, 3]]
    assert result["presence"]["n"] == 8
    graded = [(r.severity, 1 + k % 2) for k, r in enumerate(rows) if r.severity > 0]
    expected = f1_score(*zip(*graded, strict=True), average="macro", zero_division=0)
    assert result["severity"]["macro_f1"] == pytest.approx(expected)
    assert result["severity"]["n"] == 3
    assert result["severity"]["f1"]["critical"] is None


def test_perfect_and_constant_answers_are_told_apart_by_chance(study: Path, rows, tmp_path: Path):
    perfect = write_predictions(tmp_path / "a.csv", [predict(r, 0.9 * r.presence) for r in rows])
    constant = write_predictions(tmp_path / "b.csv", [predict(r, 0.9) for r in rows])
    one, other = (evaluate(table, read_study(study))["presence"] for table in (perfect, constant))
    assert (one["macro_f1"], one["auc"], one["interval"]) == (1, 1, (1, 1))
    assert one["chance"] == pytest.approx(0.5, abs=0.05)
    assert other["macro_f1"] == pytest.approx(other["chance"]) == pytest.approx(1 / 3)


def test_the_tables_own_verdict_counts_whatever_its_threshold(study: Path, rows, tmp_path: Path):
    table = write_predictions(tmp_path / "p.csv", [predict(r, 0.4, threshold=0.3) for r in rows])
    assert evaluate(table, read_study(study))["presence"]["confusion"] == [[0, 4], [0, 4]]


def test_failed_scans_are_said_beside_the_scores(study: Path, rows, tmp_path: Path):
    predictions = [predict(r, 0.9 * r.presence) for r in rows[:-1]]
    predictions.append(Prediction(rows[-1].scan, rows[-1].path.as_posix(), error="is damaged"))
    result = evaluate(write_predictions(tmp_path / "p.csv", predictions), read_study(study))
    assert (result["asked"], result["answered"], result["presence"]["n"]) == (8, 7, 7)
    few = evaluate(write_predictions(tmp_path / "few.csv", predictions[:3]), read_study(study))
    assert "3 of 8 labelled scans answered" in report(few)


def test_scans_are_matched_by_path_or_by_their_name_in_the_study(study: Path, rows, tmp_path: Path):
    predictions = [Prediction("x", path, 0.9, GRADES[1]) for path in (rows[0].path.as_posix(), rows[1].scan)]
    assert evaluate(write_predictions(tmp_path / "p.csv", predictions), read_study(study))["answered"] == 2


def dicom_scan(folder: Path, seed: int, series: int = 2) -> Path:
    """A DICOM scan of one patient and study, of several series that get shorter."""
    hu = (smooth_volume(12, 32, seed).astype("int16") * 6 - 1000).clip(-1000, 500)
    for k in range(series):
        write_dicom(folder.with_name("drawn"), hu[: 12 - 2 * k], (2.0, 1.0, 1.0), seed=10 * seed + k)
        for file in folder.with_name("drawn").iterdir():
            dataset = pydicom.dcmread(file)
            dataset.PatientID, dataset.StudyInstanceUID = f"P{seed}", f"1.2.{seed}"
            folder.mkdir(exist_ok=True)
            dataset.save_as(folder / f"{k}-{file.name}")
            file.unlink()
    folder.with_name("drawn").rmdir()
    return folder


@pytest.fixture
def of_series(tmp_path: Path) -> Path:
    """A study of two DICOM scans of two series each and one of one series, and a model."""
    root = tmp_path / "dicom"
    for name, seed, series in (("a", 1, 2), ("b", 2, 2), ("c", 3, 1)):
        (root / "test" / ("covid" if name == "a" else "non-covid")).mkdir(parents=True, exist_ok=True)
        dicom_scan(root / "test" / ("covid" if name == "a" else "non-covid") / name, seed, series)
    net = NetSettings(base_width=4, penultimate=8)
    save_model(tmp_path / "m.safetensors", build(net), net, Preprocessing(width=32), "both", {})
    return root


def answer(root: Path, output: Path, *scans: Path, **reading) -> Path:
    model = root.parent / "m.safetensors"
    infer(scans or [root], [model], output, machine=Machine(workers=1, device="cpu"), reading=Reading(**reading))
    return output


def test_every_series_of_a_scan_is_scored_by_the_labels_of_the_scan(of_series: Path, tmp_path: Path):
    table = answer(of_series, tmp_path / "p.csv", series="all")
    assert sorted(row.scan for row in read_predictions(table)) == ["a#1", "a#2", "b#1", "b#2", "c"]
    result = evaluate(table, read_study(of_series))
    assert (result["asked"], result["answered"], result["presence"]["n"]) == (5, 5, 5)
    assert [sum(counts) for counts in result["presence"]["confusion"]] == [3, 2]
    assert "some of these are series of one scan" in report(result)
    expanded = every_series(read_study(of_series), Reading(series="all"))
    assert evaluate(table, expanded)["presence"] == result["presence"]
    whole = evaluate(answer(of_series, tmp_path / "q.csv"), read_study(of_series))
    assert (whole["asked"], whole["answered"], whole["notes"]) == (3, 3, [])


def test_scans_that_have_no_answer_still_count_where_others_are_series(of_series: Path, tmp_path: Path):
    table = answer(of_series, tmp_path / "p.csv", of_series / "test" / "covid", series="all")
    result = evaluate(table, read_study(of_series))
    assert (result["asked"], result["answered"]) == (4, 2)


def test_a_series_that_the_table_names_has_its_own_labels(of_series: Path, tmp_path: Path):
    (of_series / "study.csv").write_text("scan,presence\ntest/covid/a#1,1\ntest/covid/a#2,0\n")
    table = answer(of_series, tmp_path / "p.csv", of_series / "test" / "covid", series="all")
    assert evaluate(table, read_study(of_series))["presence"]["n"] == 2
    truth = {row.scan: row.presence for _, row in match_rows(read_predictions(table), read_study(of_series), table)}
    assert truth == {"test/covid/a#1": 1, "test/covid/a#2": 0}
    whole = answer(of_series, tmp_path / "q.csv", of_series / "test" / "covid" / "a")
    with pytest.raises(StudyError, match="1 scans are not in the study"):
        evaluate(whole, read_study(of_series))


def test_a_scan_is_not_scored_both_whole_and_by_series(of_series: Path, tmp_path: Path):
    rows = read_predictions(answer(of_series, tmp_path / "p.csv", series="all"))
    rows += read_predictions(answer(of_series, tmp_path / "q.csv"))
    table = write_predictions(tmp_path / "r.csv", [row for row in rows if row.scan not in ("c", "b")])
    with pytest.raises(StudyError, match=r"test/covid/a predicted both whole and by series"):
        evaluate(table, read_study(of_series))


def test_slices_have_no_series(study: Path, rows, tmp_path: Path):
    table = write_predictions(tmp_path / "p.csv", [Prediction("x", f"{rows[0].path}#2", 0.9, GRADES[1])])
    with pytest.raises(StudyError, match="1 scans are not in the study"):
        evaluate(table, read_study(study))


def test_a_namesake_in_another_folder_is_another_patient(study: Path, tmp_path: Path):
    train = [r for r in read_study(study).rows if r.split == "train"]
    table = write_predictions(tmp_path / "p.csv", [predict(r, 0.9) for r in train])
    with pytest.raises(StudyError, match="8 scans are not in the study"):
        evaluate(table, read_study(study / "validation"))


def test_foreign_and_double_scans_are_errors(study: Path, rows, tmp_path: Path):
    foreign = write_predictions(tmp_path / "a.csv", [Prediction("other", "other", 0.9, GRADES[1])])
    with pytest.raises(StudyError, match="1 scans are not in the study"):
        evaluate(foreign, read_study(study))
    double = write_predictions(tmp_path / "b.csv", [predict(rows[0], 0.9), predict(rows[0], 0.2)])
    with pytest.raises(StudyError, match="predicted twice"):
        evaluate(double, read_study(study))


def test_nothing_to_score_is_an_error(tmp_path: Path, study: Path, rows):
    failed = write_predictions(tmp_path / "p.csv", [Prediction(rows[0].scan, rows[0].path.as_posix(), error="x")])
    with pytest.raises(Cov3dError, match="no scan has both an answer here and a label"):
        evaluate(failed, read_study(study))


def test_scores_on_scans_that_may_have_chosen_the_model_say_so(study: Path, tmp_path: Path):
    every = read_study(study).rows
    table = write_predictions(tmp_path / "p.csv", [predict(r, 0.9 * r.presence) for r in every])
    text = report(evaluate(table, read_study(study)))
    assert "some of these are training scans" in text
    assert "some of these are validation scans" in text


def test_predictions_survive_being_written_and_read(study: Path, rows, tmp_path: Path):
    written = [
        predict(rows[0], 0.25, 3, warning="odd", seconds=1.5),
        Prediction("=x", "=x", error="broken"),
    ]
    back = {row.scan: row for row in read_predictions(write_predictions(tmp_path / "p.csv", written))}
    assert back["=x"].error == "broken"
    row = back[rows[0].scan]
    assert (row.covid, row.severity, row.warning, row.models, row.views) == (0.25, GRADES[3], "odd", 1, 2)
    assert row.cells() == written[0].cells()


@pytest.mark.parametrize(
    "content, cause",
    [
        ("a,b\n1,2\n", "is no table of predictions"),
        ("scan,covid_probability,mild,moderate,severe,critical\nx,1.7,.2,.2,.3,.3\n", "not between 0 and 1"),
        ("scan,covid_probability,mild,moderate,severe,critical\nx,high,.2,.2,.3,.3\n", "row 2"),
    ],
)
def test_a_table_that_is_no_predictions_says_why(tmp_path: Path, content: str, cause: str):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(StudyError, match=cause):
        read_predictions(tmp_path / "p.csv")


def test_a_study_without_severities_is_scored_on_presence_alone(tmp_path: Path):
    root = make_study(tmp_path / "s")
    for table in root.glob("*.csv"):
        table.unlink()
    study = read_study(root)
    result = evaluate(write_predictions(tmp_path / "p.csv", [predict(r, 0.9 * r.presence) for r in study.rows]), study)
    assert result["severity"]["macro_f1"] is None
    assert "severity: no scan with a label" in report(result)
