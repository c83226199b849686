"""Faults met by the commands, by section of docs/reference/bad-inputs.md: exit codes, rows with causes, what is never said."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from conftest import make_study, smooth_volume, write_nifti, write_slices
from PIL import Image

from cov3d import NetSettings, Preprocessing, build, load_model, read_study, save_model
from cov3d import console as talk
from cov3d.cli import app
from cov3d.errors import ModelError
from cov3d.forms import write_dicom, write_mha
from cov3d.predictions import Prediction, write_predictions
from cov3d.tables import FORMULA_STARTS

VOLUME = smooth_volume(8, 32)
HU = (smooth_volume(12, 16).astype(np.int16) * 6 - 1000).clip(-1000, 500).astype(np.int16)
TINY = (
    "--width",
    "32",
    "--base-width",
    "4",
    "--penultimate",
    "8",
    "--epochs",
    "1",
    "--workers",
    "1",
    "--device",
    "cpu",
)
ONE = ("--workers", "1", "--device", "cpu")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@dataclass(frozen=True)
class Run:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence of a command that failed."""
        assert "Traceback" not in self.err
        return self.err.strip().splitlines()[-1]


@pytest.fixture
def cov3d(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A function that runs a command here, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()

    def run(*words: object) -> Run:
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in words])
        return Run(int(ended.value.code or 0), *capfd.readouterr())

    yield run
    talk.set_quiet(False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    net = NetSettings(base_width=4, penultimate=8)
    torch.manual_seed(0)
    return save_model(tmp_path / "model.safetensors", build(net), net, Preprocessing(width=32), "both", {})


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# A, K: names

NAMES = [
    *("line\nbreak", "carriage\rreturn", "tab\tstop", "\x1b[31mred", "\x07bell", "\u202edrow", "trailing ", "end\n"),
    *("scan[/]", "[bold]loud", "<b>loud", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "back\\slash"),
    *("=cmd|' C calc'!A0", "+1", "-2", "--help", "@x", "'quoted", 'quo"te', "a;b,c", "%s{0}", "n" * 255, "~", "$HOME"),
    os.fsdecode(b"no\xffUTF-8"),
]


def study_of_names(root: Path) -> Path:
    for number, name in enumerate(NAMES):
        volume = smooth_volume(3, 32, seed=number)
        write_slices(root / "validation" / ("covid" if number % 2 else "non-covid") / name, volume)
    return root


def check_said(run: Run) -> None:
    """Nothing but text and line ends reaches the terminal, and no name breaks a line."""
    assert CONTROL.findall(run.out + run.err) == []
    assert not [line for line in run.err.splitlines() if line.startswith(("break", "return"))]


def test_any_name_goes_the_whole_way(cov3d: Callable[..., Run], tmp_path: Path, model: Path):
    study = study_of_names(tmp_path / "study")
    runs = [
        cov3d("preprocess", "study", "--width", 32, "--workers", 1),
        cov3d("infer", "study", "--model", model, "--submission", "lists", *ONE),
    ]
    answered = rows_of(tmp_path / "predictions.csv")
    runs += [
        cov3d("infer", "study", "--model", model, "--resume", *ONE),
        cov3d("evaluate", "predictions.csv", "study"),
    ]
    for run in runs:
        check_said(run)
        assert run.code == 0, run.err
    assert f"{len(NAMES)} made, 0 kept, 0 failed, {len(NAMES)} asked" in runs[0].out
    assert f"{len(NAMES)} of {len(NAMES)} labelled scans answered" in runs[3].out
    rows = rows_of(tmp_path / "predictions.csv")
    assert [row["seconds"] for row in rows] == [row["seconds"] for row in answered]  # nothing is done twice
    (manifest,) = tmp_path.glob("cache/*/manifest.csv")
    assert len(rows) == len(rows_of(manifest)) == len(read_study(study).rows) == len(NAMES)
    for row in [*rows, *rows_of(manifest)]:
        assert not any(str(cell).startswith(FORMULA_STARTS) for cell in row.values())
    for classes in (("covid", "non-covid"), ("mild", "moderate", "severe", "critical")):
        lists = [list(csv.reader((tmp_path / "lists" / f"{name}.csv").open(newline=""))) for name in classes]
        assert sum(map(len, lists)) == len(NAMES)


def test_any_name_is_told_in_one_line_when_its_scan_fails(cov3d: Callable[..., Run], tmp_path: Path):
    for file in study_of_names(tmp_path / "study").rglob("*.png"):
        file.write_bytes(b"")
    run = cov3d("preprocess", "study", "--width", 32, "--workers", 1, "--quiet")
    check_said(run)
    assert run.code == 1
    lines = run.err.splitlines()
    assert len(lines) == len(NAMES)
    assert all(re.fullmatch(r".*: 3 of 3 slices cannot be read \(0\.png is empty .*", line) for line in lines)
    (failures,) = tmp_path.glob("cache/*/failures.csv")
    assert len(rows_of(failures)) == len(NAMES)


def test_no_name_is_markup_on_a_terminal(capfd: pytest.CaptureFixture):
    with talk._bar(len(NAMES), "infer [/]", 0) as step:
        for name in [*NAMES, "[/]", "[link=file:///etc/passwd]x", "\\", "[\\"]:
            step(name)


# A to D: bad scans beside good ones


def edited(folder: Path, only: Callable[[int], bool] = lambda index: True, **elements: object) -> Path:
    """A DICOM series with other elements in its headers, slice 0 at the head; None takes an element out."""
    write_dicom(folder, HU, (2.0, 1.0, 1.0), seed=len(folder.name))
    files = sorted(folder.iterdir(), key=lambda file: -float(pydicom.dcmread(file).ImagePositionPatient[2]))
    for index, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        for name, value in elements.items() if only(index) else ():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value(index) if callable(value) else value)
        dataset.save_as(file)
    return folder


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def emptied(folder: Path, numbers: tuple[int, ...]) -> None:
    for number in numbers:
        (write_slices(folder, VOLUME) if number == numbers[0] else folder).joinpath(f"{number}.png").write_bytes(b"")


def twice(folder: Path) -> None:
    shutil.copy(write_slices(folder, VOLUME) / "1.png", folder / "0001.png")


def mixed(folder: Path) -> None:
    write_slices(folder, VOLUME)
    Image.new("L", (16, 16)).save(folder / "0.png")


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def without(folder: Path, index: int) -> None:
    sorted(folder.iterdir(), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))[index].unlink()


def cut_all(folder: Path) -> None:
    for file in folder.iterdir():
        cut(file, 0.8)


def checksum(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))


TILT = [1, 0, 0, 0, np.cos(0.35), -np.sin(0.35)]
# A scan's name, how it is made, and what its row says.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a1 slices, two of eight empty": (lambda p: emptied(p, (2, 3)), "2 of 8 slices cannot be read (2.png is empty"),
    "a2 slices, one number twice": (twice, "slice number 1 stands twice: 0001.png, 1.png"),
    "a3 slices, one of eight smaller": (mixed, "1 of 8 slices cannot be read (not 32×32 as the others: 0.png)"),
    "a4 slices and a volume": (lambda p: write_nifti(write_slices(p, VOLUME) / "ct.nii", HU), "holds several scans"),
    "b1.nii": (lambda p: cut(write_nifti(p, HU)), "is truncated: "),
    "b2.nii.gz": (lambda p: checksum(write_nifti(p, HU)), "is damaged: its checksum is wrong"),
    "b3.nii": (
        lambda p: nib.save(nib.Nifti1Image(np.stack([HU, HU], -1), np.eye(4)), p),
        "expected a volume of three dimensions, got (12, 16, 16, 2)",
    ),
    "b4.nii.gz": (lambda p: written(p, gzip.compress(b"<html>")), "is a web page or XML"),
    "b5.nii": (lambda p: written(p, b""), "is empty (zero bytes)"),
    "c1.mha": (lambda p: cut(write_mha(p, HU, (2.0, 1.0, 1.0))), "is truncated"),
    "d1 one missing": (lambda p: without(edited(p), 5), "1 slice missing: 4.00 mm between"),
    "d2 tilted": (
        lambda p: edited(p, ImageOrientationPatient=TILT, ImagePositionPatient=lambda k: [0, 0, -2.0 * k]),
        "the gantry was tilted: slices move 20.1 degrees",
    ),
    "d3 no CT": (lambda p: edited(p, Modality="MR"), "not of modality CT (12)"),
    "d4 no positions": (lambda p: edited(p, ImagePositionPatient=None), "without ImagePositionPatient"),
    "d5 no spacing": (lambda p: edited(p, PixelSpacing=None), "without PixelSpacing in mm"),
    "d6 all cut": (lambda p: cut_all(edited(p)), "12 of 12 slices cannot be read"),
    "d7 two patients": (
        lambda p: edited(p, lambda k: k > 5, PatientID="OTHER", SeriesInstanceUID="1.2.3"),
        "holds images of several patients",
    ),
    "d8 coronal": (
        lambda p: edited(p, ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=lambda k: [0, 2.0 * k, 0]),
        "holds only coronal images",
    ),
    "e1.zip": (lambda p: written(p, b"PK\3\4 and no more"), ""),
    "e2 nothing": (Path.mkdir, "no scan found"),
    "e3 gone": (lambda p: None, "is not there"),
}  # fmt: skip
# The others are only scans because somebody asks for them; a zip may be what was meant.
FOUND = [name for name in BAD if not name.startswith("e") or name.endswith(".zip")]


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """All bad scans, and three good ones between them."""
    folder = tmp_path / "hospital"
    folder.mkdir()
    for name, (make, _) in BAD.items():
        make(folder / name)
    for number, name in enumerate(("a5 good", "b6 good", "d9 good")):
        write_slices(folder / name, smooth_volume(8, 32, seed=number))
    return folder


def test_every_bad_scan_costs_one_row_of_the_answers_and_changes_no_other(
    cov3d: Callable[..., Run], hospital: Path, model: Path
):
    asked = sorted([*BAD, "a5 good", "b6 good", "d9 good"])
    run = cov3d("infer", *(hospital / name for name in asked), "--model", model, *ONE)
    rows = rows_of(Path("predictions.csv"))
    assert run.code == 3
    assert f"3 answered, {len(BAD)} failed, {len(asked)} asked" in run.out
    assert [Path(row["path"]).name for row in rows] == asked
    for row in rows:
        said = BAD.get(Path(row["path"]).name, (None, None))[1]
        assert (said is None) == (row["error"] == "") == (row["covid_probability"] != "")
        assert said is None or said in row["error"], row
        assert run.err.count(f"{row['path']}: {row['error']}\n") == (said is not None)
    cov3d(
        "infer", *(hospital / f"{name} good" for name in ("a5", "b6", "d9")), "--model", model, "-o", "good.csv", *ONE
    )
    alone = {row["path"]: row["covid_probability"] for row in rows_of(Path("good.csv"))}
    assert alone == {row["path"]: row["covid_probability"] for row in rows if not row["error"]}


def test_every_bad_scan_costs_one_row_of_the_failures(cov3d: Callable[..., Run], hospital: Path):
    run = cov3d("preprocess", hospital, "--width", 32, "--workers", 1)
    assert run.code == 3
    assert f"3 made, 0 kept, {len(FOUND)} failed, {len(FOUND) + 3} asked" in run.out
    (failures,) = Path().glob("cache/*/failures.csv")
    causes = {row["scan"]: row["message"] for row in rows_of(failures)}
    assert sorted(causes) == sorted(FOUND)
    for name in FOUND:
        assert BAD[name][1] in causes[name]
        assert f"{name}: {causes[name]}\n" in run.err
    again = cov3d("preprocess", hospital, "--width", 32, "--workers", 1)
    assert f"0 made, 3 kept, {len(FOUND)} failed" in again.out


def test_a_folder_of_bad_scans_only_is_a_failure(cov3d: Callable[..., Run], hospital: Path, model: Path):
    run = cov3d("infer", hospital / "b1.nii", hospital / "e3 gone", "--model", model, *ONE)
    assert (run.code, run.out) == (1, "predictions.csv: 0 answered, 2 failed, 2 asked\n")


# H: tables and splits

TABLES = {
    "a scan outside": (
        "scan,presence\n../../etc/passwd,1\n",
        "row 2: '../../etc/passwd' leads out of the table's folder",
    ),
    "scans that are not there": (
        "scan,presence\n" + "".join(f"scan_{k},1\n" for k in range(90, 100)),
        "10 faults: row 2: 'scan_90' is not there; row 3: .*; and 5 more",
    ),
    "a label that is none": ("scan,presence\nscan_0,5\n", "row 2: presence '5' is not one of 0, 1, non-covid, covid"),
    "two labels": ("scan,presence\nscan_0,1\nscan_0,0\n", "scan_0: listed twice, with different labels"),
    "no column of scans": ("file;label\nscan_0;1\n", "expected a column 'scan' .* found file, label"),
    "a header only": ("scan,presence\n", "has a header and no rows"),
    "nothing": ("", "the table is empty; expected a header and rows below it"),
    "a row too short": ("scan,presence\nscan_0\n", "expected 2 cells in every row"),
}


@pytest.mark.parametrize("fault", TABLES)
@pytest.mark.parametrize("command", ["preprocess", "train"])
def test_a_wrong_table_is_one_sentence_and_nothing_is_made(
    cov3d: Callable[..., Run], tmp_path: Path, fault: str, command: str
):
    content, said = TABLES[fault]
    write_slices(tmp_path / "scan_0", VOLUME)
    (tmp_path / "table.csv").write_text(content)
    run = cov3d(command, "table.csv", "--width", 32)
    assert (run.code, run.out) == (1, "")
    assert re.search(rf"^error: table\.csv: .*{said}", run.error)
    assert {path.name for path in tmp_path.iterdir()} == {"scan_0", "table.csv"}


SPLITS = {
    "a patient on both sides": (
        ["1,train,p", "0,train,q", "1,validation,p", "0,validation,r"],
        "1 patients have scans",
    ),
    "one class": (["1,train,", "1,train,", "1,validation,", "0,validation,"], "no training scan is non-covid"),
    "nothing to choose by": (["1,,", "0,,"], "no scan is left to choose the best epoch by"),
    "no labels": ([",,", ",,"], "no training scan has a known presence"),
    "tests only": (["1,test,", "0,test,"], "no training scan has a known presence"),
}


@pytest.mark.parametrize("fault", SPLITS)
def test_a_study_that_cannot_be_trained_says_so_before_any_work(cov3d: Callable[..., Run], tmp_path: Path, fault: str):
    lines, said = SPLITS[fault]
    for number in range(len(lines)):
        write_slices(tmp_path / f"scan_{number}", VOLUME)
    rows = "".join(f"scan_{number},{line}\n" for number, line in enumerate(lines))
    (tmp_path / "study.csv").write_text(f"scan,presence,split,patient\n{rows}")
    run = cov3d("train", "--task", "presence", *TINY)
    assert (run.code, run.out) == (1, "")
    assert said in run.error
    assert not (tmp_path / "cache").exists() and not (tmp_path / "outputs").exists()


# J: models and weights


class Payload:
    """Whoever unpickles it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def zipped(path: Path, name: str, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


def tarred(path: Path, name: str, data: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


def numpy_objects(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Payload()], dtype=object), allow_pickle=True)


def torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Payload())),
    "an old pickle": lambda path: path.write_bytes(pickle.dumps(Payload(), 0)),
    "a checkpoint": lambda path: torch.save({"state_dict": Payload()}, path),
    "a legacy checkpoint": lambda path: torch.save([Payload()], path, _use_new_zipfile_serialization=False),
    "a learner, as fastai exports it": lambda path: torch.save(
        {"model": torch.nn.Linear(1, 1), "dls": Payload()}, path
    ),
    "a joblib dump": lambda path: joblib.dump({"a": Payload()}, path),
    "a packed joblib dump": lambda path: joblib.dump({"a": Payload()}, path, compress=3),
    "an array of objects": numpy_objects,
    "a zip in a zip": lambda path: zipped(path, "archive/data.pkl", torch_bytes(Payload())),
    "a zip of a pickle": lambda path: zipped(path, "archive/data.pkl", pickle.dumps(Payload())),
    "a tar of a pickle": lambda path: tarred(path, "storages", pickle.dumps(Payload())),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_would_run_code_is_refused_by_every_command(cov3d: Callable[..., Run], tmp_path: Path, kind: str):
    HOSTILE[kind](tmp_path / "evil.pkl")
    make_study(tmp_path / "study", per_class=2, slices=2)
    for command in (
        ["infer", "study", "--model", "evil.pkl"],
        ["train", "study", "--weights", "evil.pkl", "--task", "presence", *TINY],
    ):
        run = cov3d(*command)
        assert (run.code, run.out) == (1, "")
        assert run.error.startswith("error: evil.pkl ")
        assert "weights_only" not in run.err
        assert not (tmp_path / "ran").exists()
        assert not (tmp_path / "cache").exists()


def test_the_payload_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))  # noqa: S301
    assert (tmp_path / "ran").exists()


def test_no_mutated_model_is_loaded(model: Path, tmp_path: Path):
    """Bits flipped, bytes zeroed, cut out, put in, and files cut short, at 200 places."""
    data = model.read_bytes()
    rng = np.random.default_rng(0)
    mutated = tmp_path / "mutated.safetensors"
    header = 8 + int.from_bytes(data[:8], "little")
    for number in range(200):
        place = int(rng.integers(0, header if number % 2 else len(data)))
        changed = {
            0: data[:place] + bytes([data[place] ^ 1 << number % 8]) + data[place + 1 :],
            1: data[:place] + bytes(64) + data[place + 64 :],
            2: data[:place] + data[place + 9 :],
            3: data[:place] + b'"x":1,' + data[place:],
            4: data[:place],
        }[number // 2 % 5]
        if changed == data:
            continue
        mutated.write_bytes(changed)
        with pytest.raises(ModelError):
            load_model(mutated)


# K: answers


def test_a_model_decides_how_scans_are_prepared(cov3d: Callable[..., Run], model: Path):
    assert cov3d("infer", "scans", "--model", model, "--width", 64).code == 2


def test_answers_that_are_all_the_same_are_wondered_at(cov3d: Callable[..., Run], tmp_path: Path, model: Path):
    for number in range(3):
        write_slices(tmp_path / "scans" / f"copy_{number}", VOLUME)
    assert "all scans have the same answer, to the last digit" in cov3d("infer", "scans", "--model", model, *ONE).err
    write_slices(tmp_path / "scans" / "another", 255 - VOLUME)
    assert "the same answer" not in cov3d("infer", "scans", "--model", model, "-o", "p.csv", *ONE).err


def test_an_earlier_table_is_gone_on_with_or_left_alone(cov3d: Callable[..., Run], hospital: Path, model: Path):
    infer = ("infer", hospital / "a5 good", hospital / "b1.nii", "--model", model, *ONE)
    assert cov3d(*infer).code == 3
    before = Path("predictions.csv").read_bytes()
    refused = cov3d(*infer)
    assert (refused.code, Path("predictions.csv").read_bytes()) == (2, before)
    assert "say --resume to go on with it" in refused.error
    assert "was made with other models or settings" in cov3d(*infer, "--resume", "--no-tta").error
    write_nifti(hospital / "b1.nii", HU)
    resumed = cov3d(*infer, "--resume")
    assert (resumed.code, resumed.out) == (0, "predictions.csv: 2 answered, 0 failed, 2 asked\n")


def test_a_line_torn_within_a_name_is_done_again(cov3d: Callable[..., Run], tmp_path: Path, model: Path):
    for number, name in enumerate(("a", "b\nc")):
        write_slices(tmp_path / "scans" / name, smooth_volume(3, 32, seed=number))
    infer = ("infer", "scans", "--model", model, *ONE)
    cov3d(*infer)
    table = tmp_path / "predictions.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[: whole.rindex(b'"b\n') + 3])  # as a kill may leave it
    run = cov3d(*infer, "--resume")
    assert "ended within a line; that scan is done again" in run.err
    assert [row["scan"] for row in rows_of(table)] == ["a", "b\nc"]
    assert table.read_bytes().startswith(whole[: whole.rindex(b'"b\n')])


# L: scores, and what is never written

GRADES = (0.7, 0.1, 0.1, 0.1)
SCORED = {
    "one class": ([(0.9, 1), (0.2, 1), (0.6, 1)], ["(n=3)", "AUC        n/a (scans of one class only)"]),
    "one scan": ([(0.9, 1)], ["(n=1)", "macro F1   1.0000, no interval: a class has one scan", "AUC        n/a"]),
    "ties": ([(0.5, 1), (0.5, 0), (0.5, 1), (0.5, 0)], ["(n=4)", "AUC        0.5000"]),
    "a failed scan": ([(None, 1), (0.9, 1), (0.2, 0)], ["2 of 3 labelled scans answered", "(n=2)"]),
}


def predicted(study: Path, answers: list[tuple[float | None, int]]) -> None:
    """A study of scans with labels, and a table of answers to them."""
    lines = ["scan,presence"]
    predictions = []
    for number, (covid, presence) in enumerate(answers):
        scan = write_slices(study / f"scan_{number}", VOLUME[:1])
        lines.append(f"scan_{number},{presence}")
        answer = {"error": "is damaged"} if covid is None else {"covid": covid, "severity": GRADES}
        predictions.append(Prediction(scan.name, scan.as_posix(), **answer))
    (study / "study.csv").write_text("\n".join(lines) + "\n")
    write_predictions("p.csv", predictions)


@pytest.mark.parametrize("case", SCORED)
def test_scores_that_are_not_defined_say_so(cov3d: Callable[..., Run], tmp_path: Path, case: str):
    answers, said = SCORED[case]
    predicted(tmp_path / "study", answers)
    run = cov3d("evaluate", "p.csv", "study")
    assert run.code == 0, run.err
    for words in said:
        assert words in run.out
    assert "nan" not in run.out and "NaN" not in Path("p-metrics.json").read_text()


@pytest.mark.parametrize("cell", ["nan", "inf", "-0.1", "1.5", "high", "0,5"])
def test_a_cell_that_is_no_probability_is_refused(cov3d: Callable[..., Run], tmp_path: Path, cell: str):
    predicted(tmp_path / "study", [(0.9, 1), (0.25, 0)])
    table = Path("p.csv").read_text()
    Path("p.csv").write_text(table.replace("0.250000", f'"{cell}"'))
    run = cov3d("evaluate", "p.csv", "study")
    assert (run.code, run.out) == (1, "")
    assert "p.csv: row 3" in run.error


def test_debug_shows_where_and_not_what(cov3d: Callable[..., Run], tmp_path: Path):
    assert app.pretty_exceptions_enable is False  # Typer's own may show the values of variables
    secret = tmp_path / "study"
    edited(secret / "scan", PatientName="DOE^JANE", PatientID="DOE-1", RescaleSlope=0)
    write_slices(secret / "good", VOLUME)
    run = cov3d("preprocess", "study", "--width", 32, "--workers", 1, "--debug")
    assert run.code == 3 and "RescaleSlope 0" in run.err
    (secret / "study.csv").write_text("scan,presence\n")
    with pytest.raises(Exception, match="no rows") as caught:
        app(["preprocess", "study", "--debug"])
    assert "DOE" not in run.err + "".join(traceback.format_exception(caught.value))


OFFLINE = """
import os, socket
real = socket.socket.connect
def tried(*_, **__):
    with open(os.environ["TRIED"], "a") as file:
        file.write("tried")
    raise OSError("there is no network")
def connect(self, address):
    return real(self, address) if self.family == socket.AF_UNIX else tried()
socket.socket.connect, socket.getaddrinfo, socket.create_connection = connect, tried, tried
"""
WAY = """
import sys
from cov3d.cli import app
for command in sys.argv[1:]:
    try: app(command.split())
    except SystemExit as ended: assert ended.code == 0, command
"""


def test_the_whole_way_needs_no_network_and_writes_no_place(tmp_path: Path):
    """In processes without a network; nothing that is written says in which folder they worked."""
    here = tmp_path / "DOE_JANE"
    here.mkdir()
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    tiny = " ".join(TINY)
    commands = (
        "phantom study --scans 12 --size 32 --format nifti",
        "preprocess study --width 32",
        f"train study --task presence --batch-size 64 {tiny}",
        "infer study/validation --device cpu",
        "evaluate predictions.csv study",
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "TRIED": str(tmp_path / "tried")}
    subprocess.run([sys.executable, "-c", WAY, *commands], cwd=here, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "tried").exists()
    written_files = [file for file in here.rglob("*") if file.is_file()]
    assert {"presence.safetensors", "predictions.csv.json", "manifest.csv"} <= {file.name for file in written_files}
    assert [file for file in written_files if b"DOE_JANE" in file.read_bytes()] == []
    assert json.loads((here / "predictions.csv.json").read_text())["scans"]


def test_the_page_of_bad_inputs_names_tests_that_exist():
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "reference" / "bad-inputs.md").read_text(encoding="utf-8")
    tests = "".join(file.read_text(encoding="utf-8") for file in (root / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 100
    assert {name for name in named if f"def {name}(" not in tests} == set()
