"""Reader of slice folders: ``0.jpg``, ``1.jpg``, … or PNG, 8-bit grey, as COV19-CT-DB stores scans."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cov3d.config import Reading
from cov3d.console import few
from cov3d.errors import ScanError
from cov3d.scans.boundary import check_regular, look_of, patiently
from cov3d.scans.scan import LARGEST_SIDE, LOSS, MOST_SLICES, SUPPORTED, Flaw, Scan, SliceError, check_loss

# Colour is looked for in so many slices of a scan: text burned into one stands in its neighbours, too.
COLOUR_LOOKS = 5
# JPEG's own loss makes grey differ from grey by a few levels.
COLOUR_LEVELS = 16
ORIENTATION = 0x0112  # of EXIF
# The frame header of a JPEG (ISO/IEC 10918-1, B.2.2; 0xF7 is JPEG-LS): its process, and bits a pixel.
FRAME = re.compile(rb"\xff([\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7])..(.)", re.DOTALL)
LOSSLESS = b"\xc3\xc7\xcb\xcf\xf7"
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


def read_slices(folder: Path, reading: Reading) -> Scan:
    """Read a folder of JPEG or PNG slices.

    Slices of another size than the commonest are left out, and so are unreadable ones; both are said.
    Gaps in the numbering are no gaps in the body (COV19-CT-DB has them everywhere) and are only said.

    Raises:
        ScanError: no slices, one number twice, too many slices, more than a tenth of them unreadable or odd; for a strict
            reading, one of them; or a reading that takes 8-bit slices for HU.
    """
    files = slice_files(folder)
    if not files:
        raise ScanError(folder, f"no scan found (looked for {SUPPORTED})")
    if len(files) > MOST_SLICES:
        raise ScanError(folder, f"{len(files)} slices are more than {MOST_SLICES}; is this one scan?")
    if reading.range == "hu":
        raise ScanError(folder, "8-bit slices hold grey levels, not HU; leave --range at auto for them")
    looks, causes = _look_at_all(files)
    check_loss(folder, len(causes), len(files), next(iter(causes.values()), ""))
    sizes = Counter(look.size for look in looks.values())
    common = max(sizes, key=lambda size: (sizes[size], size))
    kept = [index for index, look in looks.items() if look.size == common]
    odd = [files[index].name for index in looks if looks[index].size != common]
    check_loss(folder, len(odd), len(files), f"not {common[0]}×{common[1]} as the others: {few(odd)}")
    return Scan(
        source=folder,
        slices=SliceFiles([files[index] for index in kept], common),
        unit="grey",
        warnings=tuple(_warnings(folder, [looks[index] for index in kept])),
        flaws=(*_gaps(files), *_left_out(files, causes, odd, common), *_colour([files[index] for index in kept])),
        reading=reading,
        positions=np.asarray(kept, dtype=float),
        listed=len(files) - len(odd),
    )


def _left_out(
    files: Sequence[Path], causes: dict[int, str], odd: Sequence[str], common: tuple[int, int]
) -> Iterator[Flaw]:
    """Which slices the scan is read without: unreadable ones, and those of another size."""
    if causes:
        cause = next(iter(causes.values()))
        yield Flaw(LOSS, f"{len(causes)} of {len(files)} slices unreadable and left out ({cause})")
    if odd:
        readable = len(files) - len(causes)
        size = f"{common[0]}×{common[1]}"
        yield Flaw(LOSS, f"{len(odd)} of {readable} slices left out: not {size} as the others ({few(odd)})")


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
        return patiently(lambda: _pixels(path))
    except SliceError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, … on damaged files
        if "truncated" in str(error):
            raise SliceError(0, "is truncated") from error
        raise SliceError(0, _other_jpeg(path) or f"is damaged ({type(error).__name__})") from error


def _pixels(path: Path) -> np.ndarray:
    with _open(path) as image:
        image.draft("L", image.size)  # decodes RGB-coded grey without its colour: same pixels, half the time
        return np.asarray(_grey(image))


@dataclass(frozen=True)
class _Look:
    """What a slice's header says, its pixels not yet decoded."""

    size: tuple[int, int]  # (W, H)
    mode: str
    turned: bool  # by EXIF


def _look_at_all(files: Sequence[Path]) -> tuple[dict[int, _Look], dict[int, str]]:
    """What every slice's header says, and why the others cannot be read, by their place in ``files``."""
    looks: dict[int, _Look] = {}
    causes: dict[int, str] = {}
    for index, path in enumerate(files):
        try:
            looks[index] = _look(path)
        except SliceError as error:
            causes[index] = f"{path.name} {error.cause}"
    return looks, causes


def _look(path: Path) -> _Look:
    try:
        with _open(path) as image:
            turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) != 1
            return _Look(image.size, image.mode, turned)
    except SliceError:
        raise
    except Exception as error:
        raise SliceError(0, f"is damaged ({type(error).__name__})") from error


def _open(path: Path) -> Image.Image:
    try:
        check_regular(path)
        image = patiently(lambda: Image.open(path, formats=("JPEG", "PNG")))
    except ScanError as error:
        raise SliceError(0, error.cause) from error
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            raise SliceError(0, _other_jpeg(path) or look_of(file.read(64))) from error
    except Image.DecompressionBombError as error:
        raise SliceError(0, f"is larger than {LARGEST_SIDE} pixels a side") from error
    except OSError as error:
        raise SliceError(0, f"cannot be read: {error.strerror}") from error
    if max(image.size) > LARGEST_SIDE:
        image.close()
        raise SliceError(0, f"is {image.size[0]}×{image.size[1]}, larger than {LARGEST_SIDE} pixels a side")
    return image


def _other_jpeg(path: Path) -> str:
    """What is to be said of a JPEG of a kind that no picture library reads; nothing of other files."""
    with path.open("rb") as file:
        data = file.read(2**16)
    frame = FRAME.search(data) if data.startswith(b"\xff\xd8") else None
    kind = "" if frame is None else "lossless" if frame[1] in LOSSLESS else "12-bit" if frame[2] == b"\x0c" else ""
    return f"is a {kind} JPEG; export slices as 8-bit grey, or give DICOM" if kind else ""


def _grey(image: Image.Image) -> Image.Image:
    if image.mode == "L":
        return image
    if image.mode in ("LA", "RGB"):
        return image.convert("L")
    if image.mode in ("P", "RGBA", "PA"):
        return image.convert("RGB").convert("L")
    raise SliceError(0, f"has pixels of kind {image.mode}; export slices as 8-bit grey, or give NIfTI")


def _gaps(files: Sequence[Path]) -> list[Flaw]:
    numbers = [int(path.stem) for path in files]
    missing = numbers[-1] - numbers[0] + 1 - len(numbers)
    text = f"{missing} slice numbers missing between {numbers[0]} and {numbers[-1]}"
    return [Flaw(LOSS, text)] if missing else []


def _warnings(folder: Path, looks: Sequence[_Look]) -> list[str]:
    """What is to be said of slices that are read all the same."""
    warnings = []
    if len(looks) == 1:
        warnings.append("only 1 slice: the volume is constant along depth")
    if any(look.mode in ("LA", "RGBA", "PA") for look in looks):
        warnings.append("slices have an alpha channel, which was left out")
    if any(look.turned for look in looks):
        warnings.append("EXIF says that slices are turned; read as they are stored")
    within = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and slice_files(path)]
    if within:
        warnings.append(f"its sub-folders hold other scans ({few(within)})")
    return warnings


def _colour(files: Sequence[Path]) -> list[Flaw]:
    """Whether slices coded as RGB are not grey, as where lesions or text were painted over them; told from a few."""
    most = 0
    for path in {files[k * (len(files) - 1) // (COLOUR_LOOKS - 1)]: None for k in range(COLOUR_LOOKS)}:
        try:
            with _open(path) as image:
                if image.mode == "RGB":
                    image.draft("RGB", (image.width // 2, image.height // 2))  # a quarter of the work shows it as well
                    red, green, blue = np.asarray(image)[::2, ::2].astype(np.int16).transpose(2, 0, 1)
                    most = max(most, int(np.abs(red - green).max()), int(np.abs(blue - green).max()))
        except Exception:  # unreadable slices are counted where they are decoded
            continue
    text = f"slices are not grey: their channels differ by up to {most} levels; read as their luminance"
    return [Flaw(LOSS, text)] if most > COLOUR_LEVELS else []
