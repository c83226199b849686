"""Reader of DICOM: the largest regular axial stack of CT images, in the order of their positions in the patient.

File names, InstanceNumber and SliceThickness say nothing here: only ImagePositionPatient and ImageOrientationPatient do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from pydicom.tag import Tag

from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.scans.dicom_files import parts, split_address
from cov3d.scans.dicom_headers import Headers, Slice, header, read_headers
from cov3d.scans.dicom_pixels import DicomSlices, Image, Turn
from cov3d.scans.dicom_stack import Stack, stacks_of
from cov3d.scans.scan import LOSS, MOST_SLICES, UNREADABLE_SHARE, Flaw, Scan, SliceError, check_loss
from cov3d.scans.value_range import measure, unit_of
from cov3d.scans.volume import canonical_turn, check_axes, check_spacing

# A smaller stack is only taken for a larger irregular one if it has at least this share of its slices.
REGULAR_SHARE = 0.5
LOOKS = 9  # slices in which values are looked at
SHORT_MM = 100  # less of the body than this is said


def read_dicom(path: Path, reading: Reading) -> Scan:
    """Read a folder, file or zip of DICOM.

    Images are grouped by series and geometry; the largest regular axial stack of CT images is the scan, and what was set
    aside is said with its reason.

    Raises:
        ScanError: no axial CT images, images of several patients, no geometry, pixels that nothing here decodes, more
            than a tenth of the files unreadable; unless forgiven, missing slices, uneven distances, a tilted gantry.
    """
    source, number = split_address(path)
    headers = read_headers(parts(source))
    check_loss(path, len(headers.unreadable), headers.listed, next(iter(headers.unreadable), ""))
    stacks = stacks_of(_wanted(path, headers, reading, number))
    stack = _choose(path, stacks, number)
    _check(path, stack, stacks)
    return _scan(path, stack, reading, _unreadable(headers), _remarks(headers, stacks, stack))


def series_of(path: Path) -> list[Path]:
    """An address for each axial CT stack of a folder, file or zip, the largest first; the path itself if there is one."""
    axial = _axial(stacks_of(read_headers(parts(path)).slices))
    if len(axial) < 2:
        return [path]
    return [path.with_name(f"{path.name}#{number}") for number in range(1, len(axial) + 1)]


def patient_of(path: Path) -> str:
    """What a scan's headers call its patient, to compare and never to show; empty if none does."""
    source, number = split_address(path)
    with suppress(ScanError, OSError):
        if number is not None:  # a folder of several series may hold several patients
            return _axial(stacks_of(read_headers(parts(source)).slices))[number - 1].slices[0].patient
        for part in parts(source)[:1]:
            return str(header(part, [Tag("PatientID")]).get("PatientID", ""))
    return ""


def one_study(folders: Sequence[Path]) -> bool:
    """Whether folders of DICOM files are series of one study, as hospitals export them: a scout, the scan, reformats."""
    studies, series = set(), set()
    for folder in folders:
        files = parts(folder)
        for part in files[:1] + files[-1:]:
            try:
                said = header(part, [Tag("StudyInstanceUID"), Tag("PatientID"), Tag("SeriesInstanceUID")])
            except (ScanError, OSError):
                return False
            # As text: a backslash in an id makes it a list.
            studies.add(tuple(str(said[name].value) for name in ("StudyInstanceUID", "PatientID") if said.get(name)))
            series.add((folder, str(said.get("SeriesInstanceUID"))))
    spread = len({uid for _, uid in series})  # one series over all folders, or each folder its own
    return len(studies) == 1 and spread in (1, len(series)) and len(next(iter(studies))) == 2


# Choosing


def _wanted(path: Path, headers: Headers, reading: Reading, number: int | None) -> list[Slice]:
    """The CT images that ``--series`` allows."""
    slices = headers.slices
    if not slices:
        raise ScanError(path, f"holds no CT image that can be placed in the patient{_counted(headers.aside)}")
    if reading.series not in ("largest", "all"):
        slices = [item for item in slices if item.series == reading.series]
        if not slices:
            raise ScanError(path, "holds no CT image of the series that --series names")
    elif number is None and len({(item.patient, item.study) for item in slices}) > 1:
        raise ScanError(path, "holds images of several patients or studies; give each a folder, or say --series")
    return slices


def _axial(stacks: Sequence[Stack]) -> list[Stack]:
    """The axial stacks, the largest first."""
    axial = [stack for stack in stacks if stack.plane == "axial"]
    return sorted(axial, key=lambda stack: (-len(stack.slices), stack.slices[0].series, stack.acquisition or ""))


def _choose(path: Path, stacks: Sequence[Stack], number: int | None) -> Stack:
    """The stack that is the scan: the largest regular one, or the one of that number."""
    axial = _axial(stacks)
    if not axial:
        planes = " and ".join(sorted({stack.plane for stack in stacks}))
        raise ScanError(path, f"holds only {planes} images; give the axial ones that they were made from")
    if number is not None:
        if number > len(axial):
            raise ScanError(path, f"has no series {number}; it has {len(axial)}")
        return axial[number - 1]
    enough = [stack for stack in axial if len(stack.slices) >= REGULAR_SHARE * len(axial[0].slices)]
    return next((stack for stack in enough if stack.regular), axial[0])


def _check(path: Path, stack: Stack, stacks: Sequence[Stack]) -> None:
    """Raise a ScanError for what nobody can forgive in a stack."""
    if stack.problem:
        raise ScanError(path, stack.problem)
    if len(stack.slices) > MOST_SLICES:
        raise ScanError(path, f"{len(stack.slices)} slices are more than {MOST_SLICES}; is this one scan?")
    for item in stack.slices:
        if item.syntax:
            raise ScanError(path, f"pixels stored as {item.syntax} cannot be decoded here; convert them first")
    kin = [other for other in stacks if other is not stack and other.plane == "axial" and other.acquisition is None]
    lost = sum(len(other.slices) for other in kin if other.slices[0].series == stack.slices[0].series)
    if lost > UNREADABLE_SHARE * len(stack.slices):
        raise ScanError(
            path, f"{lost} images of its series differ from the other {len(stack.slices)} in size or spacing"
        )


# Reading


def _scan(path: Path, stack: Stack, reading: Reading, flaws: Sequence[Flaw], remarks: Sequence[str]) -> Scan:
    _, oblique = check_axes(path, stack.affine)
    turn = canonical_turn(stack.affine)
    if turn[0, 1] < 0:
        stack = stack.turned_over()
    swapped = bool(turn[1, 0] == 2)
    slices = DicomSlices(
        [Image(item.part, item.frame, item.slope, item.intercept) for item in stack.slices],
        Turn(swapped, bool(turn[1 + swapped, 1] < 0), bool(turn[2 - swapped, 1] < 0)),
    )
    height, width = (float(mm) for mm in stack.slices[0].spacing[:: -1 if swapped else 1])
    spacing = (abs(stack.step), height, width)
    check_spacing(path, spacing)
    unit = unit_of(measure(_looks(slices)), reading)
    return Scan(
        source=path,
        slices=slices,
        unit=unit.name,
        spacing=spacing if len(slices) > 1 else None,
        warnings=(*remarks, *oblique, *unit.warnings),
        flaws=(*flaws, *stack.flaws),
        reading=reading,
        positions=stack.positions,
    )


def _looks(slices: DicomSlices) -> Iterator[np.ndarray]:
    """Some slices from end to end."""
    for index in sorted({round(place) for place in np.linspace(0, len(slices) - 1, LOOKS)}):
        with suppress(SliceError):
            yield slices[index]


def _unreadable(headers: Headers) -> list[Flaw]:
    count = len(headers.unreadable)
    return [Flaw(LOSS, f"{count} files unreadable and left out ({headers.unreadable[0]})")] if count else []


def _remarks(headers: Headers, stacks: Sequence[Stack], stack: Stack) -> list[str]:
    """What was set aside, and what the images lack."""
    aside = Counter(headers.aside)
    for other in stacks:
        if other is not stack:
            aside[_difference(other, stack)] += len(other.slices)
    aside["duplicate"] += stack.duplicates
    count = len(stack.slices)
    length = abs(stack.step) * count
    remarks = [f"set aside{_counted(+aside)}"] if +aside else []
    if count == 1:
        remarks.append("only 1 slice: the volume is constant along depth")
    elif length < SHORT_MM:
        remarks.append(f"covers only {length:.0f} mm of the body")
    if not all(item.rescaled for item in stack.slices):
        remarks.append("no RescaleSlope and RescaleIntercept; stored values are taken for HU")
    return remarks


def _difference(other: Stack, stack: Stack) -> str:
    """Why a stack is not the scan."""
    if other.plane != "axial":
        return f"{other.plane} image"
    if other.slices[0].series != stack.slices[0].series:
        return "image of another series"
    return "image of another acquisition" if other.acquisition is not None else "image of another size or spacing"


def _counted(reasons: Counter[str]) -> str:
    """Reasons with how often they came, for a message."""
    named = [f"{reason} ({count})" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))]
    return f": {', '.join(named)}" if named else ""
