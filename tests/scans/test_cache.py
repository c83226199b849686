"""The cache: whole files, made once, made again when their sources change; one bad scan costs one row."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import smooth_volume, write_slices

from cov3d import Machine, Preprocessing, fill_cache, preprocess, read, read_study
from cov3d.errors import Cov3dError, SettingError
from cov3d.forms import write_dicom
from cov3d.scans.cache import Cache
from cov3d.scans.entry import entry_stem
from cov3d.scans.study import Row

SETTINGS = Preprocessing(width=32)
TWO = Machine(workers=2)


def fill(study: Path, cache: Path, settings: Preprocessing = SETTINGS) -> Cache:
    return fill_cache(read_study(study).rows, settings, cache, TWO)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_cached_is_what_preprocess_makes(study: Path, tmp_path: Path):
    cache = fill(study, tmp_path / "cache")
    assert (cache.made, cache.failures) == (16, {})
    for row in read_study(study).rows:
        tensor = cache.load(row.scan)
        assert tensor.dtype == torch.uint8
        np.testing.assert_array_equal(tensor, preprocess(read(row.path), SETTINGS))


def test_the_manifest_vouches_for_every_file(study: Path, tmp_path: Path):
    cache = fill(study, tmp_path / "cache")
    manifest = rows_of(cache.folder / "manifest.csv")
    assert [row["scan"] for row in manifest] == [row.scan for row in read_study(study).rows]
    for row in manifest:
        data = (cache.folder / row["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert row["slices"] == "12"
    assert cache.folder.name.startswith("16x32x32-")
    assert not list(cache.folder.glob(".tmp*"))


def test_a_second_run_makes_nothing_and_changes_nothing(study: Path, tmp_path: Path):
    first = fill(study, tmp_path / "cache")
    before = {file: file.stat().st_mtime_ns for file in first.folder.glob("*.pt")}
    assert fill(study, tmp_path / "cache").made == 0
    assert {file: file.stat().st_mtime_ns for file in first.folder.glob("*.pt")} == before


def test_a_changed_source_is_made_again_and_a_touched_one_is_not(study: Path, tmp_path: Path):
    cache = fill(study, tmp_path / "cache")
    changed, touched = (study / "train" / "covid" / name for name in ("ct_scan_1", "ct_scan_2"))
    write_slices(changed, 255 - smooth_volume(12, 32))
    os.utime(touched / "3.png", (1, 1))
    tensor_file = cache.folder / f"{entry_stem('train/covid/ct_scan_2', touched)}.pt"
    before = tensor_file.stat().st_mtime_ns
    again = fill(study, tmp_path / "cache")
    np.testing.assert_array_equal(again.load("train/covid/ct_scan_1"), preprocess(read(changed), SETTINGS))
    assert tensor_file.stat().st_mtime_ns == before
    assert fill(study, tmp_path / "cache").made == 0


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_other_slices_are_another_scan(study: Path, tmp_path: Path, change: str):
    fill(study, tmp_path / "cache")
    scan = study / "train" / "covid" / "ct_scan_1"
    if change == "added":
        shutil.copy(scan / "3.png", scan / "12.png")
    elif change == "removed":
        (scan / "11.png").unlink()
    else:
        (scan / "0.png").rename(scan / "50.png")
    again = fill(study, tmp_path / "cache")
    assert again.made == 1
    np.testing.assert_array_equal(again.load("train/covid/ct_scan_1"), preprocess(read(scan), SETTINGS))


def test_other_settings_are_another_folder(study: Path, tmp_path: Path):
    names = {
        fill(study, tmp_path / "cache", settings).folder.name
        for settings in (SETTINGS, Preprocessing(width=32, window_low=-1000.0), Preprocessing(width=32, depth=8))
    }
    assert len(names) == 3


def test_one_bad_scan_costs_one_row_and_is_tried_again(study: Path, tmp_path: Path):
    bad = study / "train" / "covid" / "ct_scan_1"
    for file in bad.iterdir():
        file.write_bytes(b"")
    cache = fill(study, tmp_path / "cache")
    assert (cache.made, len(cache.entries)) == (15, 15)
    (failure,) = rows_of(cache.folder / "failures.csv")
    assert (failure["scan"], failure["stage"]) == ("train/covid/ct_scan_1", "preprocess")
    assert "12 of 12 slices cannot be read" in failure["message"]
    write_slices(bad, smooth_volume(12, 32))
    again = fill(study, tmp_path / "cache")
    assert (again.made, again.failures) == (1, {})
    assert rows_of(cache.folder / "failures.csv") == []


def test_a_lost_or_cut_cache_file_is_made_again(study: Path, tmp_path: Path):
    cache = fill(study, tmp_path / "cache")
    first, second, third = sorted(cache.folder.glob("*.pt"))[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    third.with_suffix(".json").unlink()
    assert fill(study, tmp_path / "cache").made == 3


def zeroed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes(4096) + data[place + 4096 :]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [flipped, zeroed, lambda data, place: data[:place]], ids=["flip", "hole", "cut"])
def test_every_damage_to_a_cached_tensor_is_noticed_and_it_is_made_again(
    study: Path, tmp_path: Path, damage, capsys: pytest.CaptureFixture
):
    cache = fill(study, tmp_path / "cache")
    row = read_study(study).rows[0]
    file = cache.folder / cache.entries[row.scan]["file"]
    data, tensor = file.read_bytes(), cache.load(row.scan)
    for place in np.random.default_rng(0).integers(0, len(data), 40):
        file.write_bytes(damage(data, int(place)))
        if file.read_bytes() != data:
            np.testing.assert_array_equal(replace(cache, verified=set()).load(row.scan), tensor)
            assert f"{file} is gone or has changed since it was made; it is made again" in capsys.readouterr().err
        assert file.read_bytes() == data


def test_a_vanished_cache_file_is_made_again(study: Path, tmp_path: Path):
    cache = fill(study, tmp_path / "cache")
    row = read_study(study).rows[0]
    tensor = cache.load(row.scan)
    (cache.folder / cache.entries[row.scan]["file"]).unlink()
    np.testing.assert_array_equal(cache.load(row.scan), tensor)


def test_a_damaged_cache_file_whose_scan_is_gone_is_an_error_that_names_both_causes(study: Path, tmp_path: Path):
    cache = fill(study, tmp_path / "cache")
    row = read_study(study).rows[0]
    (cache.folder / cache.entries[row.scan]["file"]).write_bytes(b"damaged")
    shutil.rmtree(row.path)
    with pytest.raises(Cov3dError, match=r"is gone or has changed since it was made, and the scan .* is not there"):
        cache.load(row.scan)


def test_two_studies_with_the_same_names_sizes_and_times_do_not_mix(tmp_path: Path):
    studies = []
    for name, grey in (("a", 50), ("b", 200)):
        folder = write_slices(tmp_path / name / "scan", np.full((3, 32, 32), grey, np.uint8), suffix=".png")
        for file in folder.iterdir():
            os.utime(file, (1, 1))
        studies.append(tmp_path / name)
    first = fill(studies[0], tmp_path / "cache")
    second = fill(studies[1], tmp_path / "cache")
    assert (second.made, int(first.load("scan").max()), int(second.load("scan").max())) == (1, 50, 200)


def test_nothing_is_written_beside_the_scans(study: Path, tmp_path: Path):
    before = sorted(study.rglob("*"))
    fill(study, tmp_path / "cache")
    assert sorted(study.rglob("*")) == before


def test_a_cache_inside_a_scan_is_refused(study: Path):
    with pytest.raises(SettingError, match="lies inside the scan"):
        fill(study, study / "train" / "covid" / "ct_scan_1" / "cache")


def test_a_cache_inside_a_scan_of_which_one_series_is_meant_is_refused(tmp_path: Path):
    scan = write_dicom(tmp_path / "scan", np.zeros((3, 16, 16), np.int16), (2.0, 1.0, 1.0))
    for root in (scan, scan / "cache"):
        with pytest.raises(SettingError, match=r"lies inside the scan .*scan; choose a folder beside"):
            fill_cache([Row("scan#2", tmp_path / "scan#2")], SETTINGS, root, TWO)
    assert fill_cache([Row("scan#1", tmp_path / "scan#1")], SETTINGS, tmp_path / "cache", TWO).made == 1


def test_a_cache_that_cannot_be_written_is_said_before_the_work(study: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Cov3dError, match=r"cannot write .*file"):
        fill(study, tmp_path / "file" / "cache")


def test_no_scan_name_leads_out_of_the_cache():
    names = ["../../x", "/etc/passwd", "a/b", "a-b", "a b", "x" * 300, "\x1b[31m", "ü", "a\udcff"]
    stems = [entry_stem(name, Path("scan")) for name in names]
    assert len(set(stems)) == len(names)
    assert all(Path(stem).name == stem and len(stem) < 100 and stem.isascii() for stem in stems)


def test_a_pickle_in_place_of_a_tensor_is_not_run(study: Path, tmp_path: Path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    cache = fill(study, tmp_path / "cache")
    row = read_study(study).rows[0]
    (cache.folder / cache.entries[row.scan]["file"]).write_bytes(pickle.dumps(Payload()))
    np.testing.assert_array_equal(cache.load(row.scan), preprocess(read(row.path), SETTINGS))
    assert not (tmp_path / "ran").exists()
