"""Is a study sound? Every scan read once, compared with all others, and counted: a report to read before training."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cov3d.config import Machine, Reading, to_dict
from cov3d.console import few, natural, printable, progress
from cov3d.labels import PRESENCE, SEVERITY, UNKNOWN
from cov3d.scans.examine import Facts, examine_job, facts_of
from cov3d.scans.findings import Finding, find_all, find_shortcuts
from cov3d.scans.series import every_series, with_patients
from cov3d.scans.shortcuts import FEWEST, Shortcut
from cov3d.scans.study import TEST, TRAIN, VALIDATION, Row, Study
from cov3d.scans.workers import each

FENCE = 3.0  # interquartile ranges beyond the quartiles, on a logarithmic scale
FACTOR = 2.0  # from the median; less is not far off
SHOWN = 10  # findings of a kind; --json lists all
COLUMNS = 100


@dataclass(frozen=True)
class Measure:
    """A size of the scans: ends and median of the ``known`` ones, and the scans that are far off."""

    name: str
    known: int
    least: float
    median: float
    most: float
    far_off: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What is there, and what is wrong with it.

    ``counts`` are rows of a table, one for each split and each site; ``failures`` are causes by scan.
    """

    study: str
    scans: int
    counts: tuple[dict[str, Any], ...]
    measures: tuple[Measure, ...]
    shortcuts: tuple[Shortcut, ...]
    findings: tuple[Finding, ...]
    failures: dict[str, str]
    warnings: tuple[str, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """1 if no scan could be read; 3 if one could not, or something falsifies results; else 0."""
        if len(self.failures) == self.scans:
            return 1
        return 3 if self.failures or any(finding.weight == "falsifies" for finding in self.findings) else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return {**asdict(self), "exit_code": self.exit_code}


def check(study: Study, reading: Reading | None = None, machine: Machine | None = None) -> Report:
    """Read every scan of a study once, in worker processes, and say what would falsify results, or should be looked at.

    Nothing of a header and no patient's name or number is in the report: patients are counted, scans are named.
    """
    begin = time.monotonic()
    reading, machine = reading or Reading(), machine or Machine()
    study = with_patients(every_series(study, reading))
    facts, failures = _examine_all(study.rows, reading, machine)
    shortcuts = find_shortcuts(study.rows, facts)
    measures = _measures(facts)
    far_off = [_far_off(measure) for measure in measures if measure.far_off]
    return Report(
        study=str(study.source),
        scans=len(study.rows),
        counts=tuple(_counts(study.rows)),
        measures=tuple(measures),
        shortcuts=tuple(shortcuts),
        findings=(*find_all(study.rows, facts, shortcuts), *far_off),
        failures=failures,
        warnings=study.warnings,
        seconds=round(time.monotonic() - begin, 1),
    )


def _examine_all(rows: Sequence[Row], reading: Reading, machine: Machine) -> tuple[dict[str, Facts], dict[str, str]]:
    """Facts by scan, and causes by scan that could not be read, both in the study's order."""
    jobs = [{"path": str(row.path), "reading": to_dict(reading)} for row in rows]
    facts: dict[int, Facts] = {}
    causes: dict[int, str] = {}
    with progress(len(jobs), "check") as step:
        for outcome in each(examine_job, jobs, machine):
            if outcome.error:
                causes[outcome.index] = outcome.error
            else:
                facts[outcome.index] = facts_of(outcome)
            step(rows[outcome.index].scan)
    known = {rows[index].scan: facts[index] for index in sorted(facts)}
    return known, {rows[index].scan: causes[index] for index in sorted(causes)}


# What is there


def _counts(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    splits = [split for split in (TRAIN, VALIDATION, TEST, "") if any(row.split == split for row in rows)]
    sites = sorted({row.site for row in rows if row.site}, key=natural)
    parts = [("split", split, [row for row in rows if row.split == split]) for split in splits]
    parts += [("site", site, [row for row in rows if row.site == site]) for site in sites]
    for by, name, part in parts:
        presences, severities = [row.presence for row in part], [row.severity for row in part]
        yield {
            by: name,
            "scans": len(part),
            **{word: presences.count(k) for k, word in enumerate(PRESENCE)},
            "unknown": presences.count(UNKNOWN),
            **{word: severities.count(k) for k, word in enumerate(SEVERITY, 1)},
        }


def _measures(facts: Mapping[str, Facts]) -> list[Measure]:
    sizes: dict[str, dict[str, float]] = {}
    for scan, one in facts.items():
        named = zip(("slices", "height, pixels", "width, pixels"), map(float, one.shape), strict=True)
        spaced = zip(("slice distance, mm", "row distance, mm", "column distance, mm"), one.spacing or (), strict=False)
        for name, size in (*named, *spaced):
            sizes.setdefault(name, {})[scan] = size
    return [_measure(name, values) for name, values in sizes.items()]


def _measure(name: str, values: Mapping[str, float]) -> Measure:
    """Far off is beyond Tukey's outer fences of the logarithms, and twice or half the median at least."""
    logs = np.log(list(values.values()))
    low, median, high = np.percentile(logs, [25, 50, 75])
    reach = FENCE * (high - low)
    far = (logs < low - reach) | (logs > high + reach)
    far &= np.abs(logs - median) > np.log(FACTOR) - 1e-9
    scans = tuple(scan for scan, it in zip(values, far, strict=True) if it)
    ends = (min(values.values()), float(np.median(list(values.values()))), max(values.values()))
    return Measure(name, len(values), *ends, far_off=scans)


def _far_off(measure: Measure) -> Finding:
    text = f"{measure.name} far from the median, {measure.median:.4g}: {few(measure.far_off)}"
    return Finding("far off", "warning", measure.far_off, text)


# In words


def report_json(report: Report) -> str:
    """The whole report as JSON."""
    return json.dumps(report.to_dict(), indent=2)


def report_text(report: Report) -> str:
    """The report for people, in lines of about 100 columns."""
    parts = [
        [f"{printable(report.study)}: {report.scans} scans, {len(report.failures)} unreadable, {report.seconds:g} s"],
        _table([_count_cells(row) for row in report.counts]),
        _table([_measure_cells(measure, report) for measure in report.measures]),
        _told(report.shortcuts),
        _listed("would falsify results", [one for one in report.findings if one.weight == "falsifies"]),
        _listed("unreadable", [Finding("", "falsifies", (), f"{s}: {c}") for s, c in report.failures.items()]),
        _listed("worth a look", [one for one in report.findings if one.weight == "warning"]),
        _listed("the study", [Finding("", "warning", (), warning) for warning in report.warnings]),
    ]
    if not report.findings and not report.failures:
        parts.append(["nothing found"])
    return "\n\n".join("\n".join(part) for part in parts if part)


def _count_cells(row: Mapping[str, Any]) -> dict[str, str]:
    name = f"site {row['site']}" if "site" in row else row["split"] or "no split"
    return {"": printable(name), **{key: str(value) for key, value in row.items() if key not in ("site", "split")}}


def _measure_cells(measure: Measure, report: Report) -> dict[str, str]:
    ends = {name: f"{getattr(measure, name):.4g}" for name in ("least", "median", "most")}
    return {"": measure.name, **ends, "known": str(measure.known), "far off": str(len(measure.far_off))}


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows of cells in aligned columns, the first to the left, the others to the right."""
    if not rows:
        return []
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


def _told(shortcuts: Sequence[Shortcut]) -> list[str]:
    if not shortcuts:
        return [f"labels told from file facts alone: not asked, with fewer than {FEWEST} patients of a class"]
    lines = ["labels told from file facts alone (AUC; .5 is chance)"]
    for one in shortcuts:
        lines.append(f"  {one.label}: {one.auc:.2f} of {one.scans} scans; '{one.fact}' alone {one.fact_auc:.2f}")
    return lines


def _listed(title: str, findings: Sequence[Finding]) -> list[str]:
    """Findings under their kinds, the first of each."""
    if not findings:
        return []
    lines = [title]
    kinds = list(dict.fromkeys(finding.kind for finding in findings))
    width = max(map(len, kinds))
    for kind in kinds:
        texts = [printable(finding.text) for finding in findings if finding.kind == kind]
        shown = texts[:SHOWN] + ([f"and {len(texts) - SHOWN} more; --json lists all"] if len(texts) > SHOWN else [])
        for index, text in enumerate(shown):
            first = f"  {kind if not index else '':{width}}  " if width else "  "
            rest = " " * (len(first) + 2)
            wrapped = textwrap.wrap(text, COLUMNS, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
            lines += wrapped or [first]
    return lines
