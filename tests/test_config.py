"""Settings as they are written, and combinations that say nothing."""

from __future__ import annotations

import hashlib
import json

import pytest

from cov3d.config import LossSettings, Reading, RunSettings, from_dict, hide_uid, recorded, to_dict
from cov3d.errors import SettingError

UID = "1.2.826.0.1.3680043.8.498.42"
HASH = "sha256:" + hashlib.sha256(UID.encode()).hexdigest()[:16]


def test_a_uid_is_recorded_as_its_hash_at_any_depth():
    reading = Reading(series=UID)
    assert recorded(reading) == {**to_dict(reading), "series": HASH}
    assert reading.meaning == {"range": "auto", "series": HASH}
    run = RunSettings(reading=reading)
    assert recorded(run) == {**to_dict(run), "reading": recorded(reading)}
    assert UID not in json.dumps(recorded(run))


def test_another_series_has_another_hash_and_a_hash_stays():
    assert hide_uid(UID) != hide_uid(UID + "3")
    assert hide_uid(HASH) == HASH


@pytest.mark.parametrize("series", ["largest", "all"])
def test_what_is_no_uid_is_recorded_as_it_was_said(series: str):
    assert recorded(Reading(series=series)) == to_dict(Reading(series=series))


@pytest.mark.parametrize("series", ["largest", "all", UID])
def test_a_recorded_reading_is_read_back_and_means_the_same(series: str):
    reading = Reading(series=series, strict=True)
    back = from_dict(Reading, recorded(reading), "config.json")
    assert back.meaning == reading.meaning
    assert recorded(back) == recorded(reading)


def test_a_worker_is_told_the_uid_itself():
    assert from_dict(Reading, to_dict(Reading(series=UID)), "job") == Reading(series=UID)


@pytest.mark.parametrize(
    ("task", "factor", "loss"),
    [
        ("presence", 0.0, {"severity_loss": "emd"}),
        ("presence", 0.0, {"severity_smoothing": 0.2}),
        ("severity", 1.0, {"presence_smoothing": 0.2}),
    ],
)
def test_settings_of_a_loss_that_counts_nothing_are_refused(task: str, factor: float, loss: dict):
    with pytest.raises(SettingError, match=f"--{next(iter(loss)).replace('_', '-')} says nothing, since"):
        RunSettings(task, loss=LossSettings(severity_factor=factor, **loss))
    RunSettings(task, loss=LossSettings(severity_factor=factor))
    RunSettings(task, loss=LossSettings(**loss))
