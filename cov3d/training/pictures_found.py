"""Pictures in a folder of class folders: found, opened once, and parted into those that train and those that score.

ImageNet's layout, ``train/<class>/…`` and ``val/<class>/…``, or class folders alone, of which a share of each class is
held out; so it is where ``val`` has no class folders, as when it comes out of ImageNet's archive. In a class folder pictures
lie at any depth. What a picture is, its content says; nothing else is opened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cov3d.config import Machine, Training
from cov3d.console import few, natural, plural, progress, say
from cov3d.errors import ScanError, StudyError
from cov3d.scans.boundary import boundary, check_regular, look_of, patiently
from cov3d.training.split import DEFAULT_FRACTION

NAMES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # others are handed to programs, or hold many pictures
TRAIN, HELD_OUT, TEST = "train", ("val", "valid", "validation"), "test"
MOST_PIXELS = 2**26  # 8192×8192
LEAST_SIDE = 8  # pixels
MOST_UNREADABLE = 0.1  # of all pictures
CHUNK = 256


@dataclass(frozen=True)
class Picture:
    """A picture's file and the number of its class."""

    path: Path
    label: int


@dataclass(frozen=True)
class Pictures:
    """Pictures that train and pictures that score, and those that do not open with their causes."""

    folder: Path
    classes: tuple[str, ...]
    train: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    failures: dict[str, str]
    ignored: int = 0  # files whose names are no pictures'

    @property
    def fingerprint(self) -> str:
        """A hash of the pictures' names and sizes, and of how they are parted."""
        parts = [
            [f"{picture.label} {picture.path.stat().st_size} {self.name(picture)}" for picture in part]
            for part in (self.train, self.validation)
        ]
        return hashlib.sha256(repr((self.classes, parts)).encode()).hexdigest()

    def name(self, picture: Picture) -> str:
        """A picture's path within the folder."""
        return picture.path.relative_to(self.folder).as_posix()


def find_pictures(folder: Path, training: Training, machine: Machine) -> Pictures:
    """The pictures of a folder, each of which opens.

    Raises:
        StudyError: no folder, no pictures, fewer than two classes, a class without a picture, classes that only score, or more
            than a tenth of the pictures do not open.
    """
    if not folder.is_dir():
        raise StudyError(f"{folder} is no folder; name one that holds a folder of pictures for each class")
    parted = (folder / TRAIN).is_dir() and any((folder / name).is_dir() for name in (*HELD_OUT, TEST))
    classes, files, ignored = read_classes(folder / TRAIN if parted else folder)
    if len(classes) < 2:
        raise StudyError(f"{folder} holds one class, {classes[0]}, and nothing is learnt from one; name its parent?")
    train = [Picture(path, label) for label, name in enumerate(classes) for path in files[name]]
    scoring = scoring_folder(folder, training) if parted else None
    validation, other = read_validation(scoring, classes) if scoring else ([], 0)
    failures = check_all(folder, [*train, *validation], machine)
    found = Pictures(folder, classes, tuple(train), tuple(validation), failures, ignored + other)
    found = part(without_failures(found), training)
    check_classes(found)
    return found


def scoring_folder(folder: Path, training: Training) -> Path | None:
    """The class folders to score by, beside ``train``; None where a share of ``train`` is to be held out instead.

    Raises:
        StudyError: there are several.
    """
    there = [folder / name for name in HELD_OUT if (folder / name).is_dir()]
    if there and training.validation_fraction is not None:
        say(f"note: {there[0]} is left alone, since --validation-fraction holds pictures of {TRAIN} out")
        return None
    if len(there) > 1:
        raise StudyError(f"{folder} holds {' and '.join(path.name for path in there)}; keep one of them to score by")
    if there and not class_folders(there[0]):
        say(
            f"note: {there[0]} has no class folders, as ImageNet's has none when it comes out of its archive, so pictures of "
            f"{TRAIN} are held out instead"
        )
        return None
    return there[0] if there else None


def class_folders(root: Path) -> list[Path]:
    """The folders in ``root`` that are not hidden, in natural order."""
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    return sorted(folders, key=lambda path: natural(path.name))


def read_classes(root: Path) -> tuple[tuple[str, ...], dict[str, list[Path]], int]:
    """Each folder's name in ``root`` with the pictures in it, and how many other files there are."""
    files, ignored = {}, 0
    for path in class_folders(root):
        everything = list(walk(path))
        files[path.name] = [file for file in everything if file.suffix.lower() in NAMES]
        ignored += len(everything) - len(files[path.name])
    if not any(files.values()):
        raise StudyError(
            f"{root} holds no pictures in class folders (looked for {' '.join(NAMES)} in CLASS/); name the folder of the "
            "class folders"
        )
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise StudyError(f"{root}: no picture in {few(empty)}; put some there, or take the folder away")
    return tuple(files), files, ignored


def read_validation(root: Path, classes: Sequence[str]) -> tuple[list[Picture], int]:
    """The pictures to score by, whose classes are those of ``train`` or fewer."""
    names, files, ignored = read_classes(root)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise StudyError(f"{root}: {few(unknown)} has no folder in {TRAIN}; each class is learnt before it is scored")
    return [Picture(path, classes.index(name)) for name in names for path in files[name]], ignored


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in natural order; linked folders are not entered."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted((name for name in folders if not name.startswith((".", "__"))), key=natural)
        yield from (Path(root, name) for name in sorted(names, key=natural) if not name.startswith("."))


def check_all(folder: Path, pictures: Sequence[Picture], machine: Machine) -> dict[str, str]:
    """Open every picture once: causes of those that do not, by their paths within the folder."""
    chunks = [[picture.path for picture in pictures[k : k + CHUNK]] for k in range(0, len(pictures), CHUNK)]
    causes: dict[Path, str] = {}
    with (
        ThreadPoolExecutor(machine.processes) as threads,
        progress(len(chunks), f"open pictures, {CHUNK} at a time") as step,
    ):
        for found in threads.map(_causes, chunks):
            causes |= found
            step("")
    if len(causes) > MOST_UNREADABLE * len(pictures):
        some = [f"{path.relative_to(folder)} {cause}" for path, cause in list(causes.items())[:3]]
        raise StudyError(
            f"{folder}: {len(causes)} of {plural(len(pictures), 'picture')} do not open, more than a tenth: {'; '.join(some)}"
        )
    return {path.relative_to(folder).as_posix(): cause for path, cause in causes.items()}


def _causes(paths: Sequence[Path]) -> dict[Path, str]:
    causes = {}
    for path in paths:
        try:
            open_picture(path)
        except ScanError as error:
            causes[path] = error.cause
    return causes


def without_failures(found: Pictures) -> Pictures:
    """The same without pictures that do not open."""
    parts = [
        tuple(picture for picture in pictures if found.name(picture) not in found.failures)
        for pictures in (found.train, found.validation)
    ]
    return replace(found, train=parts[0], validation=parts[1])


def part(found: Pictures, training: Training) -> Pictures:
    """Hold a share of each class out, at least one picture of two, unless there are pictures to score by."""
    if found.validation:
        return found
    fraction = DEFAULT_FRACTION if training.validation_fraction is None else training.validation_fraction
    rng = np.random.default_rng(training.seed)
    held: set[int] = set()
    for label in range(len(found.classes)):
        places = [k for k, picture in enumerate(found.train) if picture.label == label]
        wanted = round(len(places) * fraction)
        count = min(max(wanted, 1), len(places) - 1)
        held |= set(rng.permutation(places)[: max(count, 0)].tolist())
    parts = [tuple(p for k, p in enumerate(found.train) if (k in held) == scored) for scored in (False, True)]
    return replace(found, train=parts[0], validation=parts[1])


def check_classes(found: Pictures) -> None:
    """Raise a StudyError if a class has nothing to be learnt from, or no picture is left to score by."""
    counts = np.bincount([picture.label for picture in found.train], minlength=len(found.classes))
    empty = [name for name, count in zip(found.classes, counts, strict=True) if not count]
    if empty:
        raise StudyError(f"{found.folder}: no picture that opens in {few(empty)}; put some there, or take it away")
    if not found.validation:
        raise StudyError(f"{found.folder}: each class has one picture, so none is left to score by; add some")


def open_picture(path: Path) -> Image.Image:
    """A picture in 8-bit grey, decoded. As it is stored: what EXIF says of its turn is not followed.

    Raises:
        ScanError: it is damaged, cut short, no picture, too large or too small.
    """
    with boundary(path):
        check_regular(path)
        try:
            return patiently(lambda: _grey(path))
        except UnidentifiedImageError as error:
            with path.open("rb") as file:
                raise ScanError(path, look_of(file.read(64)).replace("a scan", "a picture")) from error
        except Image.DecompressionBombError as error:
            raise ScanError(path, f"claims more than {MOST_PIXELS >> 20} million pixels") from error
        except OSError as error:
            if "truncated" in str(error):
                raise ScanError(path, "is cut short; copy it again") from error
            raise


def _grey(path: Path) -> Image.Image:
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:  # before anything of it is decoded
            raise ScanError(path, f"is {width}×{height}, more than {MOST_PIXELS >> 20} million pixels")
        if min(width, height) < LEAST_SIDE:
            raise ScanError(path, f"is {width}×{height}, fewer than {LEAST_SIDE} pixels a side")
        image.draft("L", image.size)  # a JPEG's grey without its colours: the same, in half the time
        if image.mode.startswith("I"):  # 16 bits
            return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
        if image.mode not in ("L", "LA", "1", "RGB"):
            return image.convert("RGBA" if "A" in image.mode else "RGB").convert("L")
        return image.convert("L")
