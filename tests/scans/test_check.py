"""Faults planted in drawn studies are found and named; sound studies raise nothing; each check on small arrays, too."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import smooth_volume, write_nifti, write_slices
from PIL import Image

from cov3d import Machine
from cov3d.chest import draw
from cov3d.forms import FORMS, write_dicom, write_jpeg
from cov3d.phantom import write_study
from cov3d.scans.check import Report, check, report_json, report_text
from cov3d.scans.examine import NOTHING, examine, slice_hash
from cov3d.scans.jumps import find_jumps
from cov3d.scans.shortcuts import chance_of, find_shortcut
from cov3d.scans.study import Row, Study, read_study
from cov3d.scans.turned import TURNS, UNTURNED, Turn, find_turned
from cov3d.scans.twins import equal_groups, near_pairs, repeated, shared_slices

ONE = Machine(workers=1)
SIZE, SCANS = 64, 24
SOUND = [("jpeg", 0), ("jpeg", 1), ("nifti", 2)]


@pytest.fixture(scope="session")
def sound_studies(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Drawn studies without faults."""
    root = tmp_path_factory.mktemp("sound")
    return {
        (form, seed): write_study(root / f"{form}-{seed}", SCANS, form, seed, size=SIZE)  # type: ignore[arg-type]
        for form, seed in SOUND
    }


@pytest.fixture(scope="session")
def chest() -> np.ndarray:
    """One drawn chest in HU ``(D, H, W)``."""
    return draw(4711, 2, size=128, slices=44).hu


def grey(hu: np.ndarray, low: float = -1150, high: float = 350) -> np.ndarray:
    """The chest in grey levels of a window."""
    return np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def read_grey(folder: Path) -> np.ndarray:
    """A folder of slices as a volume."""
    files = sorted(folder.glob("*.jpg"), key=lambda path: int(path.stem))
    return np.stack([np.asarray(Image.open(file).convert("L")) for file in files])


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


# Sound studies


@pytest.mark.parametrize("form, seed", SOUND)
def test_a_sound_study_raises_nothing(sound_studies, form: str, seed: int):
    report = check(read_study(sound_studies[form, seed]), machine=ONE)
    assert (report.findings, report.failures, report.exit_code) == ((), {}, 0)
    assert [(row["split"], row["scans"], row["covid"]) for row in report.counts] == [
        ("train", 16, 8),
        ("validation", 8, 4),
    ]
    assert "nothing found" in report_text(report)


# Planted faults


@pytest.fixture(scope="session")
def faulty(sound_studies, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on a study with every fault that a file can have, each in a scan named after it."""
    root = shutil.copytree(sound_studies["jpeg", 0], tmp_path_factory.mktemp("faulty") / "study")
    ill, well = root / "train" / "covid", root / "validation" / "non-covid"
    for path in root.glob("*.csv"):
        path.unlink()
    scans = sorted(path for path in ill.iterdir())
    volumes = [read_grey(path) for path in scans[:8]]
    plant = {
        "same": volumes[0],
        "nearly": np.stack([jpeg(pixels, 93) for pixels in volumes[1]]),
        "mirrored": volumes[2][:, :, ::-1],
        "reversed": volumes[3][2:-2][::-1],
        "contained": volumes[4][10:30],
        "overlapping": np.concatenate([volumes[5][:12], draw_other(12)]),
    }
    for name, volume in plant.items():
        write_slices(well / name, np.ascontiguousarray(volume), range(7, 7 + len(volume)), mode="RGB")
    own = {
        "blank": np.full((20, SIZE, SIZE), 90, np.uint8),
        "mixed": np.concatenate([draw_other(1)[:20], draw_other(2)[20:]]),
        "turned": draw_other(3)[:, ::-1, ::-1],
        "feetfirst": draw_other(4)[::-1, :, ::-1],
        "swapped": draw_other(5)[:, :, ::-1],
        "damaged": spoilt(draw_other(6), 17),
        "repeated": np.concatenate([draw_other(7)[:20], draw_other(7)[19:]]),
    }
    for name, volume in own.items():
        write_slices(ill / name, np.ascontiguousarray(volume))
    broken = write_slices(ill / "broken", draw_other(8))
    for file in list(broken.iterdir())[:9]:
        file.write_bytes(file.read_bytes()[:100])
    return check(read_study(root), machine=ONE)


def draw_other(seed: int) -> np.ndarray:
    """A chest that is in no study, in grey levels."""
    return grey(draw([99, seed], seed % 5, SIZE, 44).hu)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def spoilt(volume: np.ndarray, place: int) -> np.ndarray:
    volume = volume.copy()
    volume[place, volume.shape[1] // 2 :] = 128  # what a decoder leaves of half a JPEG
    return volume


def about(report: Report, name: str) -> list[tuple[str, str]]:
    """Kind and weight of what was found of a scan."""
    return [(f.kind, f.weight) for f in report.findings if any(scan.endswith(f"/{name}") for scan in f.scans)]


PLANTED = {
    "same": ("same", "falsifies"),
    "nearly": ("near", "falsifies"),
    "mirrored": ("near", "falsifies"),
    "reversed": ("contained", "falsifies"),
    "contained": ("contained", "falsifies"),
    "overlapping": ("shared", "falsifies"),
    "blank": ("blank", "warning"),
    "mixed": ("mixed", "warning"),
    "turned": ("turned", "warning"),
    "feetfirst": ("turned", "warning"),
    "swapped": ("turned", "warning"),
    "damaged": ("damaged", "warning"),
    "repeated": ("repeated", "warning"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_named(faulty: Report, name: str):
    assert PLANTED[name] in about(faulty, name)


def test_a_broken_scan_costs_one_row_and_the_exit_code_tells(faulty: Report):
    assert list(faulty.failures) == ["train/covid/broken"]
    assert "slices cannot be read" in faulty.failures["train/covid/broken"]
    assert faulty.exit_code == 3


# What a planted fault brings with it: a mirrored copy also lies mirrored, a part is short, a patchwork jumps.
BESIDES = {
    "mirrored": {"turned"},
    "reversed": {"turned"},
    "overlapping": {"mixed", "far off"},
    "contained": {"far off"},
    "blank": {"far off"},
}


def test_nothing_is_found_of_scans_without_a_fault(faulty: Report):
    for finding in faulty.findings:
        assert any(scan.rsplit("/", 1)[1] in PLANTED for scan in finding.scans), finding


def test_the_text_names_each_fault_and_fits_the_screen(faulty: Report):
    text = report_text(faulty)
    for name in PLANTED:
        assert name in text
    assert "in train and validation, labelled covid and non-covid" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_the_report_is_plain_data(faulty: Report):
    data = json.loads(report_json(faulty))
    assert data["exit_code"] == 3
    assert {finding["kind"] for finding in data["findings"]} >= {kind for kind, _ in PLANTED.values()}


def test_within_one_split_and_class_a_copy_is_only_a_warning(tmp_path: Path, chest: np.ndarray):
    for name in ("one", "two"):
        write_slices(tmp_path / "train" / "covid" / name, grey(chest))
    report = check(read_study(tmp_path), machine=ONE)
    assert [(f.kind, f.weight) for f in report.findings] == [("same", "warning")]
    assert report.exit_code == 0


@pytest.mark.parametrize("other", [{"presence": 0}, {"severity": 4}, {"split": "validation"}])
def test_a_copy_with_another_label_or_split_falsifies(tmp_path: Path, chest: np.ndarray, other: dict):
    row = Row("one", write_slices(tmp_path / "one", grey(chest)), 1, 2, "train")
    copy = replace(row, scan="two", path=write_slices(tmp_path / "two", grey(chest)), **other)
    report = check(Study(tmp_path, (row, copy)), machine=ONE)
    assert [(f.kind, f.weight) for f in report.findings if f.kind == "same"] == [("same", "falsifies")]


def test_sites_and_sizes_are_counted_and_what_is_far_off_is_named(tmp_path: Path):
    sites = ["north", "south"] * 4
    heights = [48] * 7 + [200]
    rows = tuple(
        Row(f"{k}", write_slices(tmp_path / f"{k}", smooth_volume(10, height, k)), k % 2, site=site)
        for k, (site, height) in enumerate(zip(sites, heights, strict=True))
    )
    report = check(Study(tmp_path, rows), machine=ONE)
    north = {"site": "north", "scans": 4, "non-covid": 4, "covid": 0, "unknown": 0}
    assert north.items() <= report.counts[1].items()
    heights = next(measure for measure in report.measures if measure.name == "height, pixels")
    assert (heights.least, heights.median, heights.most, heights.far_off) == (48, 48, 200, ("7",))
    assert [finding.scans for finding in report.findings if finding.kind == "far off"] == [("7",)] * 2


def test_names_are_shown_as_data_and_in_lines_of_their_own(tmp_path: Path):
    name = "a\n\x1b[31m"
    write_slices(tmp_path / name, np.full((3, 48, 48), 7, np.uint8))
    report = check(read_study(tmp_path), machine=ONE)
    assert "a\\n\\x1b[31m: blank" in report_text(report)
    assert json.loads(report_json(report))["findings"][0]["scans"] == [name]


def test_the_study_s_own_words_are_checked_without_naming_patients(tmp_path: Path):
    paths = [write_slices(tmp_path / name, smooth_volume(12, 48, seed)) for seed, name in enumerate("abc")]
    rows = (
        Row("a", paths[0], 0, 3, "train", "Jane Doe"),
        Row("b", paths[1], 1, 2, "validation", "Jane Doe"),
        Row("c", paths[2], 1, 2, "", "John Doe"),  # a scan without a split trains
    )
    report = check(Study(tmp_path, rows), machine=ONE)
    assert [f.text for f in report.findings if f.kind == "severity"] == ["a is non-covid and has a severity, severe"]
    assert [f.scans for f in report.findings if f.kind == "patient"] == [("a", "b")]
    assert "Doe" not in report_text(report) + report_json(report)


def test_a_study_of_which_nothing_can_be_read_fails(tmp_path: Path):
    (tmp_path / "x.nii.gz").write_bytes(b"")
    report = check(Study(tmp_path, (Row("x", tmp_path / "x.nii.gz"),)), machine=ONE)
    assert (report.exit_code, list(report.failures)) == (1, ["x"])


def test_nothing_of_a_header_is_in_the_report(tmp_path: Path, chest: np.ndarray):
    for seed, name in enumerate(("one", "two")):
        write_dicom(tmp_path / "train" / "covid" / name, chest[10:22], (5.0, 2.5, 2.5), seed)
    report = check(read_study(tmp_path), machine=ONE)
    told = report_text(report) + report_json(report)
    assert "same" in kinds(report)
    assert not any(word in told for word in ("DRAWN", "CHEST", "2.25."))


# Hashes


@pytest.mark.parametrize("form", ["nifti", "mha", "nrrd", "dicom"])
def test_a_scan_has_the_same_hashes_in_every_form(tmp_path: Path, chest: np.ndarray, form: str):
    hu = chest[10:20, :64, :64]
    first = examine(write_nifti(tmp_path / "first.nii.gz", hu))
    path = FORMS[form].write(tmp_path / f"scan{FORMS[form].suffix}", hu, (2.0, 0.8, 0.8), 3)
    assert examine(path).hashes == first.hashes


def test_slices_have_the_same_hashes_under_other_numbers_and_in_png(tmp_path: Path, chest: np.ndarray):
    first = write_jpeg(tmp_path / "jpeg", chest[10:20], (1, 1, 1))
    decoded = read_grey(first)
    second = write_slices(tmp_path / "png", decoded, range(100, 110))
    assert examine(first).hashes == examine(second).hashes


def test_a_hash_tells_values_and_sizes_and_not_types():
    pixels = np.arange(64).reshape(8, 8)
    assert slice_hash(pixels.astype(np.float32), "HU") == slice_hash(pixels.astype(np.int16), "HU")
    assert slice_hash(pixels.astype(np.uint8), "grey") == slice_hash(pixels + 0.2, "grey")
    others = [pixels + (pixels == 5), pixels.reshape(4, 16), pixels.T]
    hashes = {slice_hash(one.astype(np.uint8), "grey") for one in [pixels, *others]}
    assert len(hashes | {slice_hash(pixels, "HU")}) == 5
    assert slice_hash(np.full((8, 8), 7, np.uint8), "grey") == NOTHING


def names(*texts: str) -> list[list[bytes]]:
    """Scans of slices of which each letter is one; a dot shows nothing."""
    return [[NOTHING if letter == "." else letter.encode() * 16 for letter in text] for text in texts]


def test_equal_contained_and_shared_scans_are_told_apart():
    scans = names("abcd", "..abcd", "dcba", "bc", "cxyz", "ac", "uvw", "..")
    assert equal_groups(scans) == [[0, 1, 2]]
    pairs = {(p.first, p.second): (p.shared, p.contained) for p in shared_slices(scans)}
    assert pairs[3, 0] == (2, True)  # in a row
    assert pairs[5, 0] == (2, True)  # every second one
    assert pairs[0, 4] == (1, False)
    assert not any(6 in pair or 7 in pair for pair in pairs)
    assert repeated(names("abab..")[0]) == 2


def test_a_title_slice_in_many_scans_is_no_kinship():
    scans = [[b"t" * 16, bytes([k] * 16)] for k in range(1, 30)]
    assert shared_slices(scans) == []


# Nearly the same


def details(volume: np.ndarray, folder: Path) -> np.ndarray:
    return examine(write_slices(folder, np.ascontiguousarray(volume))).details


COPIES = {
    "quality 50": lambda hu: np.stack([jpeg(pixels, 50) for pixels in grey(hu)]),
    "half the size": lambda hu: np.stack([np.asarray(Image.fromarray(p).resize((64, 64))) for p in grey(hu)]),
    "another window": lambda hu: grey(hu, -1350, 150),
    "the first slice missing": lambda hu: grey(hu)[1:],
    "slices missing at both ends": lambda hu: grey(hu)[5:-4],
    "every second slice": lambda hu: grey(hu)[::2],
    "left and right exchanged": lambda hu: grey(hu)[:, :, ::-1],
    "head and feet exchanged": lambda hu: grey(hu)[::-1],
    "slices turned by 180 degrees": lambda hu: grey(hu)[:, ::-1, ::-1],
    "slices turned by 90 degrees": lambda hu: np.rot90(grey(hu), axes=(1, 2)),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_nearly_the_same_and_other_chests_are_not(tmp_path: Path, chest: np.ndarray, change: str):
    volumes = [grey(chest), COPIES[change](chest), *(grey(draw(seed, 2, 128, 44).hu) for seed in (1, 2))]
    found = near_pairs(np.stack([details(volume, tmp_path / str(k)) for k, volume in enumerate(volumes)]))
    assert [(pair.first, pair.second) for pair in found] == [(0, 1)]
    assert str(found[0].turn) in (change, "")
    assert (str(found[0].turn) == change) == (change in {str(turn) for turn in TURNS})


# Turned


def body(seed: int) -> np.ndarray:
    """A small volume ``(24, 24, 24)`` that differs along each axis, and a little from any other."""
    rng = np.random.default_rng(seed)
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, 24) + rng.normal(0, 0.03) for _ in range(3)), indexing="ij")
    trunk = 150 * (h**2 + w**2 / 1.4 < 0.7) - 90 * (np.abs(np.abs(w) - 0.4) < 0.25) * (d < 0.3) * (np.abs(h) < 0.5)
    heart = 60 * ((w - 0.2) ** 2 + (h + 0.2) ** 2 + d**2 < 0.08) + 80 * (w**2 + (h - 0.6) ** 2 < 0.02)
    return np.clip(trunk + heart + rng.normal(0, 10, d.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "turn", [turn for turn in TURNS if turn != UNTURNED], ids=lambda turn: f"{turn.axes}{turn.flips}"
)
def test_every_turn_is_found_and_undone(turn: Turn):
    volumes = np.stack([body(seed) for seed in range(14)])
    assert find_turned(volumes) == {}
    volumes[5] = turn(volumes[5:6])[0]
    found = find_turned(volumes)
    assert list(found) == [5]
    assert np.array_equal(found[5](volumes[5:6])[0], body(5))


def test_of_few_scans_nothing_is_said():
    volumes = np.stack([body(seed) for seed in range(8)])
    volumes[0] = volumes[0, ::-1]
    assert find_turned(volumes) == {}


# Jumps


def walk(seed: int, slices: int = 30) -> np.ndarray:
    """Pictures ``(slices, 400)`` that change a little from one to the next."""
    steps = np.random.default_rng(seed).normal(0, 1, (slices + 40, 400))
    return 100 + 40 * np.stack([steps[k : k + 40].mean(0) for k in range(slices)])


def test_a_jump_to_another_scan_is_found_where_it_is():
    assert find_jumps(walk(0)) == ([], False)
    assert find_jumps(np.concatenate([walk(0), walk(1)])) == ([29], False)
    assert find_jumps(np.stack([walk(0), walk(1)], axis=1).reshape(60, 400)) == ([], True)


def test_one_odd_slice_is_no_jump():
    pictures = walk(0)
    pictures[12] = walk(1)[3]
    assert find_jumps(pictures) == ([], False)


# Shortcuts


def file_facts(count: int, seed: int = 0) -> tuple[list[dict[str, float]], np.ndarray]:
    """Facts that say nothing of the truth."""
    rng = np.random.default_rng(seed)
    facts = [{"slices": float(rng.integers(40, 65)), "height": 512.0, "noise": rng.normal()} for _ in range(count)]
    return facts, np.arange(count) % 2 == 0


def test_a_label_told_by_the_size_of_pictures_is_a_shortcut():
    facts, truth = file_facts(40)
    for one, it in zip(facts, truth, strict=True):
        one["height"] = 512.0 if it else 768.0
    found = find_shortcut("presence", facts, truth, [str(k) for k in range(40)])
    assert found is not None
    assert (found.fact, found.suspect) == ("height", True)
    assert found.fact_auc == 1


@pytest.mark.parametrize("seed", range(3))
def test_facts_that_say_nothing_are_no_shortcut(seed: int):
    facts, truth = file_facts(40, seed)
    found = find_shortcut("presence", facts, truth, [str(k) for k in range(40)])
    assert found is not None
    assert not found.suspect


def test_of_few_patients_no_shortcut_is_asked():
    facts, truth = file_facts(40)
    assert find_shortcut("presence", facts, truth, [str(k % 16) for k in range(40)]) is None
    assert find_shortcut("presence", facts[:18], truth[:18], [str(k) for k in range(18)]) is None


def test_chance_falls_with_scans_and_with_auc():
    few, many = np.arange(20) % 2 == 0, np.arange(200) % 2 == 0
    assert chance_of(0.5, few) == pytest.approx(0.5)
    assert chance_of(0.8, many) < chance_of(0.8, few) < chance_of(0.7, few)
    # 10 of each: variance 2 · 21 / 1200 = 0.035, so .8 is 1.6036 standard deviations up
    assert chance_of(0.8, few) == pytest.approx(0.05440, abs=1e-4)


def test_a_jpeg_quality_that_goes_with_the_label_is_reported(sound_studies, tmp_path: Path):
    root = shutil.copytree(sound_studies["jpeg", 1], tmp_path / "study")
    for scan in root.glob("*/covid/*"):
        for file in scan.iterdir():
            Image.open(file).save(file, quality=80)
    report = check(read_study(root), machine=ONE)
    shortcuts = [finding for finding in report.findings if finding.kind == "shortcut"]
    assert [finding.weight for finding in shortcuts] == ["warning"]
    assert "presence is told from file facts alone with AUC 1.00" in shortcuts[0].text
    assert report.exit_code == 0
