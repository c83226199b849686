"""Floor 0: whole-file writes, tables, names, labels, metrics, settings."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from cov3d import config, labels, tables
from cov3d.commit import commit, commit_json, commit_text
from cov3d.config import Machine, NetSettings, Preprocessing, RunSettings, Training
from cov3d.console import natural, printable
from cov3d.errors import Cov3dError, SettingError
from cov3d.metrics import chance, interval, macro_f1, score, score_presence

# Whole-file writes


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = commit_text(tmp_path / "file", "old")

    def broken(file):
        file.write(b"half")
        raise KeyError

    with pytest.raises(KeyError):
        commit(path, broken)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "tempfile.mkstemp"])
def test_a_disk_that_refuses_is_named_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    path = commit_text(tmp_path / "file", "old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(Cov3dError, match=r"cannot write .*file: No space left on device"):
        commit_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_follow_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        path = commit_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_json_is_readable(tmp_path: Path):
    assert commit_json(tmp_path / "a" / "f.json", {"λ": 0.5}).read_text() == '{\n  "λ": 0.5\n}\n'


# Names and tables


def test_scan_2_comes_before_scan_10():
    names = ["scan10", "scan2", "scan1", "Scan3", "scan²", "scan", "7" * 30]
    assert sorted(names, key=natural)[-4:] == ["scan1", "scan2", "scan10", "scan²"]


@pytest.mark.parametrize("name", ["\x1b[31mred", "ok\nerror: forged", "tab\tcr\rnul\0", "\u202eevil", "bad\udcff"])
def test_names_are_made_printable(name: str):
    shown = printable(name)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)
    shown.encode()


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+x", "-x", "@x", "\tx", "plain", "'quoted", 'q"uo,te', "zwei\nZeilen", "'=x", "''=x", "''", "=", "-"],
)
def test_cells_are_harmless_and_come_back(tmp_path: Path, cell: str):
    path = tables.write_table(tmp_path / "t.csv", ["a", "b"], [{"a": cell, "b": -1.5}])
    assert not path.read_text().split("\n")[1].startswith(tables.FORMULA_STARTS)
    assert ",-1.5" in path.read_text()  # numbers are numbers
    _, rows = tables.read_table(path)
    assert rows == [{"a": cell.strip(), "b": "-1.5"}] or cell.startswith("\t")


@pytest.mark.parametrize("cell", [Path("=cmd"), Path("@x"), Path("+1/x")])
def test_a_path_is_text_in_a_table(cell: Path):
    assert tables.table_line([cell, np.int64(-1), np.float32(-0.5), None]) == f"'{cell},-1,-0.5,\n"


SOURCES = sorted(path for path in Path(tables.__file__).parent.rglob("*.py") if path.name != "tables.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_csv_file_is_written_through_tables(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {"csv", "pandas"} & set(modules), f"{path.name} knows {modules}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("commit", "commit_text"):
            assert ".csv" not in ast.unparse(node.args[0]), f"{path.name}: {ast.unparse(node)}"


# Labels


def test_probabilities_are_sigmoid_and_renormalised_softmax():
    logits = torch.randn(7, 6, dtype=torch.float64)
    covid, severity = labels.probabilities(logits)
    five = logits[:, 1:].exp() / logits[:, 1:].exp().sum(1, keepdim=True)
    torch.testing.assert_close(covid, 1 / (1 + (-logits[:, 0]).exp()))
    torch.testing.assert_close(severity, five[:, :4] / five[:, :4].sum(1, keepdim=True))


def test_views_are_averaged_as_probabilities_over_five_classes():
    logits = torch.randn(3, 5, 6, dtype=torch.float64)
    covid, severity = labels.mean_over_views(logits)
    five = logits[..., 1:].softmax(-1).mean(0)
    torch.testing.assert_close(covid, logits[..., 0].sigmoid().mean(0))
    torch.testing.assert_close(severity, five[:, :4] / five[:, :4].sum(1, keepdim=True))


def test_a_sure_negative_still_has_a_severity():
    logits = torch.zeros(2, 1, 6)
    logits[..., 5] = 1e4
    severity = labels.mean_over_views(logits)[1]
    torch.testing.assert_close(severity, torch.full((1, 4), 0.25))


# Metrics


def test_macro_f1_by_hand():
    truth, answer = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 2])
    scores = score(truth, answer, ("a", "b", "c"))
    assert scores["f1"] == {"a": pytest.approx(2 / 3), "b": pytest.approx(0.5), "c": 1.0}
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert scores["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_macro_f1_is_scikit_learns_for_many_draws_at_once():
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 4, (50, 12)), rng.integers(0, 5, (50, 12))
    expected = [f1_score(t, a, average="macro", zero_division=0) for t, a in zip(truth, answer, strict=True)]
    np.testing.assert_allclose(macro_f1(truth, answer), expected)


def test_nobody_to_score_is_not_zero():
    assert score_presence(np.array([labels.UNKNOWN]), np.array([0.4]))["macro_f1"] is None


def test_one_class_only_has_no_auc():
    assert "auc" not in score_presence(np.array([1, 1]), np.array([0.4, 0.7]))


def test_the_interval_holds_the_score_and_narrows_with_more_scans():
    rng = np.random.default_rng(0)
    widths = []
    for count in (30, 400):
        truth = rng.integers(0, 2, count)
        answer = np.where(rng.random(count) < 0.8, truth, 1 - truth)
        low, high = interval(truth, answer)
        assert low < score(truth, answer, ("a", "b"))["macro_f1"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert interval(np.array([1]), np.array([1])) is None


def test_the_interval_of_a_constant_answer_is_its_score_alone():
    truth = np.array([0] * 30 + [1] * 2)
    assert interval(truth, np.zeros(32, int)) == pytest.approx((30 / 62, 30 / 62))


def test_chance_of_fair_answers_is_a_half():
    truth = np.arange(200) % 2
    assert chance(truth, np.roll(truth, 1)) == pytest.approx(0.5, abs=0.01)


# Settings


@pytest.mark.parametrize(
    "make, cause",
    [
        (lambda: Preprocessing(width=64.5), "--width 64.5 is not of the kind int"),
        (lambda: Preprocessing(window_low=350.0), "is empty"),
        (lambda: NetSettings(pool="median"), "--pool 'median' is not one of avg, max"),
        (lambda: NetSettings(dropout=1.5), "--dropout 1.5 is out of range"),
        (lambda: Training(epochs=0), "--epochs 0 is out of range; expected at least 1"),
        (lambda: Training(learning_rate=0.0), "learns nothing"),
        (lambda: Machine(device="gpu"), "is not one of auto, cpu, cuda"),
        (lambda: RunSettings(task="cure"), "--task 'cure' is not one of"),
        (lambda: RunSettings(net=NetSettings(base_width=8), training=Training(weights="kinetics")), "--weights none"),
        (lambda: RunSettings(task="severity", loss=config.LossSettings(severity_factor=0.0)), "learns nothing of what"),
        (lambda: RunSettings(task="presence", loss=config.LossSettings(severity_factor=1.0)), "learns nothing of what"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(make, cause: str):
    with pytest.raises(SettingError) as caught:
        make()
    assert cause in str(caught.value)


def test_depth_is_half_the_width():
    assert Preprocessing(width=320).shape == (160, 320, 320)


def test_settings_survive_json():
    settings = Preprocessing(width=128, window_low=-1000.0)
    assert config.from_dict(Preprocessing, config.to_dict(settings), "file") == settings
    with pytest.raises(SettingError, match="file: its Preprocessing settings differ from this version's in nothing"):
        config.from_dict(Preprocessing, {**config.to_dict(settings), "nothing": 1}, "file")


@pytest.mark.parametrize("task, factor", [("presence", 0.1), ("severity", 0.9), ("both", 0.5)])
def test_the_task_sets_lambda(task: str, factor: float):
    assert RunSettings(task=task, training=Training(weights="none")).severity_factor == factor
    assert RunSettings(task=task, loss=config.LossSettings(severity_factor=0.3)).severity_factor == 0.3
