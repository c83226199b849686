"""Inference: one row a scan, views and models averaged, nothing lost, nothing done twice."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from conftest import smooth_volume, write_nifti, write_slices

from cov3d import Inference, Machine, NetSettings, Preprocessing, build, infer, load_model, preprocess, read, save_model
from cov3d.config import Reading
from cov3d.errors import Cov3dError, ModelError, SettingError
from cov3d.forms import write_dicom
from cov3d.results.infer import summary
from cov3d.results.models import find_models

COLUMNS = (
    *("scan", "path", "presence", "covid_probability", "severity", "mild", "moderate", "severe", "critical"),
    *("models", "views", "seconds", "warning", "error"),
)
ONE = Machine(workers=1, device="cpu")
SETTINGS = Preprocessing(width=32)
NET = NetSettings(base_width=4, dropout=0.5, penultimate=8)


def make_model(path: Path, seed: int = 0, task: str = "both", settings: Preprocessing = SETTINGS) -> Path:
    torch.manual_seed(seed)
    return save_model(path, build(NET), NET, settings, task, {})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Five scans whose names do not sort as text does."""
    folder = tmp_path / "scans"
    for k in (1, 2, 9, 10, 100):
        write_slices(folder / f"ct_scan_{k}", smooth_volume(10, 32, seed=k))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_scan_has_a_row_in_natural_order(scans: Path, tmp_path: Path):
    output = tmp_path / "p.csv"
    infer([scans], [make_model(tmp_path / "m.safetensors")], output, machine=ONE)
    rows = table(output)
    assert tuple(rows[0]) == COLUMNS
    assert [row["scan"] for row in rows] == [f"ct_scan_{k}" for k in (1, 2, 9, 10, 100)]
    for row in rows:
        severity = {name: float(row[name]) for name in ("mild", "moderate", "severe", "critical")}
        assert sum(severity.values()) == pytest.approx(1, abs=1e-5)
        assert row["severity"] == max(severity, key=severity.get)
        assert row["presence"] == ("covid" if float(row["covid_probability"]) >= 0.5 else "non-covid")
        assert (row["models"], row["views"], row["error"]) == ("1", "2", "")


def test_probabilities_are_means_over_views_and_models_by_hand(scans: Path, tmp_path: Path):
    files = [make_model(tmp_path / f"{k}.safetensors", seed=k) for k in range(2)]
    rows = infer([scans / "ct_scan_9"], files, tmp_path / "p.csv", machine=ONE)
    x = torch.from_numpy(preprocess(read(scans / "ct_scan_9"), SETTINGS))[None] / 255
    covids, severities = [], []
    for file in files:
        with torch.no_grad():
            logits = [load_model(file).net(view).double() for view in (x, x.flip(-1))]
        covids.append(np.mean([float(z[0, 0].sigmoid()) for z in logits]))
        five = torch.stack([z[0, 1:].softmax(0) for z in logits]).mean(0)[:4]
        severities.append((five / five.sum()).numpy())
    assert rows[0].covid == pytest.approx(np.mean(covids), abs=1e-6)
    np.testing.assert_allclose(rows[0].severity, np.mean(severities, 0), atol=1e-6)


def test_severities_of_a_loss_over_four_classes_are_averaged_over_four(scans: Path, tmp_path: Path):
    """Its fifth logit was never learnt, and says nothing."""
    torch.manual_seed(5)
    file = save_model(tmp_path / "m.safetensors", build(NET), NET, SETTINGS, "both", {"loss": "balanced-ce"})
    rows = infer([scans / "ct_scan_9"], [file], tmp_path / "p.csv", machine=ONE)
    x = torch.from_numpy(preprocess(read(scans / "ct_scan_9"), SETTINGS))[None] / 255
    with torch.no_grad():
        four = torch.stack([load_model(file).net(view)[0, 1:5].softmax(0) for view in (x, x.flip(-1))]).mean(0)
    np.testing.assert_allclose(rows[0].severity, four, atol=1e-6)


def test_each_answer_comes_from_the_models_kept_for_it(scans: Path, tmp_path: Path):
    presence = make_model(tmp_path / "a.safetensors", 1, "presence")
    severity = make_model(tmp_path / "b.safetensors", 2, "severity")
    together = infer([scans / "ct_scan_1"], [presence, severity], tmp_path / "p.csv", machine=ONE)[0]
    alone = [
        infer([scans / "ct_scan_1"], [m], tmp_path / f"{m.stem}.csv", machine=ONE)[0] for m in (presence, severity)
    ]
    assert together.covid == pytest.approx(alone[0].covid)
    assert together.severity == pytest.approx(alone[1].severity)
    assert together.models == 2


def test_models_with_different_preprocessing_go_together(scans: Path, tmp_path: Path):
    files = [make_model(tmp_path / f"{w}.safetensors", settings=Preprocessing(width=w)) for w in (32, 48)]
    rows = infer([scans], files, tmp_path / "p.csv", machine=ONE)
    assert not any(row.error for row in rows)


def test_a_reflected_scan_has_the_same_answer_with_views_and_another_without(scans: Path, tmp_path: Path):
    model = make_model(tmp_path / "m.safetensors")
    mirrored = write_slices(tmp_path / "mirror", smooth_volume(10, 32, seed=9)[:, :, ::-1])

    def answer(path: Path, tta: bool) -> float:
        return infer([path], [model], tmp_path / "p.csv", Inference(tta=tta), ONE, overwrite=True)[0].covid

    assert answer(mirrored, True) == pytest.approx(answer(scans / "ct_scan_9", True), abs=1e-6)
    assert answer(mirrored, False) != pytest.approx(answer(scans / "ct_scan_9", False), abs=1e-6)


def test_bad_scans_cost_their_rows_and_change_no_other(scans: Path, tmp_path: Path):
    model = make_model(tmp_path / "m.safetensors")
    good = infer([scans], [model], tmp_path / "good.csv", machine=ONE)
    for file in (scans / "ct_scan_9").iterdir():
        file.write_bytes(b"")
    (scans / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "empty").mkdir()
    rows = infer([scans, tmp_path / "nowhere", tmp_path / "empty"], [model], tmp_path / "p.csv", machine=ONE)
    bad = {row.scan: row.error for row in rows if row.error}
    assert set(bad) == {"ct_scan_9", "cut", "nowhere", "empty"}
    assert "zero bytes" in bad["ct_scan_9"]
    assert bad["nowhere"] == "is not there"
    assert "no scan found" in bad["empty"]
    kept = {row.scan: (row.covid, row.severity) for row in rows if not row.error}
    assert kept == {row.scan: (row.covid, row.severity) for row in good if row.scan != "ct_scan_9"}
    assert summary(rows, Path("p.csv")) == "p.csv: 4 answered, 4 failed, 8 asked"
    for row in table(tmp_path / "p.csv"):
        assert bool(row["error"]) == (row["covid_probability"] == "")


def test_an_existing_table_is_not_overwritten_unasked(scans: Path, tmp_path: Path):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    output.write_text("mine")
    with pytest.raises(SettingError, match="say --resume to go on"):
        infer([scans], [model], output, machine=ONE)
    assert output.read_text() == "mine"
    infer([scans], [model], output, machine=ONE, overwrite=True)
    assert len(table(output)) == 5


def test_resume_does_only_what_is_missing(scans: Path, tmp_path: Path):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    infer([scans], [model], output, machine=ONE)
    whole = output.read_text()
    lines = whole.splitlines(keepends=True)
    output.write_text("".join(lines[:3]) + lines[3][:17])  # as a kill leaves it: two rows and a torn one
    before = {row["scan"]: row["seconds"] for row in table(output)[:2]}
    infer([scans], [model], output, machine=ONE, resume=True)
    after = table(output)
    assert [row["scan"] for row in after] == [f"ct_scan_{k}" for k in (1, 2, 9, 10, 100)]
    assert {row["scan"]: row["seconds"] for row in after[:2]} == before
    columns = [name for name in after[0] if name != "seconds"]
    first = [[row[c] for c in columns] for row in csv.DictReader(whole.splitlines())]
    assert [[row[c] for c in columns] for row in after] == first


def test_resume_tries_failed_scans_again(scans: Path, tmp_path: Path):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    (scans / "ct_scan_2").rename(tmp_path / "away")
    asked = [scans / f"ct_scan_{k}" for k in (1, 2)]
    assert infer(asked, [model], output, machine=ONE)[1].error
    (tmp_path / "away").rename(scans / "ct_scan_2")
    assert not infer(asked, [model], output, machine=ONE, resume=True)[1].error


def test_resume_keeps_the_answers_of_scans_not_asked_for_now(scans: Path, tmp_path: Path):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    infer([scans / "ct_scan_1", scans / "ct_scan_2"], [model], output, machine=ONE)
    infer([scans / "ct_scan_9"], [model], output, machine=ONE, resume=True)
    assert [row["scan"] for row in table(output)] == ["ct_scan_1", "ct_scan_2", "ct_scan_9"]


def test_resume_knows_a_scan_however_its_path_is_spelt(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    infer([scans], [model], output, machine=ONE)
    monkeypatch.chdir(scans)
    rows = infer([Path("ct_scan_1")], [model], output, machine=ONE, resume=True)
    assert [row.scan for row in rows] == ["ct_scan_1"]
    assert len(table(output)) == 5
    with pytest.raises(SettingError, match="say one of them"):
        infer([scans], [model], output, machine=ONE, resume=True, overwrite=True)


def test_resume_does_a_changed_scan_again(scans: Path, tmp_path: Path):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    infer([scans], [model], output, machine=ONE)
    write_slices(scans / "ct_scan_9", 255 - smooth_volume(10, 32, seed=9))
    resumed = infer([scans], [model], output, machine=ONE, resume=True)
    fresh = infer([scans], [model], tmp_path / "q.csv", machine=ONE)
    assert [row.covid for row in resumed] == pytest.approx([row.covid for row in fresh], abs=1e-6)


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    """A sound scan, one of which a slice is lost, and one that has a gap."""
    for name in ("gap", "sound"):
        write_dicom(tmp_path / "flawed" / name, smooth_volume(12, 32).astype(np.int16), (2.0, 1.0, 1.0), seed=len(name))
    next(
        file
        for file in sorted((tmp_path / "flawed" / "gap").iterdir())
        if abs(pydicom.dcmread(file).ImagePositionPatient[2]) < 2
    ).unlink()
    (write_slices(tmp_path / "flawed" / "loss", smooth_volume(12, 32)) / "4.png").write_bytes(b"")
    return tmp_path / "flawed"


LENIENT, PLAIN, STRICT = Reading(allow_gaps=True), Reading(), Reading(strict=True)


@pytest.mark.parametrize("first", [LENIENT, PLAIN, STRICT], ids=["lenient", "plain", "strict"])
@pytest.mark.parametrize("then", [LENIENT, PLAIN, STRICT], ids=["lenient", "plain", "strict"])
def test_a_resumed_run_answers_what_a_new_one_would(flawed: Path, tmp_path: Path, first: Reading, then: Reading):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    infer([flawed], [model], output, machine=ONE, reading=first)
    before = {row["scan"]: row for row in table(output)}
    infer([flawed], [model], output, machine=ONE, reading=then, resume=True)
    after = {row["scan"]: row for row in table(output)}
    answered = {LENIENT: {"gap", "loss", "sound"}, PLAIN: {"loss", "sound"}, STRICT: {"sound"}}
    assert {scan for scan, row in after.items() if row["covid_probability"]} == answered[then]
    if answered[first] <= answered[then]:  # nothing is done twice
        assert {scan: after[scan] for scan in answered[first]} == {scan: before[scan] for scan in answered[first]}


def test_an_answer_keeps_what_was_forgiven_over_several_resumes(flawed: Path, tmp_path: Path):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    infer([flawed / "loss"], [model], output, machine=ONE, reading=PLAIN)
    infer([flawed], [model], output, machine=ONE, reading=LENIENT, resume=True)
    kept = table(output)[1]
    rows = infer([flawed], [model], output, machine=ONE, reading=PLAIN, resume=True)
    assert {row.scan: bool(row.error) for row in rows} == {"gap": True, "loss": False, "sound": False}
    assert table(output)[1] == kept


@pytest.mark.parametrize(
    "record",
    ["fingerprint", None, {"files": 1}, {"files": "", "forgiven": 3}, {"files": "", "forgiven": [[]]}],
    ids=["of an older version", "nothing", "half", "number", "list"],
)
def test_an_answer_of_which_the_journal_says_nothing_is_made_again(scans: Path, tmp_path: Path, record: object):
    model, output, journal = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv", tmp_path / "p.csv.json"
    (row,) = infer([scans / "ct_scan_1"], [model], output, machine=ONE)
    output.write_text(output.read_text().replace(f"{row.covid:.6f}", "0.123456"))
    (kept,) = infer([scans / "ct_scan_1"], [model], output, machine=ONE, resume=True)
    assert kept.covid == 0.123456
    said = json.loads(journal.read_text())
    journal.write_text(json.dumps({**said, "scans": dict.fromkeys(said["scans"], record)}))
    (again,) = infer([scans / "ct_scan_1"], [model], output, machine=ONE, resume=True)
    assert again.covid == row.covid
    assert json.loads(journal.read_text()) == said


def test_resume_with_another_series_is_refused(scans: Path, tmp_path: Path):
    model, output = make_model(tmp_path / "m.safetensors"), tmp_path / "p.csv"
    infer([scans], [model], output, machine=ONE, reading=Reading(series="1.2.3"))
    infer([scans], [model], output, machine=ONE, reading=Reading(series="1.2.3"), resume=True)
    with pytest.raises(SettingError, match="made with other models or settings"):
        infer([scans], [model], output, machine=ONE, reading=Reading(series="1.2.4"), resume=True)


def test_resume_with_other_models_is_refused(scans: Path, tmp_path: Path):
    output = tmp_path / "p.csv"
    infer([scans], [make_model(tmp_path / "m.safetensors")], output, machine=ONE)
    with pytest.raises(SettingError, match="made with other models"):
        infer([scans], [make_model(tmp_path / "n.safetensors", seed=3)], output, machine=ONE, resume=True)
    assert json.loads((tmp_path / "p.csv.json").read_text())["models"][0]["file"] == "m.safetensors"


def test_the_challenges_lists_hold_every_answered_scan_once(scans: Path, tmp_path: Path):
    model = make_model(tmp_path / "m.safetensors")
    (scans / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08")
    infer([scans], [model], tmp_path / "p.csv", machine=ONE, submission=tmp_path / "lists")
    names = [f"ct_scan_{k}" for k in (1, 2, 9, 10, 100)]
    for classes in (("covid", "non-covid"), ("mild", "moderate", "severe", "critical")):
        lists = [(tmp_path / "lists" / f"{name}.csv").read_text().split() for name in classes]
        assert sorted(name for found in lists for name in found) == sorted(names)
        for found in lists:
            assert found == [name for name in names if name in found]  # by number


def test_models_are_found_under_outputs_and_last_only_when_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no trained model under outputs/"):
        find_models([])
    for name in ("severity/severity", "severity/last", "presence/presence", "cv/fold-0/severity"):
        path = Path("outputs") / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        (path.parent / "metrics.json").touch()
    Path("outputs/unfinished").mkdir()
    unfinished = Path("outputs/unfinished/severity.safetensors")
    unfinished.touch()
    found = [path.as_posix() for path in find_models([])]
    assert found == [
        "outputs/cv/fold-0/severity.safetensors",
        "outputs/presence/presence.safetensors",
        "outputs/severity/severity.safetensors",
    ]
    assert [path.name for path in find_models(["outputs/severity"])] == ["severity.safetensors"]
    last = Path("outputs/severity/last.safetensors")
    assert find_models([last, last.resolve()]) == [last.resolve()]
    assert find_models(["outputs/unfinished"]) == [unfinished]


def test_answers_that_nobody_taught_say_so(scans: Path, tmp_path: Path):
    torch.manual_seed(0)
    counts = {"non-covid": 4, "covid": 4, "mild": 0, "moderate": 0, "severe": 0, "critical": 0}
    model = save_model(tmp_path / "m.safetensors", build(NET), NET, SETTINGS, "presence", {"train_counts": counts})
    row = infer([scans / "ct_scan_1"], [model], tmp_path / "p.csv", machine=ONE)[0]
    assert row.warning == "answers about severity say nothing: no model that gives them learnt it"


def test_the_threshold_decides_the_word_and_not_the_probability(scans: Path, tmp_path: Path):
    model = make_model(tmp_path / "m.safetensors")
    plain = infer([scans], [model], tmp_path / "a.csv", machine=ONE)
    called = infer([scans], [model], tmp_path / "b.csv", Inference(threshold=0.0), ONE)
    assert {row["presence"] for row in table(tmp_path / "b.csv")} == {"covid"}
    assert [row.covid for row in plain] == [row.covid for row in called]


def test_a_model_that_answers_no_number_fails_the_row(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import importlib

    room = importlib.import_module("cov3d.results.models")

    def broken(file, device):
        model = load_model(file, device)
        torch.nn.init.constant_(model.net.head[-1].bias, float("nan"))
        return model

    monkeypatch.setattr(room, "load_model", broken)
    rows = infer([scans / "ct_scan_1"], [make_model(tmp_path / "m.safetensors")], tmp_path / "p.csv", machine=ONE)
    assert "not a number" in rows[0].error
    assert rows[0].covid is None


def test_names_that_a_spreadsheet_or_terminal_would_run_are_harmless(tmp_path: Path):
    names = ["=cmd|' C calc'!A0", "@x", "tab\there", "\x1b[31mred", "[bold]red", 'quo"te', "-2"]
    for name in names:
        write_slices(tmp_path / "scans" / name, smooth_volume(3, 32))
    rows = infer([tmp_path / "scans"], [make_model(tmp_path / "m.safetensors")], tmp_path / "p.csv", machine=ONE)
    assert sorted(row.scan for row in rows) == sorted(names)
    for row in table(tmp_path / "p.csv"):
        assert not row["scan"].startswith(("=", "@", "-"))


def test_a_name_that_is_no_utf8_loses_nothing(tmp_path: Path):
    import os

    folder = tmp_path / "scans"
    write_slices(folder / "good", smooth_volume(3, 32))
    write_slices(folder / "x", smooth_volume(3, 32)).rename(folder / os.fsdecode(b"bad\xff"))
    output = tmp_path / "p.csv"
    rows = infer([folder], [make_model(tmp_path / "m.safetensors")], output, machine=ONE)
    assert not any(row.error for row in rows)
    assert b"bad\\udcff" in output.read_bytes()
    infer([folder], [tmp_path / "m.safetensors"], output, machine=ONE, resume=True)
    assert len(table(output)) == 2


def test_a_table_that_cannot_be_written_is_said(scans: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    model = make_model(tmp_path / "m.safetensors")
    with pytest.raises(Cov3dError, match="cannot write"):
        infer([scans], [model], tmp_path / "file" / "p.csv", machine=ONE)
    with pytest.raises(SettingError, match="is a folder; name a file"):
        infer([scans], [model], tmp_path, machine=ONE)


def test_a_volume_and_its_slices_have_the_same_answer(tmp_path: Path):
    grey = smooth_volume(14, 40)
    write_slices(tmp_path / "scans" / "slices", grey)
    write_nifti(tmp_path / "scans" / "volume.nii.gz", np.round(grey / 255 * 1500 - 1150).astype(np.int16))
    model = make_model(tmp_path / "m.safetensors")
    slices, volume = infer([tmp_path / "scans"], [model], tmp_path / "p.csv", machine=ONE)
    assert volume.covid == pytest.approx(slices.covid, abs=0.02)
    assert replace(volume, covid=None).scan == "volume"
