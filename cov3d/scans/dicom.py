"""Reader of DICOM: the largest regular axial stack of CT images, in the order of their positions in the patient.

File names, InstanceNumber and SliceThickness say nothing here: only ImagePositionPatient and ImageOrientationPatient do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from cov3d.config import Reading
from cov3d.console import plural
from cov3d.errors import ScanError
from cov3d.scans.dicom_files import split_address
from cov3d.scans.dicom_headers import Headers, Slice, read_headers
from cov3d.scans.dicom_pixels import DicomSlices, Image, Turn
from cov3d.scans.dicom_stack import Stack, stacks_of
from cov3d.scans.dicom_study import identity, parts
from cov3d.scans.scan import GAP, LOSS, MOST_SLICES, UNREADABLE_SHARE, Flaw, Scan, SliceError, check_loss
from cov3d.scans.value_range import measure, unit_of
from cov3d.scans.volume import canonical_turn, check_axes, check_spacing

# A smaller stack is only taken for a larger irregular one if it has at least this share of its slices.
REGULAR_SHARE = 0.5
LOOKS = 9  # slices in which values are looked at
SHORT_MM, LONG_MM = 100, 2500  # less of the body than this is said, more refused


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
    others = [other for other in stacks if number is None or other.plane != "axial"]  # else they are scans themselves
    return _scan(path, stack, reading, _flaws(headers, stack), _remarks(headers, others, stack))


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
        return identity(parts(source)[0]).patient
    return ""


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
    return sorted(axial, key=lambda stack: (-len(stack.slices), *_order(stack.slices[0])))


def _order(first: Slice) -> tuple[bool, str, str]:
    """Of stacks with as many slices, what the scanner measured comes before what was computed from it."""
    return first.derived, first.series, first.acquisition


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
    if stack.length > LONG_MM:
        raise ScanError(path, f"its slices lie over {stack.length / 1000:.1f} m; mend their positions")
    for item in stack.slices:
        if item.undecodable:
            raise ScanError(path, f"pixels stored as {item.undecodable} cannot be decoded here; convert them first")
    unsaid = Counter(item.unsaid for item in stack.slices)
    if len(unsaid) > 1:
        text = f"{unsaid[()]} of its {len(stack.slices)} images have a RescaleSlope and RescaleIntercept, and the others not"
        raise ScanError(path, f"{text}, so their values cannot be compared; export the series again")
    kin = [other for other in stacks if other is not stack and other.plane == "axial" and not other.parted]
    lost = sum(len(other.slices) for other in kin if other.slices[0].series == stack.slices[0].series)
    if lost > UNREADABLE_SHARE * len(stack.slices):
        text = f"{plural(lost, 'image')} of its series differ from the other {len(stack.slices)} in size or spacing"
        raise ScanError(path, text)


# Reading


def _scan(path: Path, stack: Stack, reading: Reading, flaws: Sequence[Flaw], remarks: Sequence[str]) -> Scan:
    _, oblique = check_axes(path, stack.affine)
    axes = canonical_turn(stack.affine)
    if axes[0, 1] < 0:
        stack = stack.turned_over()
    turn = Turn.of(axes)
    height, width = (float(mm) for mm in stack.slices[0].spacing[:: -1 if turn.transpose else 1])
    spacing = (abs(stack.step), height, width)
    check_spacing(path, spacing)
    slices = DicomSlices([Image(item.part, item.frame, item.slope, item.intercept) for item in stack.slices], turn)
    unit = unit_of(measure(_looks(slices)), reading)
    return Scan(
        source=path,
        slices=slices.times(unit.factor) if unit.name == "grey" else slices,
        unit=unit.name,
        spacing=spacing if len(slices) > 1 else None,
        warnings=(*remarks, *oblique, *unit.warnings),
        flaws=tuple(flaws),
        reading=reading,
        positions=stack.positions,
        affine=stack.affine[:, [2, 1, 0, 3]],  # columns, rows, slices, as NIfTI has them
    )


def _looks(slices: DicomSlices) -> Iterator[np.ndarray]:
    """Some slices from end to end."""
    for index in sorted({round(place) for place in np.linspace(0, len(slices) - 1, LOOKS)}):
        with suppress(SliceError):
            yield slices[index]


def _flaws(headers: Headers, stack: Stack) -> list[Flaw]:
    """What is wrong with the files, and with where their images lie; an unreadable one may be what is missing there."""
    count = len(headers.unreadable)
    if not count:
        return list(stack.flaws)
    lost = f"{plural(count, 'file')} unreadable and left out ({headers.unreadable[0]})"
    gaps = [flaw._replace(text=f"{flaw.text}; {lost}") for flaw in stack.flaws if flaw.kind == GAP]
    return [Flaw(LOSS, lost), *gaps]


def _remarks(headers: Headers, stacks: Sequence[Stack], stack: Stack) -> list[str]:
    """What was set aside, and what the images lack."""
    aside = Counter(headers.aside)
    for other in stacks:
        if other is not stack:
            aside[_difference(other, stack)] += len(other.slices)
    aside["duplicate"] += stack.duplicates
    count = len(stack.slices)
    remarks = [f"set aside{_counted(+aside)}"] if +aside else []
    if count == 1:
        remarks.append("only 1 slice: the volume is constant along depth")
    elif stack.length < SHORT_MM:
        remarks.append(f"covers only {stack.length:.0f} mm of the body")
    if unsaid := stack.slices[0].unsaid:
        remarks.append(f"no {' and no '.join(unsaid)}; values are taken for HU without")
    return remarks


def _difference(other: Stack, stack: Stack) -> str:
    """Why a stack is not the scan."""
    if other.plane != "axial":
        return f"{other.plane} image"
    if other.slices[0].series != stack.slices[0].series:
        return "image of another series"
    return "image of another acquisition" if other.parted else "image of another size or spacing"


def _counted(reasons: Counter[str]) -> str:
    """Reasons with how often they came, for a message."""
    named = [f"{reason} ({count})" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))]
    return f": {', '.join(named)}" if named else ""
