"""Headers of text, as MetaImage and NRRD have: lines with fields, believed only if they are possible.

Nothing of what stands in a header is in an error but names of fields and numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cov3d.errors import ScanError
from cov3d.scans.volume import check_promise

LONGEST_HEADER = 64 * 2**10  # bytes; that of a CT has one or two thousand
NUMBER = re.compile(r"\s*[-+]?(\d{1,20}(\.\d{0,40})?|\.\d{1,40})(e[-+]?\d{1,3})?\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Header:
    """What a header says of a volume, and where its voxels lie."""

    shape: tuple[int, ...]  # (i, j, k), perhaps more sides of 1
    dtype: np.dtype
    axes: np.ndarray  # (3, 3): steps along i, j, k as columns, in mm Left, Posterior, Superior
    origin: np.ndarray  # (3,): where voxel 0, 0, 0 lies, in the same mm
    data: Path
    offset: int
    packed: bool
    warnings: tuple[str, ...] = ()


def header_lines(path: Path, text: bytes) -> Iterator[tuple[str, int]]:
    """Lines of a header, and where each ends. Whoever asks beyond the last one has found no end of the header."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start)
        if end < 0 and len(text) == LONGEST_HEADER:
            break
        line = text[start : end if end >= 0 else None]
        start += len(line) + 1
        yield line.decode("utf-8", "surrogateescape").removesuffix("\r"), start
    if len(text) < LONGEST_HEADER:
        raise ScanError(path, "is truncated in its header; copy it again")
    raise ScanError(path, f"has a header of more than {LONGEST_HEADER >> 10} KiB, as no CT has")


def unknown_orientation(why: str) -> str:
    """The warning that a header does not say how the patient lies, and how it is read nevertheless."""
    return f"orientation unknown ({why}); read as left-posterior-superior"


class Fields:
    """A header's fields by name. One that is missing, said twice or not as it should be raises a ScanError when asked for."""

    def __init__(self, path: Path, pairs: Iterable[tuple[str, str]]):
        self.path = path
        self.values: dict[str, set[str]] = {}
        for key, value in pairs:
            self.values.setdefault(key, set()).add(value)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> str:
        values = self.values.get(key, set())
        if not values:
            raise ScanError(self.path, f"has no {key} in its header")
        if len(values) > 1:
            raise ScanError(self.path, f"says {key} twice in its header; mend it")
        return next(iter(values))

    def word(self, key: str) -> str:
        """A field in lower case, empty if it is not there."""
        return self[key].lower() if key in self else ""

    def floats(self, key: str, texts: Sequence[str]) -> list[float]:
        """Texts as numbers, if every library would read the same."""
        if not all(NUMBER.fullmatch(text) for text in texts):
            raise ScanError(self.path, f"has no plain numbers as {key} in its header; mend it")
        return [float(text) for text in texts]

    def numbers(self, key: str, count: int = 1) -> list[float]:
        """A field of ``count`` numbers."""
        numbers = self.floats(key, self[key].split())
        if len(numbers) != count:
            raise ScanError(self.path, f"has {len(numbers)} numbers as {key} in its header, expected {count}")
        return numbers

    def place(self, key: str, texts: Sequence[str]) -> np.ndarray:
        """Texts as a place in space, mm ``(3,)``."""
        numbers = self.floats(key, texts)
        if len(numbers) != 3:
            raise ScanError(self.path, f"has {len(numbers)} numbers as {key} in its header, expected 3")
        return np.array(numbers)

    def layout(self, dimensions: str, sizes: str, dtype: np.dtype) -> tuple[int, ...]:
        """The shape of the voxels, if it is that of one volume that can be."""
        (count,) = self.numbers(dimensions)
        if count not in (3, 4):
            raise ScanError(self.path, f"expected a volume of three dimensions, got {count:g}")
        sides = self.numbers(sizes, int(count))
        if not all(side.is_integer() and abs(side) < 2**31 for side in sides):
            raise ScanError(self.path, f"has no whole numbers as {sizes} in its header; mend it")
        shape = tuple(int(side) for side in sides)
        check_promise(self.path, shape, dtype)
        return shape

    def dtype(self, key: str, types: dict[str, str], order: str) -> np.dtype:
        """The type of a voxel in a byte order."""
        if self.word(key) not in types:
            raise ScanError(self.path, f"its voxels ({key}) are not single numbers, so not HU; export the CT itself")
        return np.dtype(order + types[self.word(key)])
