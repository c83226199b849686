"""What a look at a machine has found, and a page of such findings as text and as JSON."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cov3d.console import plural, printable

Verdict = Literal["ok", "note", "bad"]
COLUMNS = 100


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, the verdict, and, where that is not ok, what to do.

    ``note`` is something to know: the work can be done. ``bad`` will stop it, spoil it or slow it down many times.
    """

    look: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All that was found on a machine, in the order of the looks, and how many seconds that took."""

    findings: tuple[Finding, ...]
    seconds: float

    def of(self, verdict: Verdict) -> list[Finding]:
        """The findings with this verdict."""
        return [finding for finding in self.findings if finding.verdict == verdict]

    @property
    def exit_code(self) -> int:
        """1 if something is bad, else 0."""
        return 1 if self.of("bad") else 0

    @property
    def sentence(self) -> str:
        """What is bad, in one sentence; empty if nothing is."""
        bad = [f"{finding.look} ({finding.found})" for finding in self.of("bad")]
        verb = "is" if len(bad) == 1 else "are"
        return f"{len(bad)} of {plural(len(self.findings), 'look')} {verb} bad: {', '.join(bad)}" if bad else ""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return {**asdict(self), "exit_code": self.exit_code}


def report_json(report: Report) -> str:
    """The whole report as JSON."""
    return json.dumps(report.to_dict(), indent=2)


def report_text(report: Report) -> str:
    """The report for people: a line for each look, and what to do below those that are not ok."""
    counts = f"{len(report.of('bad'))} bad, {plural(len(report.of('note')), 'note')}"
    lines = [f"{plural(len(report.findings), 'look')}: {counts}, {report.seconds:g} s", ""]
    width = max((len(printable(finding.look)) for finding in report.findings), default=0)
    for finding in report.findings:
        lines += _wrapped(f"{finding.verdict:4}  {printable(finding.look):{width}}  ", finding.found)
        if finding.advice:
            lines += _wrapped(" " * (width + 8) + "-> ", finding.advice)
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes as people say them: ``16.4 MB``, with MB of a million and GB of a thousand million bytes."""
    for unit, bytes_of_it in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= bytes_of_it:
            return (
                f"{count / bytes_of_it:.3g} {unit}"
                if count < 999 * bytes_of_it
                else f"{count / bytes_of_it:.0f} {unit}"
            )
    return f"{count:.0f} bytes"


def _wrapped(first: str, text: str) -> list[str]:
    rest = " " * len(first)
    lines = textwrap.wrap(
        printable(text), COLUMNS, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
    return lines or [first.rstrip()]
