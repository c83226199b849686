"""Drawn chests look like chests, are the same in every form, and drawn studies are laid out as COV19-CT-DB."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import nibabel
import numpy as np
import pytest
from PIL import Image

from cov3d.chest import SHARES, Chest, draw
from cov3d.errors import Cov3dError, SettingError
from cov3d.forms import FORMS, WINDOW, write_dicom
from cov3d.phantom import SLICES, write_study

SEEDS = range(6)
TABLES = {"train": "train_partition_covid_categories.csv", "validation": "val_partition_covid_categories.csv"}


@cache
def chest(seed: int, severity: int = 0, size: int = 64) -> Chest:
    return draw(seed, severity, size, slices=40)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), scans=36, seed=3, size=32)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small study in a form, drawn once, to look at and to copy."""
    return cache(lambda form: write_study(tmp_path_factory.mktemp(form), 8, form, seed=1, size=32))


@pytest.fixture
def copied(once: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the small study in a form, to do with as one likes."""
    return lambda form: shutil.copytree(once(form), tmp_path / "copy")


def scans_of(study: Path) -> list[Path]:
    return sorted(study.glob("*/*/ct_scan*"))


def slices_of(scan: Path) -> list[Path]:
    return sorted(scan.glob("*.jpg"), key=lambda path: int(path.stem))


def table_of(study: Path, partition: str) -> list[tuple[str, int]]:
    with (study / TABLES[partition]).open(newline="") as file:
        rows = list(csv.reader(file, delimiter=";"))
    assert rows[0] == ["Name", "Category"]
    return [(name, int(category)) for name, category in rows[1:]]


def bytes_of(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


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


# The forms

Read = tuple[np.ndarray, tuple[float, ...], np.ndarray]  # HU (D, H, W), spacing in mm, where the middle is in mm
SPACING = (2.5, 0.7, 0.9)


@cache
def narrow() -> np.ndarray:
    """HU of a chest whose sides all differ."""
    return chest(0, 2).hu[:, 5:58].copy()


def write(form: str, folder: Path, hu: np.ndarray | None = None, seed: int = 0) -> Path:
    path = folder / f"scan{FORMS[form].suffix}"
    assert FORMS[form].write(path, narrow() if hu is None else hu, SPACING, seed) == path
    return path


def with_nibabel(path: Path) -> Read:
    image = nibabel.load(path)
    wanted = nibabel.orientations.axcodes2ornt("IPL")
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted))
    middle = turned.affine[:3] @ [*(np.array(turned.shape) - 1) / 2, 1]
    return np.asarray(turned.dataobj), turned.header.get_zooms(), middle


def with_highdicom(path: Path) -> Read:
    import highdicom

    volume = highdicom.get_volume_from_series(datasets(path)).to_patient_orientation("FPL")
    return volume.array, volume.spacing, np.array(volume.center_position)


def with_simpleitk(path: Path) -> Read:
    import SimpleITK

    files: object = str(path)
    if path.is_dir():
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(files), "LPI")
    middle = image.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in image.GetSize()])
    return SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1], np.array(middle)


def datasets(path: Path) -> list:
    """The series' datasets, in the order of their files' names."""
    import pydicom

    return [pydicom.dcmread(file) for file in sorted(path.iterdir())]


def heights(path: Path) -> np.ndarray:
    """Where the slices lie, in mm to the head, in the order of their files' names."""
    return np.array([float(dataset.ImagePositionPatient[2]) for dataset in datasets(path)])


@pytest.mark.parametrize(
    ("form", "reader"),
    [
        ("nifti", with_nibabel),
        ("nifti", with_simpleitk),
        ("dicom", with_highdicom),
        ("dicom", with_simpleitk),
        ("mha", with_simpleitk),
        ("nrrd", with_simpleitk),
    ],
)
def test_a_chest_read_from_any_form_by_others_is_the_one_that_was_drawn(
    form: str, reader: Callable[[Path], Read], tmp_path: Path
) -> None:
    hu, spacing, middle = reader(write(form, tmp_path))
    assert np.array_equal(hu, narrow())
    assert spacing == pytest.approx(SPACING, rel=1e-6)
    assert middle == pytest.approx([0, 0, 0], abs=1e-4)


def test_jpeg_pixels_are_the_windowed_hu(tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(Image.open(s).convert("L"), np.float64) for s in slices_of(write("jpeg", tmp_path))])
    low, high = WINDOW
    grey = np.clip((narrow() - low) / (high - low) * 255, 0, 255)
    assert pixels.shape == grey.shape
    assert np.abs(pixels - grey).mean() < 2
    assert np.abs(pixels - grey).max() < 24


def test_nifti_axes_point_to_right_anterior_superior(tmp_path: Path) -> None:
    assert nibabel.aff2axcodes(nibabel.load(write("nifti", tmp_path)).affine) == ("R", "A", "S")


@pytest.mark.parametrize("form", ["mha", "nrrd"])
def test_itks_forms_are_compressed_with_axes_to_left_posterior_superior(form: str, tmp_path: Path) -> None:
    import SimpleITK

    path = write(form, tmp_path)
    image = SimpleITK.ReadImage(str(path))
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert image.GetPixelID() == SimpleITK.sitkInt16
    assert path.stat().st_size < 0.9 * narrow().nbytes


@pytest.mark.parametrize("form", FORMS)
def test_the_same_seed_writes_a_form_in_the_same_bytes(form: str, tmp_path: Path) -> None:
    first, second = (bytes_of(write(form, tmp_path / name, seed=4)) for name in "ab")
    assert first == second
    assert sum(map(len, first.values())) > 10_000


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_is_full_leaves_nothing_behind(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cov3d.commit.os.fsync", full)
    with pytest.raises(Cov3dError, match="No space left"):
        write(form, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_knows_the_files_that_it_writes(form: str, tmp_path: Path) -> None:
    path = write(form, tmp_path)
    if path.is_dir():
        assert all(re.fullmatch(FORMS[form].members, file.name) for file in path.iterdir())
        assert len(list(path.iterdir())) == len(narrow())
    else:
        assert [file.name for file in tmp_path.iterdir()] == [f"scan{FORMS[form].suffix}"]


def test_dicom_file_names_tell_nothing_of_the_order(tmp_path: Path) -> None:
    ranks = np.argsort(np.argsort(heights(write("dicom", tmp_path))))
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.5


def test_dicom_instances_are_numbered_from_the_head_or_from_the_feet(tmp_path: Path) -> None:
    ways = set()
    for seed in range(6):
        path = write("dicom", tmp_path / str(seed), seed=seed)
        numbers = [int(dataset.InstanceNumber) for dataset in datasets(path)]
        assert sorted(numbers) == list(range(1, len(narrow()) + 1))
        ways.add(round(np.corrcoef(numbers, heights(path))[0, 1], 6))
    assert ways == {-1, 1}


def test_dicom_slices_are_thicker_than_they_are_apart(tmp_path: Path) -> None:
    path = write("dicom", tmp_path)
    assert np.diff(np.sort(heights(path))) == pytest.approx(SPACING[0])
    assert {float(dataset.SliceThickness) for dataset in datasets(path)} == {1.25 * SPACING[0]}


def test_a_dicom_series_is_one_ct_of_nobody_without_dates(tmp_path: Path) -> None:
    series = datasets(write("dicom", tmp_path))
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "PixelSpacing"):
        assert len({str(dataset[name].value) for dataset in series}) == 1
    assert len({dataset.SOPInstanceUID for dataset in series}) == len(series)
    for dataset in series:
        assert (dataset.Modality, list(dataset.ImageType)) == ("CT", ["ORIGINAL", "PRIMARY", "AXIAL"])
        assert (dataset.PatientName, dataset.SyntheticData) == ("DRAWN^CHEST", "YES")
        assert dataset.PatientID.startswith("DRAWN-")
        assert (dataset.RescaleIntercept, dataset.PixelRepresentation, dataset.BitsStored) == (-1024, 0, 12)
        assert not [element for element in dataset if element.VR in ("DA", "DT", "TM") and element.value]
        assert all(element.value.is_valid for element in dataset if element.VR == "UI")


def test_no_two_drawn_dicom_scans_are_of_one_patient(once: Callable[[str], Path]) -> None:
    firsts = [datasets(scan)[0] for scan in scans_of(once("dicom"))]
    for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
        assert len({dataset[name].value for dataset in firsts}) == len(firsts) == 8


@pytest.mark.parametrize("beyond", [-1025, 3072])
def test_hu_that_no_ct_holds_are_refused_with_the_numbers(beyond: int, tmp_path: Path) -> None:
    hu = narrow().copy()
    hu[3, 4, 5] = beyond
    with pytest.raises(SettingError, match=rf"{beyond}.*-1024 to 3071"):
        write_dicom(tmp_path / "scan", hu, SPACING)
    assert not (tmp_path / "scan").exists()


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


@pytest.mark.parametrize("form", FORMS)
def test_same_seed_writes_the_same_study(form: str, once: Callable[[str], Path], tmp_path: Path) -> None:
    assert bytes_of(write_study(tmp_path, 8, form, seed=1, size=32)) == bytes_of(once(form))


@pytest.mark.parametrize("form", FORMS)
def test_a_study_has_the_same_scans_in_every_form(form: str, once: Callable[[str], Path]) -> None:
    study, jpeg = once(form), once("jpeg")
    names = {path.relative_to(study).as_posix().removesuffix(FORMS[form].suffix) for path in scans_of(study)}
    assert names == {path.relative_to(jpeg).as_posix() for path in scans_of(jpeg)}
    assert json.loads((study / "phantom.json").read_text())["format"] == form
    assert [table_of(study, partition) for partition in TABLES] == [table_of(jpeg, partition) for partition in TABLES]


def test_every_form_can_be_asked_for() -> None:
    assert get_args(get_type_hints(write_study)["format"]) == tuple(FORMS)


def test_another_seed_writes_another_study(once: Callable[[str], Path], tmp_path: Path) -> None:
    assert bytes_of(write_study(tmp_path, 8, "nifti", seed=2, size=32)) != bytes_of(once("nifti"))


def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **settings: object) -> dict[Path, Chest]:
    """Write a study and keep what was drawn, by its place."""
    drawn: list[Chest] = []

    def keep(*arguments: object) -> Chest:
        drawn.append(draw(*arguments))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr("cov3d.phantom.draw", keep)
    study = write_study(tmp_path / "study", **settings)  # type: ignore[arg-type]
    places = json.loads((study / "phantom.json").read_text())["drawn"]
    return {study / place: chest for place, chest in zip(places, drawn, strict=True)}


def test_each_scan_lies_where_the_record_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path, drawn in written(monkeypatch, tmp_path, scans=8, format="nifti", size=32).items():
        hu, spacing, _ = with_nibabel(path.with_name(f"{path.name}.nii.gz"))
        assert np.array_equal(hu, drawn.hu)
        assert spacing == pytest.approx(drawn.spacing, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_each_scan_has_its_lesions_on_it_as_a_mask(form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cov3d.scans.mask import read_mask
    from cov3d.scans.read import read
    from cov3d.scans.study import read_study

    kept = written(monkeypatch, tmp_path, scans=8, format=form, size=32)
    rows = {row.path: row for row in read_study(tmp_path / "study").rows}
    assert len(rows) == 8
    for path, drawn in kept.items():
        row = rows[path.with_name(path.name + FORMS[form].suffix)]
        assert row.mask == tmp_path / "study" / "masks" / f"{path.relative_to(tmp_path / 'study')}.nii.gz"
        stored, spacing, middle = with_nibabel(row.mask)
        assert np.array_equal(stored, drawn.lesions) and stored.any() == (drawn.severity > 0)
        assert spacing == pytest.approx(drawn.spacing, rel=1e-6) and middle == pytest.approx([0, 0, 0], abs=1e-4)
        assert np.array_equal(read_mask(row.mask, read(row.path)), drawn.lesions)


def test_overwriting_never_takes_a_mask_that_was_not_drawn(copied: Callable[[str], Path]) -> None:
    study = copied("nifti")
    mask = study / "masks" / "train" / "covid" / "somebody.nii.gz"
    mask.write_bytes(b"a patient")
    before = bytes_of(study)
    with pytest.raises(Cov3dError, match=r"somebody\.nii\.gz was not drawn by cov3d"):
        write_study(study, 8, "nifti", size=32, overwrite=True)
    assert bytes_of(study) == before


def test_a_study_that_was_drawn_before_there_were_masks_is_overwritten(copied: Callable[[str], Path]) -> None:
    study = copied("jpeg")
    shutil.rmtree(study / "masks")
    write_study(study, 8, "jpeg", seed=1, size=32, overwrite=True)
    assert len(list((study / "masks").rglob("*.nii.gz"))) == 8


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
    (study / "train" / "covid" / ".tmp-cov3d-left-by-a-killed-run").touch()
    write_study(study, scans=8, size=32, seed=1, overwrite=True)
    somebody = study / "train" / "covid" / "ct_scan_900"
    somebody.mkdir()
    (somebody / "0.jpg").write_bytes(b"a patient")
    before = sorted(study.rglob("*"))
    with pytest.raises(Cov3dError, match=r"0\.jpg was not drawn by cov3d"):
        write_study(study, scans=8, size=32, seed=2, overwrite=True)
    assert sorted(study.rglob("*")) == before


@pytest.mark.parametrize("form", FORMS)
def test_overwriting_leaves_nothing_of_another_form(
    form: str, once: Callable[[str], Path], copied: Callable[[str], Path]
) -> None:
    other = "mha" if form == "nrrd" else "nrrd"
    study = write_study(copied(form), 8, other, seed=1, size=32, overwrite=True)
    assert bytes_of(study) == bytes_of(once(other))
    assert {p.relative_to(study) for p in study.rglob("*")} == {
        p.relative_to(once(other)) for p in once(other).rglob("*")
    }


@pytest.mark.parametrize("form", FORMS)
def test_overwriting_never_takes_a_patient_that_lies_beside_the_drawn(form: str, copied: Callable[[str], Path]) -> None:
    study = copied(form)
    scan = scans_of(study)[0]
    for name in ("1.2.840.113619.2.55.3.dcm", "scan.mha", "scan.nrrd", "scan.nii.gz", "a.jpg"):
        patient = scan / name if scan.is_dir() else scan.with_name(name)
        patient.write_bytes(b"a patient")
        before = bytes_of(study)
        with pytest.raises(Cov3dError, match=re.escape(f"{name} was not drawn by cov3d")):
            write_study(study, 8, form, size=32, overwrite=True)
        assert bytes_of(study) == before
        patient.unlink()


def test_overwriting_removes_what_a_killed_run_left_in_a_scan(copied: Callable[[str], Path]) -> None:
    study = copied("dicom")
    (scans_of(study)[0] / ".tmp-cov3d-half-a-slice").touch()
    write_study(study, 8, "mha", size=32, overwrite=True)
    assert {path.suffix for path in scans_of(study)} == {".mha"}


@pytest.mark.parametrize("record", [{"drawn": ["../patient"]}, {"drawn": [3]}, {"format": "bmp"}, {"format": []}])
def test_a_record_that_no_study_has_removes_nothing(record: dict, tmp_path: Path) -> None:
    patient = tmp_path / "patient" / "0.jpg"
    patient.parent.mkdir()
    patient.write_bytes(b"a patient")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "phantom.json").write_text(json.dumps({"format": "jpeg", "drawn": [], **record}))
    with pytest.raises(Cov3dError, match="was not drawn by cov3d"):
        write_study(tmp_path / "study", 8, size=32, overwrite=True)
    assert patient.read_bytes() == b"a patient"


def test_a_folder_without_a_record_is_never_drawn_into(tmp_path: Path):
    (tmp_path / "train_cov19d" / "covid").mkdir(parents=True)
    with pytest.raises(Cov3dError, match="was not drawn by cov3d"):
        write_study(tmp_path, scans=8, size=32, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["train_cov19d"]


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_no_scans_to_be_answered_unless_they_are_asked_for(form: str, copied: Callable[[str], Path]) -> None:
    from cov3d.scans.read import ask_scans

    study = copied(form)
    pictures = study / "masks" / "train" / "covid" / "pictures"
    pictures.mkdir()
    Image.new("L", (32, 32)).save(pictures / "0.png")
    assert sorted(ask_scans([study])) == scans_of(study)
    shutil.rmtree(pictures)
    assert sorted(ask_scans([study / "train"])) == sorted((study / "train").glob("*/ct_scan*"))
    assert len(ask_scans([study / "masks"])) == 8
    assert len(ask_scans([next(study.glob("masks/*/*/*.nii.gz"))])) == 1
