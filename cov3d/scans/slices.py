"""Reader of slice folders: ``0.jpg``, ``1.jpg``, … or PNG, 8-bit grey, as COV19-CT-DB stores scans."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cov3d.console import few
from cov3d.errors import ScanError
from cov3d.scans.scan import FORMS, LARGEST_SIDE, MOST_SLICES, Scan, SliceError, check_loss, check_regular, look_of

SLICE_NAME = re.compile(r"([0-9]{1,9})\.(jpe?g|png)", re.IGNORECASE | re.ASCII)


def slice_files(folder: Path) -> list[Path]:
    """The slices directly in ``folder``, from head to feet: files named by an integer, in integer order.

    Everything else (``._1.jpg``, ``Thumbs.db``, ``1 (1).jpg``) is not a slice.

    Raises:
        ScanError: one number twice (``1.jpg`` and ``0001.jpg``).
    """
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = SLICE_NAME.fullmatch(path.name)
        if match is None:
            continue
        number = int(match[1])
        if number in numbered:
            raise ScanError(folder, f"slice number {number} stands twice: {numbered[number].name}, {path.name}")
        numbered[number] = path
    return [numbered[number] for number in sorted(numbered)]


def read_slices(folder: Path) -> Scan:
    """Read a folder of JPEG or PNG slices.

    Slices of another size than the commonest are left out, and so are unreadable ones; both are said in ``warnings``.
    Gaps in the numbering are no gaps in the body (COV19-CT-DB has them everywhere) and are only said.

    Raises:
        ScanError: no slices, one number twice, too many slices, more than a tenth of them unreadable.
    """
    files = slice_files(folder)
    if not files:
        raise ScanError(folder, f"no scan found (looked for {FORMS})")
    if len(files) > MOST_SLICES:
        raise ScanError(folder, f"{len(files)} slices are more than {MOST_SLICES}; is this one scan?")
    sizes: dict[int, tuple[int, int]] = {}
    causes: dict[int, str] = {}
    for index, path in enumerate(files):
        try:
            sizes[index] = _size(path)
        except SliceError as error:
            causes[index] = f"{path.name} {error.cause}"
    first_cause = next(iter(causes.values()), "")
    check_loss(folder, len(causes), len(files), first_cause)
    counts = Counter(sizes.values())
    common = max(counts, key=lambda size: (counts[size], size))
    kept = [index for index, size in sizes.items() if size == common]
    warnings = _gap_warning(files)
    if causes:
        warnings.append(f"{len(causes)} of {len(files)} slices unreadable and left out ({first_cause})")
    if len(kept) < len(sizes):
        warnings.append(_size_warning(counts, common, [files[i].name for i in sizes if i not in kept]))
    if len(kept) == 1:
        warnings.append("only 1 slice: the volume is constant along depth")
    return Scan(
        source=folder,
        slices=SliceFiles([files[index] for index in kept], common),
        unit="grey",
        warnings=tuple(warnings),
        positions=np.asarray(kept, dtype=float),
        listed=len(files) - (len(sizes) - len(kept)),
    )


@dataclass(frozen=True)
class SliceFiles(Sequence):
    """Slices that are decoded when asked for: ``slices[k]`` is uint8 ``(H, W)``."""

    paths: Sequence[Path]
    size: tuple[int, int]  # (W, H), as Pillow has it

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):
        try:
            return decode(self.paths[index])
        except SliceError as error:
            raise SliceError(index, f"{self.paths[index].name} {error.cause}") from error


def decode(path: Path) -> np.ndarray:
    """Decode a JPEG or PNG slice to 8-bit grey ``(H, W)``. EXIF orientation is ignored: scanners do not set it.

    Raises:
        SliceError: truncated, damaged, or of a kind that has no 8-bit grey.
    """
    try:
        with _open(path) as image:
            image.draft("L", image.size)  # decodes RGB-coded grey without its colour: same pixels, half the time
            return np.asarray(_grey(image))
    except SliceError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, … on damaged files
        cause = "is truncated" if "truncated" in str(error) else f"is damaged ({type(error).__name__})"
        raise SliceError(0, cause) from error


def _size(path: Path) -> tuple[int, int]:
    """``(W, H)`` from the header alone."""
    try:
        with _open(path) as image:
            return image.size
    except SliceError:
        raise
    except Exception as error:
        raise SliceError(0, f"is damaged ({type(error).__name__})") from error


def _open(path: Path) -> Image.Image:
    try:
        check_regular(path)
        image = Image.open(path, formats=("JPEG", "PNG"))
    except ScanError as error:
        raise SliceError(0, error.cause) from error
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            raise SliceError(0, look_of(file.read(64))) from error
    except OSError as error:
        raise SliceError(0, f"cannot be read: {error.strerror}") from error
    if max(image.size) > LARGEST_SIDE:
        image.close()
        raise SliceError(0, f"is {image.size[0]}×{image.size[1]}, larger than {LARGEST_SIDE} pixels a side")
    return image


def _grey(image: Image.Image) -> Image.Image:
    if image.mode == "L":
        return image
    if image.mode in ("LA", "RGB"):
        return image.convert("L")
    if image.mode in ("P", "RGBA", "PA"):
        return image.convert("RGB").convert("L")
    raise SliceError(0, f"has pixels of kind {image.mode}; export slices as 8-bit grey, or give NIfTI")


def _gap_warning(files: Sequence[Path]) -> list[str]:
    numbers = [int(path.stem) for path in files]
    missing = numbers[-1] - numbers[0] + 1 - len(numbers)
    return [f"{missing} slice numbers missing between {numbers[0]} and {numbers[-1]}"] if missing else []


def _size_warning(counts: Counter, common: tuple[int, int], odd: Sequence[str]) -> str:
    total = sum(counts.values())
    return f"{len(odd)} of {total} slices left out: not {common[0]}×{common[1]} as the others ({few(odd)})"
