"""Drawn chests look like chests, and drawn studies like COV19-CT-DB."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from cov3d.chest import SHARES, Chest, draw
from cov3d.errors import Cov3dError, SettingError
from cov3d.phantom import SLICES, write_study

SEEDS = range(6)
TABLES = {"train": "train_partition_covid_categories.csv", "validation": "val_partition_covid_categories.csv"}


@cache
def chest(seed: int, severity: int = 0, size: int = 64) -> Chest:
    return draw(seed, severity, size, slices=40)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), scans=36, seed=3, size=32)


def scans_of(study: Path) -> list[Path]:
    return sorted(study.glob("*/*/ct_scan*"))


def slices_of(scan: Path) -> list[Path]:
    return sorted(scan.glob("*.jpg"), key=lambda path: int(path.stem))


def table_of(study: Path, partition: str) -> list[tuple[str, int]]:
    with (study / TABLES[partition]).open(newline="") as file:
        rows = list(csv.reader(file, delimiter=";"))
    assert rows[0] == ["Name", "Category"]
    return [(name, int(category)) for name, category in rows[1:]]


def bytes_of(study: Path) -> dict[str, bytes]:
    return {str(path.relative_to(study)): path.read_bytes() for path in study.rglob("*") if path.is_file()}


def share(drawn: Chest) -> float:
    return np.count_nonzero(drawn.lesions) / np.count_nonzero(drawn.lungs)


def centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)


# The chest


def test_same_seed_draws_the_same_chest() -> None:
    first, second = draw(5, 2, 48, 40), draw(5, 2, 48, 40)
    assert first.hu.tobytes() == second.hu.tobytes()
    assert np.array_equal(first.lesions, second.lesions)
    assert first.spacing == second.spacing


def test_another_seed_draws_another_chest() -> None:
    assert not np.array_equal(chest(0).hu, chest(1).hu)
    assert not np.array_equal(chest(0).lungs, chest(1).lungs)


def test_a_seed_is_one_patient_whatever_the_severity() -> None:
    healthy, ill = chest(0, 0), chest(0, 3)
    assert np.array_equal(healthy.lungs, ill.lungs)
    far = ~healthy.lungs
    far &= ~np.roll(healthy.lungs, (2, 2), (1, 2)) & ~np.roll(healthy.lungs, (-2, -2), (1, 2))
    changed = (healthy.hu != ill.hu) & far
    assert changed.mean() < 0.02


def test_a_chest_is_whole_hu_with_masks_of_its_shape() -> None:
    drawn = draw(0, 1, size=48, slices=41)
    assert drawn.hu.dtype == np.int16
    assert drawn.hu.shape == drawn.lungs.shape == drawn.lesions.shape == (41, 48, 48)
    assert drawn.lungs.dtype == drawn.lesions.dtype == bool
    assert all(mm > 0 for mm in drawn.spacing)
    assert (drawn.presence, drawn.severity) == (1, 1)


@pytest.mark.parametrize("severity", range(5))
def test_share_of_the_lungs_sets_the_severity(severity: int) -> None:
    low, high = SHARES[severity]
    for seed in SEEDS:
        assert low - 1e-3 <= share(chest(seed, severity)) <= high + 1e-3
        assert chest(seed, severity).presence == (severity > 0)


def test_lesions_lie_in_the_lungs_and_are_denser_than_they() -> None:
    for seed in SEEDS:
        drawn = chest(seed, 2)
        assert not (drawn.lesions & ~drawn.lungs).any()
        assert drawn.hu[drawn.lesions].mean() > drawn.hu[drawn.lungs & ~drawn.lesions].mean() + 100


def test_severe_lesions_are_in_both_lungs() -> None:
    for seed in SEEDS:
        drawn = chest(seed, 3)
        middle = int(centre(drawn.lungs)[2])
        assert drawn.lesions[..., :middle].any()
        assert drawn.lesions[..., middle:].any()


def test_lungs_are_nearly_air_and_of_human_size() -> None:
    for seed in SEEDS:
        drawn = chest(seed)
        litres = np.count_nonzero(drawn.lungs) * np.prod(drawn.spacing) / 1e6
        assert -900 < np.median(drawn.hu[drawn.lungs]) < -650
        assert 3 < litres < 11


def test_air_surrounds_a_body_of_soft_tissue() -> None:
    for seed in SEEDS:
        drawn = chest(seed)
        body = drawn.hu[(drawn.hu > -300) & ~drawn.lungs]
        assert drawn.hu[:, 0].mean() < -950
        assert -20 < np.median(body) < 70
        assert body.size > 0.25 * drawn.hu.size


def test_spine_is_at_the_back() -> None:
    for seed in SEEDS:
        drawn = chest(seed)
        middle = round(centre(drawn.lungs)[2])
        near_the_midline = drawn.hu[:, :, middle - 6 : middle + 6] > 180
        rows = near_the_midline.sum((0, 2))
        half = round(centre(drawn.lungs)[1])
        assert rows[half:].sum() > 3 * rows[:half].sum()


def test_heart_is_at_the_patients_left() -> None:
    for seed in SEEDS:
        drawn = chest(seed)
        row = int(np.quantile(np.argwhere(drawn.lungs)[:, 1], 0.35))
        level = int(0.6 * len(drawn.hu))
        lung = np.flatnonzero(drawn.lungs[level, row])
        between = np.setdiff1d(np.arange(lung[0], lung[-1]), lung)
        assert between.mean() > (lung[0] + lung[-1]) / 2


def test_liver_is_at_the_patients_right_at_the_bottom() -> None:
    for seed in SEEDS:
        drawn = chest(seed)
        middle = round(centre(drawn.lungs)[2])
        foot = slice(int(0.7 * len(drawn.hu)), None)
        lungs = drawn.lungs[foot]
        assert lungs[..., :middle].sum() < lungs[..., middle:].sum()  # the liver lifts the right dome
        liver = drawn.hu[-1, 24:32, middle - 14 : middle - 6]
        assert 30 < liver.mean() < 90


def test_slice_0_is_at_the_head() -> None:
    for seed in SEEDS:
        drawn = chest(seed)
        area = drawn.lungs.sum((1, 2))
        assert area[0] < 0.6 * area[len(area) // 2]
        assert area[-1] < 0.6 * area[len(area) // 2]


def test_trachea_is_air_between_the_apices() -> None:
    for seed in SEEDS:
        drawn = chest(seed, size=128)
        top = slice(0, 5)
        _, row, column = centre(drawn.lungs[:12]).astype(int)
        window = np.s_[top, row - 20 : row + 12, column - 7 : column + 8]
        assert ((drawn.hu[window] < -800) & ~drawn.lungs[window]).any((1, 2)).all()


def test_brightness_alone_does_not_give_mild_disease_away() -> None:
    healthy = [chest(seed).hu[chest(seed).lungs].mean() for seed in range(12)]
    mild = [chest(seed, 1).hu[chest(seed, 1).lungs].mean() for seed in range(12, 24)]
    assert min(mild) < np.median(healthy) < max(mild)
    assert max(healthy) > np.median(mild)


@pytest.mark.parametrize("wrong", [{"severity": 5}, {"severity": -1}, {"size": 8}, {"slices": 2}])
def test_impossible_chests_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError):
        draw(0, **{"severity": 1, **wrong})


# The study


def test_folders_are_laid_out_as_in_cov19_ct_db(study: Path) -> None:
    for partition in TABLES:
        for name in ("covid", "non-covid"):
            names = [scan.name for scan in (study / partition / name).iterdir()]
            assert sorted(int(name.removeprefix("ct_scan").removeprefix("_")) for name in names) == list(
                range(len(names))
            )
    spellings = [scan.name.startswith("ct_scan_") for scan in scans_of(study)]
    assert 0.5 < np.mean(spellings) < 1
    assert len(spellings) == 36


def test_slices_are_rgb_coded_grey_numbered_without_gaps_from_anywhere(study: Path) -> None:
    firsts = set()
    for scan in scans_of(study):
        numbers = [int(path.stem) for path in slices_of(scan)]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        firsts.add(numbers[0])
    assert 0 in firsts
    assert len(firsts) > 2
    with Image.open(slices_of(scan)[0]) as image:
        assert (image.mode, image.size, image.format) == ("RGB", (32, 32), "JPEG")
        assert np.ptp(np.asarray(image), axis=2).max() == 0


def test_only_some_positives_are_annotated_and_every_severity_is(study: Path) -> None:
    for partition in TABLES:
        positives = {scan.name for scan in (study / partition / "covid").iterdir()}
        table = table_of(study, partition)
        names = [name for name, _ in table]
        assert set(names) < positives
        assert len(names) == len(set(names)) == round(0.75 * len(positives))
        assert {category for _, category in table} == {1, 2, 3, 4}


def test_half_of_the_scans_are_negative(study: Path) -> None:
    for partition, scans in (("train", 24), ("validation", 12)):
        assert len(list((study / partition / "non-covid").iterdir())) == scans // 2
        assert len(list((study / partition / "covid").iterdir())) == scans // 2


def test_slice_counts_do_not_tell_the_class(study: Path) -> None:
    counts = {name: [len(slices_of(s)) for s in study.glob(f"*/{name}/*")] for name in ("covid", "non-covid")}
    for values in counts.values():
        assert SLICES[0] <= min(values) < max(values) <= SLICES[1]
    apart = abs(np.mean(counts["covid"]) - np.mean(counts["non-covid"]))
    assert apart < 3 * np.std(counts["covid"] + counts["non-covid"]) * np.sqrt(2 / 18)


def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for format in ("jpeg", "nifti"):
        first, second = (write_study(tmp_path / f"{format}{i}", 8, format, seed=1, size=32) for i in range(2))
        assert bytes_of(first) == bytes_of(second)


def test_another_seed_writes_another_study(tmp_path: Path) -> None:
    first, second = (write_study(tmp_path / str(seed), 8, "nifti", seed=seed, size=32) for seed in (1, 2))
    assert bytes_of(first) != bytes_of(second)


def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **settings: object) -> dict[Path, Chest]:
    """Write a study and keep what was drawn, by the path it went to."""
    from cov3d import phantom

    kept: dict[Path, Chest] = {}
    for format, write in list(phantom.WRITERS.items()):

        def keep(path: Path, drawn: Chest, rng: np.random.Generator, write=write) -> None:
            kept[path] = drawn
            write(path, drawn, rng)

        monkeypatch.setitem(phantom.WRITERS, format, keep)
    write_study(tmp_path / "study", **settings)  # type: ignore[arg-type]
    return kept


def test_nifti_turned_to_inferior_posterior_left_is_the_drawn_chest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = nibabel.orientations.axcodes2ornt("IPL")
    for path, drawn in written(monkeypatch, tmp_path, scans=8, format="nifti", size=32).items():
        image = nibabel.load(path.with_name(path.name + ".nii.gz"))
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)
        turned = image.as_reoriented(turn)
        assert np.array_equal(np.asarray(turned.dataobj), drawn.hu)
        assert turned.header.get_zooms() == pytest.approx(drawn.spacing, rel=1e-5)


def test_jpeg_pixels_are_the_windowed_hu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path, drawn in written(monkeypatch, tmp_path, scans=8, size=64).items():
        pixels = np.stack([np.asarray(Image.open(s).convert("L"), np.float64) for s in slices_of(path)])
        grey = np.clip((drawn.hu + 1150) / 1500 * 255, 0, 255)
        assert pixels.shape == grey.shape
        assert np.abs(pixels - grey).mean() < 2
        assert np.abs(pixels - grey).max() < 24


def test_true_labels_say_what_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = written(monkeypatch, tmp_path, scans=16, format="nifti", size=32)
    for path, drawn in kept.items():
        assert path.parent.name == ("covid" if drawn.presence else "non-covid")
        said = dict(table_of(tmp_path / "study", path.parts[-3])) if drawn.presence else {}
        assert said.get(path.name, drawn.severity) == drawn.severity


def test_random_labels_say_nothing_of_what_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = written(monkeypatch, tmp_path, scans=64, format="nifti", size=32, labels="random", seed=1)
    shares = {name: [share(c) for p, c in kept.items() if p.parent.name == name] for name in ("covid", "non-covid")}
    spread = np.std(shares["covid"] + shares["non-covid"])
    assert abs(np.mean(shares["covid"]) - np.mean(shares["non-covid"])) < 3 * spread * np.sqrt(2 / 32)
    assert {category for _, category in table_of(tmp_path / "study", "train")} == {1, 2, 3, 4}
    assert len({c.severity for p, c in kept.items() if p.parent.name == "non-covid"}) > 2


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Cov3dError, match=r"not empty.*--overwrite"):
        write_study(tmp_path, 8, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwriting_replaces_the_drawn_study_and_spares_the_rest(tmp_path: Path) -> None:
    write_study(tmp_path, 12, "nifti", size=32)
    (tmp_path / "notes.txt").write_text("mine")
    write_study(tmp_path, 8, "nifti", size=32, overwrite=True)
    assert len(scans_of(tmp_path)) == 8
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "phantom.json").read_text())["scans"] == 8


def test_overwriting_never_takes_a_study_that_was_not_drawn(tmp_path: Path) -> None:
    scan = tmp_path / "train" / "covid" / "ct_scan_0" / "0.jpg"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"a patient")
    with pytest.raises(Cov3dError, match="not drawn by cov3d"):
        write_study(tmp_path, 8, size=32, overwrite=True)
    assert scan.read_bytes() == b"a patient"


@pytest.mark.parametrize(
    "wrong",
    [
        {"scans": 7},
        {"scans": 8, "validation": 0.1},
        {"validation": 0.0},
        {"validation": float("nan")},
        {"annotated": 1.5},
        {"size": 16},
        {"seed": -1},
        {"format": "bmp"},
        {"labels": "wrong"},
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"--{next(iter(wrong))}"):
        write_study(tmp_path / "study", **wrong)
    assert not (tmp_path / "study").exists()


def test_overwriting_removes_what_was_drawn_and_refuses_where_anything_else_lies(tmp_path: Path):
    study = write_study(tmp_path / "study", scans=8, size=32)
    (study / "train" / "covid" / ".tmp-left-by-a-killed-run").touch()
    write_study(study, scans=8, size=32, seed=1, overwrite=True)
    somebody = study / "train" / "covid" / "ct_scan_900"
    somebody.mkdir()
    (somebody / "0.jpg").write_bytes(b"a patient")
    before = sorted(study.rglob("*"))
    with pytest.raises(Cov3dError, match=r"0\.jpg was not drawn by cov3d"):
        write_study(study, scans=8, size=32, seed=2, overwrite=True)
    assert sorted(study.rglob("*")) == before


def test_a_folder_without_a_record_is_never_drawn_into(tmp_path: Path):
    (tmp_path / "train_cov19d" / "covid").mkdir(parents=True)
    with pytest.raises(Cov3dError, match="was not drawn by cov3d"):
        write_study(tmp_path, scans=8, size=32, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["train_cov19d"]
