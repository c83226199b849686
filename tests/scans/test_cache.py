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
from conftest import smooth_volume, write_nifti, write_slices

from cov3d import Machine, Preprocessing, fill_cache, preprocess, read, read_study
from cov3d.chest import draw
from cov3d.config import Reading
from cov3d.errors import Cov3dError, SettingError
from cov3d.forms import write_dicom
from cov3d.scans.cache import Cache, cache_folder, fill_masks, masks_folder, pseudo_cache
from cov3d.scans.crop import Cropped
from cov3d.scans.entry import entry_stem
from cov3d.scans.mask import EMPTY, prepare_mask
from cov3d.scans.preprocess import prepare
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


# Masks


def lesions_of(row: Row) -> np.ndarray:
    """A row's mask as it was drawn."""
    return np.random.default_rng(len(row.scan)).random((12, 32, 32)) < 0.5


@pytest.fixture
def masked(study: Path) -> list[Row]:
    """The rows of the study; positives of the training part have masks, in two forms."""
    rows = []
    for index, row in enumerate(read_study(study).rows):
        if row.presence and row.split == "train":
            values = lesions_of(row).astype(np.uint8)
            if index % 2:
                mask = write_slices(study.parent / "drawn" / f"{index}", values)
            else:
                mask = write_nifti(study.parent / "drawn" / f"{index}.nii.gz", values)
            row = replace(row, mask=mask)
        rows.append(row)
    return rows


def masks(rows: list[Row], tmp_path: Path, labels: str = "", settings: Preprocessing = SETTINGS) -> Cache:
    return fill_masks(rows, settings, tmp_path / "cache", TWO, labels=labels)


def changed_mask(row: Row) -> Path:
    """The file of a row's mask, or one of them."""
    assert row.mask is not None
    return row.mask / "0.png" if row.mask.is_dir() else row.mask


def test_what_is_cached_of_masks_lies_on_the_scans_and_is_of_those_that_have_one(masked: list[Row], tmp_path: Path):
    cache = masks(masked, tmp_path)
    with_masks = [row for row in masked if row.mask]
    assert (cache.made, cache.failures, len(cache.entries)) == (4, {}, 4)
    for row in with_masks:
        prepared = prepare(read(row.path), SETTINGS)[1]
        np.testing.assert_array_equal(cache.load(row.scan), prepare_mask(lesions_of(row), prepared, SETTINGS))
    assert [row["source"] for row in rows_of(cache.folder / "manifest.csv")] == [row.mask.name for row in with_masks]


def test_masks_lie_beside_their_volumes_and_each_choice_of_labels_in_its_own_folder(masked: list[Row], tmp_path: Path):
    volumes = cache_folder(tmp_path / "cache", SETTINGS)
    assert masks(masked, tmp_path).folder == tmp_path / "cache" / f"{volumes.name}-masks"
    one, same, other = (masks(masked, tmp_path, labels) for labels in ("1,2", "2, 1", "2"))
    assert one.folder == same.folder != other.folder
    assert one.folder.name.startswith(f"{volumes.name}-masks-")
    assert (one.made, same.made, other.made) == (4, 0, 4)
    scan = next(iter(other.entries))
    assert one.load(scan).any() and not other.load(scan).any()
    assert other.entries[scan]["warnings"] == [EMPTY]


def test_a_second_run_makes_no_mask(masked: list[Row], tmp_path: Path):
    masks(masked, tmp_path)
    again = masks(masked, tmp_path)
    assert (again.made, len(again.entries)) == (0, 4)


@pytest.mark.parametrize("which", range(4))
def test_a_changed_mask_is_made_again_and_a_touched_one_is_not(masked: list[Row], tmp_path: Path, which: int):
    cache = masks(masked, tmp_path)
    row = [row for row in masked if row.mask][which]
    file = cache.folder / cache.entries[row.scan]["file"]
    before = file.stat().st_mtime_ns
    os.utime(changed_mask(row), (1, 1))
    assert masks(masked, tmp_path).made == 1
    assert file.stat().st_mtime_ns == before
    other = ~lesions_of(row)
    if row.mask.is_dir():
        write_slices(row.mask, other.astype(np.uint8))
    else:
        write_nifti(row.mask, other.astype(np.uint8))
    again = masks(masked, tmp_path)
    prepared = prepare(read(row.path), SETTINGS)[1]
    assert again.made == 1
    np.testing.assert_array_equal(again.load(row.scan), prepare_mask(other, prepared, SETTINGS))


def test_a_mask_whose_scan_has_changed_is_made_again(masked: list[Row], tmp_path: Path):
    masks(masked, tmp_path)
    row = next(row for row in masked if row.mask)
    write_slices(row.path, 255 - smooth_volume(12, 32))
    assert masks(masked, tmp_path).made == 1


def test_a_row_that_names_another_mask_gets_that_one(masked: list[Row], tmp_path: Path):
    masks(masked, tmp_path)
    one, other = [row for row in masked if row.mask][:2]
    cache = masks([replace(one, mask=other.mask)], tmp_path)
    prepared = prepare(read(one.path), SETTINGS)[1]
    np.testing.assert_array_equal(cache.load(one.scan), prepare_mask(lesions_of(other), prepared, SETTINGS))


def test_what_is_wrong_with_a_mask_fails_its_scan_with_the_cause(masked: list[Row], tmp_path: Path):
    first, second, third, _ = (row for row in masked if row.mask)
    wrong = replace(first, mask=write_nifti(tmp_path / "wrong.nii", np.ones((12, 32, 16), np.uint8)))
    lost = replace(second, mask=tmp_path / "lost.nii.gz")
    (third.path / "11.png").unlink()
    cache = masks([wrong, lost, third], tmp_path)
    assert cache.made == 0
    assert cache.failures[first.scan].startswith("its mask wrong.nii: is of (12, 32, 16) voxels (D, H, W), its scan of")
    assert cache.failures[second.scan] == "its mask lost.nii.gz: is not there"
    assert cache.failures[third.scan].startswith(f"its mask {third.mask.name}: is of (12, 32, 32) voxels")
    assert [(row["scan"], row["stage"]) for row in rows_of(cache.folder / "failures.csv")] == [
        (scan, "mask") for scan in sorted(cache.failures)
    ]


def test_a_damaged_mask_tensor_is_made_again(masked: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture):
    cache = masks(masked, tmp_path)
    row = next(row for row in masked if row.mask)
    tensor = cache.load(row.scan)
    file = cache.folder / cache.entries[row.scan]["file"]
    file.write_bytes(flipped(file.read_bytes(), 2000))
    np.testing.assert_array_equal(replace(cache, verified=set()).load(row.scan), tensor)
    assert "has changed since it was made; it is made again" in capsys.readouterr().err


def test_masks_are_cut_as_their_scans_are(tmp_path: Path):
    chest = draw(3, 3, 96, 40)
    scan = write_nifti(tmp_path / "scan.nii", chest.hu, chest.spacing)
    row = Row("scan", scan, mask=write_nifti(tmp_path / "mask.nii", chest.lesions.astype(np.uint8), chest.spacing))
    settings = Preprocessing(width=32, crop="lungs")
    cache, whole = masks([row], tmp_path, settings=settings), masks([row], tmp_path)
    prepared = prepare(read(scan), settings)[1]
    assert isinstance(prepared.slices, Cropped) and cache.folder != whole.folder
    np.testing.assert_array_equal(cache.load("scan"), prepare_mask(chest.lesions, prepared, settings))
    assert cache.load("scan").count_nonzero() > 1.5 * whole.load("scan").count_nonzero()


def test_a_cache_inside_a_mask_is_refused(masked: list[Row]):
    row = next(row for row in masked if row.mask and row.mask.is_dir())
    with pytest.raises(SettingError, match="lies inside the mask"):
        fill_masks([row], SETTINGS, row.mask / "cache", TWO)


def test_labels_that_cannot_be_are_refused_before_anything_is_written(masked: list[Row], tmp_path: Path):
    with pytest.raises(SettingError, match="--mask-labels"):
        masks(masked, tmp_path, "lesion")
    assert not (tmp_path / "cache").exists()


# Masks that a program computes


BY = "teacher 0123, threshold 0.5"


def soft(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, *SETTINGS.shape), np.uint8)


def pseudo(study: Path, tmp_path: Path, made_by: str = BY) -> Cache:
    return pseudo_cache(read_study(study).rows, SETTINGS, tmp_path / "cache", None, made_by)


def test_computed_masks_are_kept_and_a_stopped_labelling_goes_on_where_it_was(study: Path, tmp_path: Path):
    volumes, first = fill(study, tmp_path / "cache"), pseudo(study, tmp_path)
    assert first.entries == {}
    scans = [row.scan for row in read_study(study).rows][:3]
    for seed, scan in enumerate(scans):
        first.keep(scan, soft(seed), volumes.entries[scan])
    second = pseudo(study, tmp_path)
    assert list(second.entries) == scans
    for cache in (first, second):
        for seed, scan in enumerate(scans):
            np.testing.assert_array_equal(cache.load(scan), soft(seed))
    assert not list(first.folder.glob(".tmp*"))


def test_each_teacher_has_its_folder_beside_the_volumes(study: Path, tmp_path: Path):
    volumes = fill(study, tmp_path / "cache")
    digest = hashlib.sha256(BY.encode()).hexdigest()[:10]
    one, other = pseudo(study, tmp_path), pseudo(study, tmp_path, "another")
    assert one.folder == volumes.folder.with_name(f"{volumes.folder.name}-masks-{digest}")
    assert one.folder == masks_folder(tmp_path / "cache", SETTINGS, Reading(), BY)
    scan = next(iter(volumes.entries))
    one.keep(scan, soft(0), volumes.entries[scan])
    assert other.folder != one.folder and not pseudo(study, tmp_path, "another").entries


def test_computed_masks_of_scans_that_changed_are_to_be_computed_again_and_of_touched_ones_not(
    study: Path, tmp_path: Path
):
    volumes, cache = fill(study, tmp_path / "cache"), pseudo(study, tmp_path)
    changed, touched, gone = list(volumes.entries)[:3]
    for scan in (changed, touched, gone):
        cache.keep(scan, soft(0), volumes.entries[scan])
    write_slices(study / changed, 255 - smooth_volume(12, 32))
    os.utime(study / touched / "3.png", (1, 1))
    (cache.folder / cache.entries[gone]["file"]).unlink()
    for _ in range(2):
        assert list(pseudo(study, tmp_path).entries) == [touched]


def test_a_tensor_without_its_entry_is_no_mask(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed between the two: the tensor comes first, so nothing vouches for it."""
    volumes, cache = fill(study, tmp_path / "cache"), pseudo(study, tmp_path)
    scan = next(iter(volumes.entries))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cov3d.scans.entry.commit_json", killed)
        cache.keep(scan, soft(0), volumes.entries[scan])
    assert list(cache.folder.glob("*.pt")) and scan not in cache.entries
    assert not pseudo(study, tmp_path).entries


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_computed_mask_that_is_gone_or_changed_asks_for_the_command_again(study: Path, tmp_path: Path, damage: str):
    volumes, cache = fill(study, tmp_path / "cache"), pseudo(study, tmp_path)
    scan = next(iter(volumes.entries))
    cache.keep(scan, soft(0), volumes.entries[scan])
    file = cache.folder / cache.entries[scan]["file"]
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(flipped(file.read_bytes(), 2000))
    with pytest.raises(Cov3dError, match=r"is gone or has changed since it was made; run the same command again"):
        cache.load(scan)


@pytest.mark.parametrize(
    "array", [soft(0)[0], soft(0).astype(np.float32), soft(0)[:, 1:]], ids=["3d", "float", "short"]
)
def test_what_is_no_tensor_of_the_cache_is_not_kept(study: Path, tmp_path: Path, array: np.ndarray):
    volumes, cache = fill(study, tmp_path / "cache"), pseudo(study, tmp_path)
    scan = next(iter(volumes.entries))
    with pytest.raises(ValueError, match=r"expected uint8 \(1, 16, 32, 32\)"):
        cache.keep(scan, array, volumes.entries[scan])
    assert not list(cache.folder.glob("*.pt"))
