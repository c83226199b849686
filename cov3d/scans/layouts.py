"""Folders of known data sets, each recognised by its own structure; where masks lie, and what the labels mean."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from cov3d.console import few, plural
from cov3d.errors import Cov3dError, StudyError
from cov3d.labels import SEVERITY_TABLES, UNKNOWN, parse_outcome, parse_presence
from cov3d.scans.read import find_scans, lost_scans, scan_name
from cov3d.scans.severity_table import grade
from cov3d.scans.study import CLASS_FOLDERS, PARTITIONS, TEST, TRAIN, Findings, Row, name_below
from cov3d.tables import SUFFIXES, read_columns

# The tables of severity of COV19-CT-DB's 2023 edition, by split; columns as in those of 2022.
EXCEL_SEVERITY_TABLES = {
    "train": "ICASSP_severity_train_partition.xlsx",
    "validation": "ICASSP_severity_validation_partition.xlsx",
}
VOLUME_AND_MASK = re.compile(r"(volume-covid19-.+)_(ct|seg)\.nii(\.gz)?", re.IGNORECASE)
GRADE_FOLDER = re.compile(r"CT-([0-4])", re.IGNORECASE)
MASKS = "masks"  # a folder of COV19-CT-DB, beside its partitions, and of STOIC, beside its scans
MASK = re.compile(r"(.+)_mask\.nii(\.gz)?", re.IGNORECASE)


def find_layout(root: Path) -> Findings | None:
    """What the known data set in a folder says, or None if there is none.

    Raises:
        StudyError: the folder holds two, or a table of labels in it cannot be used.
    """
    found = {name: findings for name, layout in LAYOUTS.items() if (findings := layout(root))}
    if len(found) > 1:
        raise StudyError(f"{root}: holds {' and '.join(found)}; give each a folder, or write a table (study.csv)")
    return next(iter(found.values()), None)


def find_layout_below(root: Path) -> tuple[Path, Findings] | None:
    """The folder in ``root`` that holds a known data set, as archives nest, and what it says; None if there is none.

    Raises:
        StudyError: there are two, or scans beside it, so that nobody can say what is meant.
    """
    found = {folder: findings for folder in _folders(root) if (findings := find_layout(folder)) and findings.rows}
    if not found:
        return None
    folder = next(iter(found))
    if len(found) > 1 or any(folder not in path.parents for path in find_scans(root)):
        names = " and of ".join(folder.name for folder in found)
        beside = "" if len(found) > 1 else ", and other scans beside it"
        raise StudyError(
            f"{root}: holds the data set of {names}{beside}; name one folder, or write a table (study.csv)"
        )
    return folder, found[folder]


# COV19-CT-DB


def cov19_ct_db(root: Path) -> Findings | None:
    """``train|validation/{covid,non-covid}/<scan>`` with ``Name;Category`` tables of severity (COV19-CT-DB).

    Somebody's masks lie as the scans do: that of ``train/covid/ct_scan_3`` is ``masks/train/covid/ct_scan_3.nii.gz``, or of
    another form.
    """
    folders = list(_class_folders(root))
    if not folders:
        return None
    found = Findings()
    for split, presence, folder in folders:
        found_here = find_scans(folder)
        scans = [*found_here, *lost_scans(folder, found_here)]
        found.rows += [Row(name_below(path, root), path, presence, split=split) for path in scans]
    _find_masks(found, root)
    given: dict[str, str] = {}
    for split in SEVERITY_TABLES:
        table = _severity_table(root, split)
        if table:
            grade(found, split, table, given)
    return found


def _find_masks(found: Findings, root: Path) -> None:
    """Give the rows the masks that lie in ``masks`` as they do in ``root``."""
    folder = root / MASKS
    if not folder.is_dir():
        return
    masks = _by_name([(_stem_below(path, folder), path) for path in find_scans(folder)], root, found.problems)
    stems = [_stem_below(row.path, root) for row in found.rows]
    found.rows[:] = [replace(row, mask=masks.get(stem)) for row, stem in zip(found.rows, stems, strict=True)]
    orphans = [name_below(masks[stem], root) for stem in masks.keys() - set(stems)]
    if orphans:
        found.warnings.append(
            f"{plural(len(orphans), 'mask')} without a scan of that name, left out: {few(sorted(orphans))}"
        )


def _stem_below(path: Path, root: Path) -> str:
    """A scan's path from ``root``, without what belongs to its file form."""
    return name_below(path.with_name(scan_name(path)), root)


def _class_folders(root: Path) -> Iterator[tuple[str, int, Path]]:
    """Split, presence and folder of every ``train/covid`` and its like, and of a bare ``covid``, ``non-covid``."""
    partitions = {spelling: split for split, spellings in PARTITIONS.items() for spelling in spellings}
    folders = [(partitions[f.name.lower()], f) for f in _folders(root) if f.name.lower() in partitions]
    for split, partition in [("", root), *folders]:
        for folder in _folders(partition):
            if folder.name.lower() in CLASS_FOLDERS:
                yield split, CLASS_FOLDERS[folder.name.lower()], folder


def _severity_table(root: Path, split: str) -> Path | None:
    """The one table of a split's severities, of either edition, as CSV or Excel, in the root or in the split's folder."""
    stems = [Path(names[split]).stem for names in (SEVERITY_TABLES, EXCEL_SEVERITY_TABLES)]
    places = [root, *(folder for folder in _folders(root) if folder.name.lower() in PARTITIONS[split])]
    tables = [place / (stem + suffix) for place in places for stem in stems for suffix in SUFFIXES]
    tables = [table for table in tables if table.is_file()]
    if len(tables) > 1:
        names = " and ".join(name_below(table, root) for table in tables)
        raise StudyError(f"{root}: {names} both grade the {split} scans; keep one of them")
    return tables[0] if tables else None


# STOIC


def stoic(root: Path) -> Findings | None:
    """``data/mha/<PatientID>.mha`` with ``metadata/reference.csv`` (STOIC, https://stoic2021.grand-challenge.org).

    Scans are called by their PatientID. Its ``probSevere`` (intubated or dead within a month) is an outcome and no grade
    of what the scan shows, and has two values where severity has four: it is read as outcome, and severity stays unknown.
    Somebody's masks are ``data/masks/<PatientID>.nii.gz``, or of another form.
    """
    folder, table = root / "data" / "mha", root / "metadata" / "reference.csv"
    if not (folder.is_dir() and table.is_file()):
        return None
    found = Findings()
    files = {path.stem: path for path in _files(folder) if path.suffix.lower() == ".mha"}
    listed: set[str] = set()
    for number, (patient, covid, severe) in read_columns(table, "PatientID", "probCOVID", optional=("probSevere",)):
        where = f"{table.name} row {number} ({patient})"
        if patient in listed:
            found.problems.append(f"{where}: listed twice")
        elif patient not in files:
            found.problems.append(f"{where}: no such scan in data/mha; copy it there, or take the row out")
        else:
            try:
                presence, outcome = parse_presence(covid), parse_outcome(severe)
                found.rows.append(Row(patient, files[patient], presence, patient=patient, outcome=outcome))
            except Cov3dError as error:
                found.problems.append(f"{where}: {error}")
        listed.add(patient)
    found.rows += [Row(name, path, patient=name) for name, path in files.items() if name not in listed]
    masks = _by_name([(scan_name(path), path) for path in _files(root / "data" / MASKS)], root, found.problems)
    found.rows[:] = [replace(row, mask=masks.get(row.patient)) for row in found.rows]
    unlisted = [path.name for name, path in files.items() if name not in listed]
    if unlisted:
        found.warnings.append(f"{len(unlisted)} scans have no row in {table.name}, so no label: {few(unlisted)}")
    return _with_others_named(found, root)


# COVID-19-20


def covid_19_20(root: Path) -> Findings | None:
    """``Train/volume-covid19-A-0xxx_ct.nii.gz`` beside ``…_seg.nii.gz``, and ``Validation/…_ct.nii.gz`` (COVID-19-20).

    Everybody in it has COVID-19. Its validation scans have no published masks, so nothing can be chosen by them: they are
    test scans here, and what chooses is held out of ``Train``. Source: https://covid-segmentation.grand-challenge.org
    """
    found = Findings()
    recognised = False
    for folder in _folders(root):
        split = {"train": TRAIN, "validation": TEST}.get(folder.name.lower())
        files = _files(folder) if split else []
        matches = [(match, path) for path in files if (match := VOLUME_AND_MASK.fullmatch(path.name))]
        if not split or not matches:
            continue
        recognised = True
        of_kind = {k: [(m[1], path) for m, path in matches if m[2].lower() == k] for k in ("ct", "seg")}
        volumes, masks = (_by_name(pairs, root, found.problems) for pairs in of_kind.values())
        for name, path in volumes.items():
            if split == TRAIN and name not in masks:
                found.problems.append(f"{name_below(path, root)}: has no mask {name}_seg.nii.gz beside it")
            found.rows.append(Row(name_below(path, root), path, 1, split=split, mask=masks.get(name)))
        found.problems += _orphans(masks, volumes, root)
    return _with_others_named(found, root) if recognised else None


# MosMed


def mosmed(root: Path) -> Findings | None:
    """``studies/CT-0…CT-4/study_0xxx.nii.gz`` with a few ``masks/study_0xxx_mask.nii.gz`` (MosMedData, arXiv 2005.06465).

    CT-0 is no sign of COVID-19, CT-1 to CT-4 are mild to critical.
    """
    grades = {path: int(m[1]) for path in _folders(root / "studies") if (m := GRADE_FOLDER.fullmatch(path.name))}
    if not grades:
        return None
    found = Findings()
    files = [path for folder in (*grades, root / "masks") for path in find_scans(folder)]
    pairs = [(match[1], path) for path in files if (match := MASK.fullmatch(path.name))]
    masks = _by_name(pairs, root, found.problems)
    volumes = _by_name(
        [(scan_name(path), path) for path in files if not MASK.fullmatch(path.name)], root, found.problems
    )
    for name, path in volumes.items():
        grade = next((grade for folder, grade in grades.items() if folder in path.parents), None)
        if grade is None:
            continue  # a scan among the masks; it is named with the others that are left out
        presence, severity = (1, grade) if grade else (0, UNKNOWN)
        found.rows.append(Row(name_below(path, root), path, presence, severity, mask=masks.get(name)))
    found.problems += _orphans(masks, volumes, root)
    return _with_others_named(found, root)


# Of several


LAYOUTS: dict[str, Callable[[Path], Findings | None]] = {
    "COV19-CT-DB": cov19_ct_db,
    "STOIC": stoic,
    "COVID-19-20": covid_19_20,
    "MosMed": mosmed,
}


def _by_name(pairs: Iterable[tuple[str, Path]], root: Path, problems: list[str]) -> dict[str, Path]:
    """Files by the name of their scan; a name that two have is a problem."""
    named: dict[str, Path] = {}
    for name, path in pairs:
        if named.setdefault(name, path) != path:
            problems.append(f"{name_below(named[name], root)} and {name_below(path, root)} are both {name}; keep one")
    return named


def _orphans(masks: dict[str, Path], volumes: dict[str, Path], root: Path) -> list[str]:
    return [f"{name_below(path, root)}: is a mask without its scan" for k, path in masks.items() if k not in volumes]


def _with_others_named(found: Findings, root: Path) -> Findings:
    """The findings, with a warning about scans that lie where the layout has none."""
    known = {path for row in found.rows for path in (row.path, row.mask)}
    others = [name_below(path, root) for path in find_scans(root) if path not in known]
    if others and not found.problems:
        found.warnings.append(f"{len(others)} scans lie outside the data set's folders and are left out: {few(others)}")
    return found


def _entries(root: Path) -> list[os.DirEntry[str]]:
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:  # not there, or not ours to look into
        return []
    return [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]


def _folders(root: Path) -> list[Path]:
    others = [Path(entry.path) for entry in _entries(root) if not entry.is_file(follow_symlinks=False)]
    return [path for path in others if path.is_dir()]


def _files(root: Path) -> list[Path]:
    return [path for path in (Path(entry.path) for entry in _entries(root)) if not path.is_dir()]
