"""Studies of drawn chests, laid out as COV19-CT-DB, in the forms that scans come in."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cov3d import console
from cov3d.chest import SMALLEST, draw
from cov3d.commit import TEMPORARY_PREFIX, commit_json, commit_text
from cov3d.errors import Cov3dError, SettingError
from cov3d.forms import FORMS, Form, write_nifti
from cov3d.labels import PRESENCE, SEVERITY, SEVERITY_TABLES

SLICES = (40, 64)  # a scan of a study has so many, whatever its class
RECORD = "phantom.json"  # tells a drawn study from a patients' one, which is never overwritten
MASKS = "masks"  # folder of the lesions, laid out as the scans
PLACE = re.compile(rf"({'|'.join(SEVERITY_TABLES)})/({'|'.join(PRESENCE)})/ct_scan_?[0-9]+")  # of a scan in the study


@dataclass(frozen=True)
class _Plan:
    """One scan of a study: what is drawn, and what folder and table say of it. Severity 0 is a negative."""

    partition: str
    drawn: int
    said: int
    annotated: bool
    path: str = ""  # in the study, without what its form adds


def write_study(
    folder: str | Path,
    scans: int = 60,
    format: Literal["jpeg", "nifti", "dicom", "mha", "nrrd"] = "jpeg",
    seed: int = 0,
    labels: Literal["true", "random"] = "true",
    size: int = 128,
    validation: float = 1 / 3,
    annotated: float = 0.75,
    overwrite: bool = False,
) -> Path:
    """Draw a study laid out as COV19-CT-DB: ``{train,validation}/{covid,non-covid}/ct_scan_<n>`` and two severity tables.

    Half of the scans are negative, the positives spread evenly over the severities. ``validation`` is the share of scans
    held out, ``annotated`` the share of positives whose severity the tables tell. With ``labels="random"`` folders and
    tables say nothing of what is drawn: whoever learns more than chance from them has cheated. Whatever the form, the lesions
    of each scan are ``masks/<partition>/<class>/ct_scan_<n>.nii.gz``, 0 and 1, and lie on it. Returns the folder.

    Raises:
        SettingError: an impossible setting, or too few scans for negatives and positives in both partitions.
        Cov3dError: the folder is not empty; or, with ``overwrite``, it holds a study that was not drawn.
    """
    _check(scans, format, seed, labels, size, validation, annotated)
    folder, form = Path(folder), FORMS[format]
    _make_room(folder, overwrite)
    plans = _name(_plan(seed, scans, validation, annotated, labels), seed)
    settings = {"scans": scans, "format": format, "seed": seed, "labels": labels, "size": size}
    commit_json(folder / RECORD, {**settings, "drawn": [plan.path for plan in plans]})
    tables = {partition: ["Name;Category"] for partition in SEVERITY_TABLES}
    with console.progress(scans, "drawing") as step:
        for index, plan in enumerate(plans, 1):  # numpy takes [s, 0] for s
            rng = np.random.default_rng([seed, index])
            chest = draw([seed, index], plan.drawn, size, int(rng.integers(*SLICES, endpoint=True)))
            form.write(folder / f"{plan.path}{form.suffix}", chest.hu, chest.spacing, rng)
            write_nifti(_mask_of(folder, plan.path), chest.lesions.astype(np.uint8), chest.spacing)
            name = Path(plan.path).name
            if plan.annotated:
                tables[plan.partition].append(f"{name};{plan.said}")
            step(name)
    for partition, lines in tables.items():
        commit_text(folder / SEVERITY_TABLES[partition], "\n".join(lines) + "\n")
    return folder


def _check(scans: int, format: str, seed: int, labels: str, size: int, validation: float, annotated: float) -> None:
    held_out = round(scans * validation) if 0 < validation < 1 else 0
    if format not in FORMS:
        raise SettingError(f"--format {format!r} is not one of {', '.join(FORMS)}")
    if labels not in ("true", "random"):
        raise SettingError(f"--labels {labels!r} is not one of true, random")
    if seed < 0:
        raise SettingError(f"--seed {seed} is negative; choose 0 or more")
    if size < SMALLEST:
        raise SettingError(f"--size {size} is too small for a chest; choose {SMALLEST} or more")
    if not 0 <= annotated <= 1:
        raise SettingError(f"--annotated {annotated:g} is no share of the positives; expected 0 to 1")
    if scans < 8 or min(held_out, scans - held_out) < 2:
        raise SettingError(
            f"--scans {scans} with --validation {validation:.2g} leaves a partition without negatives or positives; "
            "ask for at least 8 scans, more if the share is far from a half"
        )


def _make_room(folder: Path, overwrite: bool) -> None:
    """Remove a study that was drawn here before, and nothing else."""
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"{folder} is a file; name a new folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise SettingError(
            f"{folder} is not empty; name a new folder, or say --overwrite to replace a study drawn there"
        )
    drawn = _drawn_files(folder)
    files = [path for part in (*SEVERITY_TABLES, MASKS) for path in (folder / part).rglob("*") if path.is_file()]
    foreign = [path for path in files if path not in drawn and not path.name.startswith(TEMPORARY_PREFIX)]
    if foreign:
        raise Cov3dError(f"{foreign[0]} was not drawn by cov3d, so nothing is overwritten; name a new folder")
    for path in drawn:
        path.unlink()
    for place in {path.parent for path in drawn}:  # an empty folder would be a scan without slices
        if not any(place.iterdir()):
            place.rmdir()


def _drawn_files(folder: Path) -> set[Path]:
    """Every file of the study that the record in ``folder`` says was drawn there.

    Raises:
        Cov3dError: there is no such record, so whatever lies there is somebody's.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        form, drawn = FORMS[record["format"]], record["drawn"]
        if not all(map(PLACE.fullmatch, drawn)):
            raise ValueError("places that no study has")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Cov3dError(f"{folder} was not drawn by cov3d, so nothing is overwritten; name a new folder") from error
    files = {folder / table for table in SEVERITY_TABLES.values()}
    for place in drawn:
        files |= {*_files_of(folder / place, form), _mask_of(folder, place)}
    return {path for path in files if path.is_file()}


def _mask_of(folder: Path, place: str) -> Path:
    return folder / MASKS / f"{place}.nii.gz"


def _files_of(scan: Path, form: Form) -> set[Path]:
    """The files that a scan was drawn into, and what a killed run left beside them."""
    if form.suffix:
        return {scan.with_name(f"{scan.name}{form.suffix}")}
    ours = re.compile(f"{form.members}|{re.escape(TEMPORARY_PREFIX)}.*")
    return {path for path in scan.glob("*") if ours.fullmatch(path.name)}


def _plan(seed: int, scans: int, validation: float, annotated: float, labels: str) -> list[_Plan]:
    """What is drawn and said, in an order that tells nothing."""
    rng, lot = np.random.default_rng(seed).spawn(2)
    held_out = round(scans * validation)
    plans = []
    for partition, count in (("train", scans - held_out), ("validation", held_out)):
        positives = count - count // 2
        severities = np.resize(rng.permutation(len(SEVERITY)) + 1, positives).tolist()
        plans += [_Plan(partition, 0, 0, False)] * (count // 2)
        # the first are annotated, in turn, so that the annotations too are spread evenly
        plans += [_Plan(partition, s, s, i < round(annotated * positives)) for i, s in enumerate(severities)]
    plans = [plans[i] for i in rng.permutation(scans)]
    if labels == "random":
        chests = lot.permutation([plan.drawn for plan in plans]).tolist()
        plans = [replace(plan, drawn=drawn) for plan, drawn in zip(plans, chests, strict=True)]
    return plans


def _name(plans: Sequence[_Plan], seed: int) -> list[_Plan]:
    """The same with their places in the study, in either of COV19-CT-DB's spellings."""
    rng = np.random.default_rng([seed, 2**31])
    numbers: Counter[str] = Counter()
    named = []
    for plan in plans:
        group = f"{plan.partition}/{PRESENCE[plan.said > 0]}"
        named.append(replace(plan, path=f"{group}/ct_scan{'_' if rng.random() < 0.8 else ''}{numbers[group]}"))
        numbers[group] += 1
    return named
