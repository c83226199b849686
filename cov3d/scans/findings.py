"""From the facts of a study's scans to what is wrong with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cov3d.console import few, natural
from cov3d.labels import PRESENCE, SEVERITY, UNKNOWN
from cov3d.scans.continuity import ODD, REPEATED
from cov3d.scans.crop import NO_LUNGS
from cov3d.scans.examine import Facts
from cov3d.scans.preprocess import BLANK
from cov3d.scans.shortcuts import Shortcut, find_shortcut
from cov3d.scans.study import TRAIN, Row
from cov3d.scans.turned import UNTURNED, find_turned
from cov3d.scans.twins import equal_groups, near_pairs, repeated, shared_slices

Weight = Literal["falsifies", "warning"]
SEVERE = 3  # and above
# What reading says of a scan, by a part of its text, where that is a kind of its own.
SAID = {"blank": BLANK, "damaged": ODD, "repeated": REPEATED, "no lungs": NO_LUNGS}


@dataclass(frozen=True)
class Finding:
    """Something wrong: its kind, whether it falsifies results or is to be looked at, the scans it concerns, in words."""

    kind: str
    weight: Weight
    scans: tuple[str, ...]
    text: str


def find_all(rows: Sequence[Row], facts: Mapping[str, Facts], shortcuts: Sequence[Shortcut]) -> list[Finding]:
    """Everything that is wrong with ``rows``, whose ``facts`` are known by scan; what falsifies results first."""
    shown = [row for row in rows if row.scan in facts and not facts[row.scan].blank]
    found = [*_labels(rows), *_twins(shown, [facts[row.scan] for row in shown])]
    for row in rows:
        if row.scan in facts:
            found += _of_one(row.scan, facts[row.scan])
    found += _turned(shown, [facts[row.scan] for row in shown])
    found += [_told(shortcut) for shortcut in shortcuts if shortcut.suspect]
    return sorted(found, key=lambda one: (one.weight != "falsifies", [natural(scan) for scan in one.scans[:2]]))


# Of what the study says


def _labels(rows: Sequence[Row]) -> Iterator[Finding]:
    for row in rows:
        if row.presence == 0 and row.severity != UNKNOWN:
            text = f"{row.scan} is non-covid and has a severity, {SEVERITY[row.severity - 1]}"
            yield Finding("severity", "falsifies", (row.scan,), text)
    patients: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.patient:
            patients[row.patient].append(row)
    for scans in patients.values():
        splits = _different(row.split or TRAIN for row in scans)
        if len(splits) > 1:
            names = tuple(row.scan for row in scans)
            text = f"scans of one patient lie in {' and '.join(splits)}: {few(names)}"
            yield Finding("patient", "falsifies", names, text)


def _conflicts(rows: Sequence[Row]) -> list[str]:
    """What parts scans that are one: splits and labels, in words. Scans without a split train."""
    splits = _different(row.split or TRAIN for row in rows)
    presences = _different(PRESENCE[row.presence] for row in rows if row.presence != UNKNOWN)
    severities = _different(SEVERITY[row.severity - 1] for row in rows if row.severity != UNKNOWN)
    told = (("in", splits), ("labelled", presences), ("graded", severities))
    return [f"{verb} {' and '.join(values)}" for verb, values in told if len(values) > 1]


def _different(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


# Of pairs


def _twins(rows: Sequence[Row], facts: Sequence[Facts]) -> Iterator[Finding]:
    """Scans that are one, or partly. Of equal scans only the first is compared with others."""
    hashes = [one.hashes for one in facts]
    groups = equal_groups(hashes)
    for group in groups:
        names = few([rows[index].scan for index in group])
        yield _together("same", [rows[index] for index in group], f"{len(group)} times the same slices: {names}")
    left_out = {index for group in groups for index in group[1:]}
    kept = [index for index in range(len(rows)) if index not in left_out]
    seen = set()
    for pair in shared_slices([hashes[index] for index in kept]):
        seen.add(frozenset((pair.first, pair.second)))
        one, other = rows[kept[pair.first]], rows[kept[pair.second]]
        if pair.contained:
            text = f"all {pair.shared} slices of {one.scan} are slices of {other.scan}"
        else:
            text = f"{one.scan} and {other.scan} have {pair.shared} slices in common"
        yield _together("contained" if pair.contained else "shared", [one, other], text)
    if len(kept) < 2:
        return
    for like in near_pairs(np.stack([facts[index].details for index in kept])):
        if frozenset((like.first, like.second)) not in seen:
            one, other = rows[kept[like.first]], rows[kept[like.second]]
            turn = "" if like.turn == UNTURNED else f", {like.turn}"
            text = f"{one.scan} and {other.scan} are nearly the same: correlation {like.correlation:.2f}{turn}"
            yield _together("near", [one, other], text)


def _together(kind: str, rows: Sequence[Row], text: str) -> Finding:
    conflicts = _conflicts(rows)
    told = f"{text}; {', '.join(conflicts)}" if conflicts else text
    return Finding(kind, "falsifies" if conflicts else "warning", tuple(row.scan for row in rows), told)


# Of single scans


def _of_one(scan: str, facts: Facts) -> Iterator[Finding]:
    said = [
        (next((kind for kind, part in SAID.items() if part in remark), "remark"), remark) for remark in facts.remarks
    ]
    for kind, remark in said:
        yield Finding(kind, "warning", (scan,), f"{scan}: {remark}")
    if facts.blank:
        return
    if facts.interleaved:
        text = f"{scan}: slices are more like the next but one than like the next; slices of two scans in turns?"
        yield Finding("mixed", "warning", (scan,), text)
    if facts.jumps:
        places = few([str(index + 1) for index in facts.jumps])
        text = f"{scan}: the picture jumps after slice {places} from the head; slices of another scan, or many missing?"
        yield Finding("mixed", "warning", (scan,), text)
    if (twice := repeated(facts.hashes)) and "repeated" not in dict(said):
        yield Finding("repeated", "warning", (scan,), f"{scan}: {twice} of its slices stand in it twice")
    if facts.empty_slices:
        yield Finding("empty", "warning", (scan,), f"{scan}: {facts.empty_slices} of its slices show nothing")


def _turned(rows: Sequence[Row], facts: Sequence[Facts]) -> Iterator[Finding]:
    if not facts:
        return
    for index, turn in find_turned(np.stack([one.coarse for one in facts])).items():
        scan = rows[index].scan
        yield Finding("turned", "warning", (scan,), f"{scan}: lies otherwise than the others: {turn}")


# Of labels told by files


def find_shortcuts(rows: Sequence[Row], facts: Mapping[str, Facts]) -> list[Shortcut]:
    """How well presence, and severe and critical among the graded, are told from file facts alone."""
    read = [row for row in rows if row.scan in facts]
    asked = {
        "presence": [(row, row.presence == 1) for row in read if row.presence != UNKNOWN],
        "severe": [(row, row.severity >= SEVERE) for row in read if row.severity != UNKNOWN],
    }
    found = []
    for label, answers in asked.items():
        if answers:
            patients = [row.patient or row.scan for row, _ in answers]
            truth = np.array([answer for _, answer in answers])
            found.append(find_shortcut(label, [_file_facts(facts[row.scan]) for row, _ in answers], truth, patients))
    return [shortcut for shortcut in found if shortcut]


def _file_facts(facts: Facts) -> dict[str, float]:
    known = dict(zip(("slices", "height", "width"), map(float, facts.shape), strict=True))
    if facts.spacing:
        known |= dict(zip(("slice distance", "row distance", "column distance"), facts.spacing, strict=True))
    return {**known, **facts.files}


def _told(shortcut: Shortcut) -> Finding:
    text = (
        f"{shortcut.label} is told from file facts alone with AUC {shortcut.auc:.2f} ({shortcut.scans} scans); "
        f"'{shortcut.fact}' alone has {shortcut.fact_auc:.2f}"
    )
    return Finding("shortcut", "warning", (), text)
