"""What DICOM scans say of a study: further series in them, and which of them are of one patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cov3d.config import Reading
from cov3d.errors import ScanError
from cov3d.scans.boundary import boundary
from cov3d.scans.dicom_files import split_address
from cov3d.scans.read import each_series, is_dicom_scan
from cov3d.scans.study import Row, Study

# Whoever has more scans than this is no patient, but what a de-identification left in place of the id.
MOST_OF_ONE_PATIENT = 20
FEWEST_SCANS = 4  # that must share an id, before one that all share is taken for that


def every_series(study: Study, reading: Reading) -> Study:
    """The study; with ``--series all``, a row for each series of a DICOM scan that has several, labelled as the scan.

    A row that is one series of a scan (``folder#2``) stays.
    """
    if reading.series != "all":
        return study
    return replace(study, rows=tuple(one for row in study.rows for one in _series(row, reading)))


def _series(row: Row, reading: Reading) -> Iterator[Row]:
    paths = [row.path] if split_address(row.path)[1] else each_series(row.path, reading)
    if len(paths) == 1:
        yield row
        return
    for path in paths:
        number = path.name.rpartition("#")[2]
        yield replace(row, scan=f"{row.scan}#{number}", path=path)


def with_patients(study: Study) -> Study:
    """The study with DICOM scans of one patient known as such, where its table does not say so.

    A scan whose headers name the same patient as those of a scan that the table knows is of the table's patient. Others get
    numbers in order of appearance; nothing of a header, nor a hash of it, leaves this function.
    """
    if all(row.patient for row in study.rows):
        return study
    found = {row.scan: _patient(row) for row in study.rows if is_dicom_scan(row.path)}
    scans = Counter(found.values())
    placeholders = {
        name for name, count in scans.items() if count > MOST_OF_ONE_PATIENT or FEWEST_SCANS <= count == len(found)
    }
    patients = _numbered(study.rows, {scan: name for scan, name in found.items() if name and name not in placeholders})
    rows = tuple(replace(row, patient=_known(row, patients.get(row.scan, ""))) for row in study.rows)
    shared = sum(bool(found.get(row.scan)) and found[row.scan] in placeholders for row in study.rows if not row.patient)
    note = f"{shared} DICOM scans share a PatientID with so many others that it is taken for a placeholder"
    return replace(study, rows=rows, warnings=(*study.warnings, note) if shared else study.warnings)


def _numbered(rows: Sequence[Row], found: dict[str, str]) -> dict[str, str]:
    """The patient of each scan of which headers name one: the only one that the table knows by that name, or a number."""
    told: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.patient and row.scan in found:
            told[found[row.scan]].add(row.patient)
    known = {name: patients.pop() for name, patients in told.items() if len(patients) == 1}
    unknown = [found[row.scan] for row in rows if not row.patient and found.get(row.scan, "") not in ("", *known)]
    numbers = {name: f"dicom-{number}" for number, name in enumerate(dict.fromkeys(unknown), 1)}
    return {scan: (known | numbers).get(name, "") for scan, name in found.items()}


def _known(row: Row, number: str) -> str:
    """A row's patient by the table, the headers, or at least the scan that it is a series of."""
    source, series = split_address(row.path)
    return row.patient or number or (f"{source.name} of {row.scan.rpartition('#')[0]}" if series else "")


def _patient(row: Row) -> str:
    from cov3d.scans.dicom import patient_of

    try:
        with boundary(row.path):
            return patient_of(row.path)
    except ScanError:  # it fails when it is read
        return ""
