"""Drawn pictures of three classes, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cov3d.config import Machine
from cov3d.config.pictures import PictureSettings

CPU = Machine(device="cpu", workers=1)
SMALL = PictureSettings(side=32, rate_batch=0)
SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, list[int]], None]] = {
    "circle": lambda draw, box: draw.ellipse(box, fill=220),
    "cross": lambda draw, box: (draw.line(box, fill=220, width=5), draw.line([box[2], box[1], box[0], box[3]], 220, 5))[
        0
    ],
    "square": lambda draw, box: draw.rectangle(box, outline=220, width=5),
}


def draw_shapes(folder: Path, each: int = 12, side: int = 40, seed: int = 0) -> Path:
    """Circles, crosses and squares of random place, on noise."""
    rng = np.random.default_rng(seed)
    for name, draw in SHAPES.items():
        (folder / name).mkdir(parents=True)
        for k in range(each):
            image = Image.fromarray(rng.integers(0, 90, (side, side)).astype(np.uint8))
            x, y, size = rng.integers(2, 10), rng.integers(2, 10), rng.integers(18, 26)
            draw(ImageDraw.Draw(image), [int(x), int(y), int(x + size), int(y + size)])
            image.save(folder / name / f"{k}.png")
    return folder
