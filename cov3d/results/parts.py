"""A table in parts, each answered by a run of its own, and the parts joined: ``cov3d infer --collect``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cov3d.commit import sweep
from cov3d.config import Inference, Reading
from cov3d.console import few, plural, say
from cov3d.errors import Cov3dError, SettingError
from cov3d.nets.build import CLASSES
from cov3d.predictions import COLUMNS, LESIONS, Prediction, in_order, read_predictions, write_predictions
from cov3d.results.claim import claimed, unclaimed
from cov3d.results.journal import check_output, is_filled, is_torn
from cov3d.results.provenance import Provenance, Share, place, provenance_file, read_provenance, write_provenance
from cov3d.results.submission import NO_CLASSES, write_submission
from cov3d.scans.read import ask_scans
from cov3d.shards import Shard
from cov3d.tables import read_table


@dataclass(frozen=True)
class Part:
    """What a share's run wrote: its rows by their scan's place, and their provenance; whether it was killed within a row."""

    file: Path
    rows: Mapping[str, Prediction]
    provenance: Provenance
    share: Share
    torn: bool

    @property
    def undone(self) -> int:
        """How many scans have no row."""
        return len(self.provenance.records.keys() - self.rows.keys())


def part_file(output: Path, shard: Shard) -> Path:
    """Where a share is written: ``predictions.0-of-8.csv`` beside ``predictions.csv``; all of them in the table itself."""
    if shard.whole:
        return output
    return output.with_name(f"{output.stem}.{shard.number}-of-{shard.count}{output.suffix}")


def collect(
    output: str | Path = "predictions.csv",
    scans: Iterable[str | Path] = (),
    overwrite: bool = False,
    submission: str | Path | None = None,
    reading: Reading | None = None,
) -> list[Prediction]:
    """Join the parts of a table that lie beside it, and return its rows; the parts stay.

    The table and its provenance are those that one run over all scans would have written, but for the seconds. If ``scans`` are
    named, each of them must be in a part, and only their rows are returned.

    Raises:
        SettingError: an output that exists, or parts that do not belong together.
        Cov3dError: a part, or a scan of it, is missing. Nothing is written then.
    """
    output, named = Path(output), list(scans)
    check_output(output, resume=False, overwrite=True)
    if output.exists() and not overwrite:
        raise SettingError(f"{output} exists; say --overwrite to join its parts again")
    parts = _read_parts(output)
    rows = {k: row for part in parts for k, row in part.rows.items()}
    asked = {place(path): path.as_posix() for path in ask_scans(named, reading)} if named else {}
    if lost := [path for k, path in asked.items() if k not in rows]:
        raise Cov3dError(
            f"{output}: no part holds {plural(len(lost), 'scan')} that you named: {few(lost)}; "
            f"{_name_the_same(output, parts[0].share.count)}"
        )
    models = parts[0].provenance.made_by["models"]
    if submission is not None and not any(CLASSES in model["heads"] for model in models):
        raise SettingError(NO_CLASSES)
    _write(output, parts, rows)
    answers = in_order([row for k, row in rows.items() if not asked or k in asked])
    if submission is not None:
        write_submission(submission, answers)
    say(f"note: its {len(parts)} parts stay beside {output}; they are not needed any more")
    return answers


def check_unsaid(said: Mapping[str, object], inference: Inference) -> None:
    """Raise a SettingError for options that say nothing beside ``--collect``."""
    names = [name for name, value in said.items() if value]
    names += [] if inference == Inference() else ["--no-tta, --threshold, --allow-missing"]
    if names:
        raise SettingError(
            f"beside --collect, which answers nothing, these mean nothing: {', '.join(names)}; leave them out"
        )


def _write(output: Path, parts: Sequence[Part], rows: Mapping[str, Prediction]) -> None:
    """The table without a row, who made it, the table: whenever this is killed, the two fit."""
    columns = (*COLUMNS, *LESIONS) if LESIONS[0] in read_table(parts[0].file)[0] else COLUMNS
    records = {k: record for part in parts for k, record in part.provenance.records.items()}
    with claimed(output) as claim:
        sweep(output.parent)
        write_predictions(output, [], columns)
        claim.renew()
        paths = {k: row.path for k, row in rows.items()}
        write_provenance(output, Provenance(parts[0].provenance.made_by, records), paths)
        write_predictions(output, list(rows.values()), columns)


# Reading


def _read_parts(output: Path) -> list[Part]:
    """Every part, whole and of one make.

    Raises:
        SettingError: parts of several makes.
        Cov3dError: what is missing.
    """
    files, count = _find_parts(output)
    found = {number: _read_part(file, number, count) for number, file in sorted(files.items())}
    parts = [part for part in found.values() if part is not None]
    _check_whole(output, parts, count)
    _check_alike(output, parts)
    _check_once(output, parts)
    return parts


def _find_parts(output: Path) -> tuple[dict[int, Path], int]:
    """The parts beside a table by number, and how many there should be."""
    pattern = re.compile(rf"{re.escape(output.stem)}\.(\d+)-of-(\d+){re.escape(output.suffix)}")
    found: dict[int, dict[int, Path]] = {}
    for file in sorted(output.parent.iterdir()) if output.parent.is_dir() else ():
        matched = pattern.fullmatch(file.name)
        if matched and int(matched[1]) < int(matched[2]):
            found.setdefault(int(matched[2]), {})[int(matched[1])] = file
    if not found:
        first = part_file(output, Shard(0, 8)).name
        raise Cov3dError(f"{output}: no part lies beside it, such as {first}; {_command(output, 8, range(8))}")
    if len(found) > 1:
        counts = [f"{min(files.values()).name} and its like" for _, files in sorted(found.items())]
        raise SettingError(
            f"{output}: parts of several counts lie beside it ({few(counts, '; ')}); move away those that are not meant"
        )
    count, files = found.popitem()
    return files, count


def _read_part(file: Path, number: int, count: int) -> Part | None:
    """A part; nothing, if its run was killed before it knew what to do."""
    with unclaimed(file):
        torn = is_torn(file)
        rows = {} if torn or not is_filled(file) else {place(row.path): row for row in read_predictions(file)}
        if not rows and not provenance_file(file).exists():
            return None
        provenance = read_provenance(file)
    share = provenance.share
    if share is None or (share.number, share.count) != (number, count):
        says = f"share {share.number}/{share.count}" if share else "no part"
        raise SettingError(f"{file}: its .json says that it is {says}; give it its name again, or move it away")
    return Part(file, rows, provenance, share, torn)


# Checking


def _check_whole(output: Path, parts: Sequence[Part], count: int) -> None:
    """Raise a Cov3dError that names every share that is missing or not done."""
    there = {part.share.number for part in parts}
    absent = [number for number in range(count) if number not in there]
    lacking = [part for part in parts if part.torn or part.undone]
    causes = []
    if absent:
        shares, are = ("share", "is") if len(absent) == 1 else ("shares", "are")
        causes.append(f"{shares} {_ranges(absent)} of {count} {are} not there")
    for part in lacking:
        what = "was killed within a row" if part.torn else f"lacks {plural(part.undone, 'scan')}"
        causes.append(f"share {part.share.number} of {count} {what}")
    if causes:
        numbers = sorted([*absent, *(part.share.number for part in lacking)])
        raise Cov3dError(f"{output}: {few(causes)}; {_command(output, count, numbers)}")


def _check_alike(output: Path, parts: Sequence[Part]) -> None:
    """Raise a SettingError for parts that were made otherwise than the first, or of other scans."""
    first = parts[0]
    count = first.share.count
    made = [part for part in parts if part.provenance.made_by != first.provenance.made_by]
    made = made or [part for part in parts if part.share.forgiven != first.share.forgiven]
    if made:
        raise SettingError(
            f"{output}: {few([part.file.name for part in made])} made with other models or settings than {first.file.name}; "
            f"say the same to every share, with --overwrite to those to be done again"
        )
    asked = [part for part in parts if replace(part.share, number=first.share.number) != first.share]
    if asked:
        raise SettingError(
            f"{output}: {few([part.file.name for part in asked])} made when other scans were asked for than for "
            f"{first.file.name}; {_name_the_same(output, count)}"
        )


def _check_once(output: Path, parts: Sequence[Part]) -> None:
    """Raise a SettingError if two parts hold the same scan."""
    seen: dict[str, str] = {}
    for part in parts:
        for k, row in part.rows.items():
            if k in seen:
                raise SettingError(
                    f"{output}: {row.path} is in {seen[k]} and in {part.file.name}; do both shares again with --overwrite"
                )
        seen |= dict.fromkeys(part.rows, part.file.name)


# Advice


def _name_the_same(output: Path, count: int) -> str:
    return f"name the same scans to every share: {_command(output, count, range(count))}"


def _command(output: Path, count: int, numbers: Sequence[int]) -> str:
    """How to do shares."""
    number = str(numbers[0]) if len(numbers) == 1 else "I"
    each = "" if len(numbers) == 1 else f" for I = {_ranges(numbers)}"
    options = f"--output {shlex.quote(str(output))} --resume --shard {number}/{count}"
    return f"run 'cov3d infer SCANS {options}'{each}, with the models and settings of all shares, and then --collect"


def _ranges(numbers: Sequence[int]) -> str:
    """``0, 3-5``, as Slurm's ``--array`` takes them."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
