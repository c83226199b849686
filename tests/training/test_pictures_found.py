"""Pictures in class folders are found, opened once, and parted; what does not open is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import CPU, SMALL, draw_shapes

from cov3d.config import Training
from cov3d.errors import Cov3dError, ScanError, StudyError
from cov3d.training.order import Place
from cov3d.training.pictures_found import Pictures, find_pictures, open_picture
from cov3d.training.pictures_varied import PictureFiles, plain

torch.set_num_threads(1)


def find(folder: Path, **said: Any) -> Pictures:
    return find_pictures(folder, Training(**said), CPU)


def test_class_folders_alone_have_a_share_of_each_held_out(tmp_path: Path):
    found = find(draw_shapes(tmp_path / "shapes", each=10))
    assert found.classes == ("circle", "cross", "square")
    for label in range(3):
        assert sum(picture.label == label for picture in found.train) == 8
        assert sum(picture.label == label for picture in found.validation) == 2
    assert not set(found.train) & set(found.validation)
    assert find(tmp_path / "shapes") == found and find(tmp_path / "shapes", seed=1) != found


def test_imagenets_layout_has_its_own_validation_pictures(tmp_path: Path):
    draw_shapes(tmp_path / "train", each=3)
    draw_shapes(tmp_path / "val", each=2, seed=9)
    found = find(tmp_path)
    assert (len(found.train), len(found.validation)) == (9, 6)
    assert {found.name(picture).split("/")[0] for picture in found.validation} == {"val"}
    held = find(tmp_path, validation_fraction=0.4)
    assert (len(held.train), len(held.validation)) == (6, 3)
    assert {held.name(picture).split("/")[0] for picture in held.validation} == {"train"}


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_the_held_out_folder_has_other_names_too(tmp_path: Path, name: str):
    draw_shapes(tmp_path / "train", each=3)
    draw_shapes(tmp_path / name, each=2, seed=9)
    found = find(tmp_path)
    assert found.classes == ("circle", "cross", "square")
    assert {found.name(picture).split("/")[0] for picture in found.validation} == {name}
    draw_shapes(tmp_path / "val", each=2, seed=9)
    with pytest.raises(StudyError, match=f"holds val and {name}; keep one of them"):
        find(tmp_path)


def test_beside_a_folder_of_tests_a_share_of_train_is_held_out(tmp_path: Path):
    draw_shapes(tmp_path / "train", each=10)
    draw_shapes(tmp_path / "test", each=2, seed=9)
    found = find(tmp_path)
    assert (len(found.classes), len(found.train), len(found.validation)) == (3, 24, 6)


def test_where_val_is_flat_as_imagenets_archive_a_share_of_train_is_held_out_and_it_is_said(tmp_path: Path, capsys):
    draw_shapes(tmp_path / "train", each=10)
    write(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    found = find(tmp_path)
    assert (len(found.train), len(found.validation), found.ignored) == (24, 6, 0)
    assert "val has no class folders" in capsys.readouterr().err


@pytest.mark.parametrize("flat", [True, False])
def test_with_a_fraction_val_is_not_read(tmp_path: Path, capsys, flat: bool):
    draw_shapes(tmp_path / "train", each=10)
    for k in range(9):  # of which none opens
        path = tmp_path / "val" / ("" if flat else "no class of train") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = find(tmp_path, validation_fraction=0.3)
    assert (len(found.train), len(found.validation), found.failures) == (21, 9, {})
    assert "val is left alone, since --validation-fraction" in capsys.readouterr().err


def test_not_every_class_need_be_scored(tmp_path: Path):
    split(tmp_path, ["a", "b"], ["b"])
    assert [picture.label for picture in find(tmp_path).validation] == [1, 1]


def test_nested_pictures_count_and_what_is_hidden_or_no_picture_does_not(tmp_path: Path):
    folder = draw_shapes(tmp_path / "shapes", each=3)
    (folder / "cross" / "deep" / "er").mkdir(parents=True)
    (folder / "cross" / "0.png").rename(folder / "cross" / "deep" / "er" / "0.PNG")
    (folder / "cross" / "loop").symlink_to(folder / "cross")
    (folder / "cross" / "Thumbs.db").write_bytes(b"x")
    (folder / "cross" / "._1.png").write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "readme.txt").write_text("x")
    found = find(folder)
    assert len(found.train) + len(found.validation) == 9 and found.ignored == 1


def spoil(path: Path, how: str) -> None:
    """Put a bad picture in a file's place."""
    data = path.read_bytes()
    if how == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "web page":
        path.write_text("<!DOCTYPE html>")
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    elif how == "pickle":
        path.write_bytes(b"\x80\x04cos\nsystem\n")
    elif how == "bomb":
        Image.new("1", (30000, 30000)).save(path)
    elif how == "large":
        Image.new("1", (12000, 6000)).save(path)
    elif how == "tiny":
        Image.new("L", (7, 100)).save(path)


BAD = {
    "cut short": "is cut short",
    "empty": "is empty",
    "web page": "is a web page or XML, not a picture",
    "pipe": "is not an ordinary file",
    "postscript": "is not what its name says",
    "pickle": "is not what its name says",
    "bomb": "claims more than 64 million pixels",
    "large": "is 12000×6000, more than 64 million pixels",
    "tiny": "is 7×100, fewer than 8 pixels a side",
}


@pytest.mark.parametrize("how", BAD)
def test_a_picture_that_does_not_open_is_named_and_left_out(tmp_path: Path, how: str):
    folder = draw_shapes(tmp_path / "shapes", each=8)
    spoil(folder / "cross" / "3.png", how)
    found = find(folder)
    assert list(found.failures) == ["cross/3.png"] and BAD[how] in found.failures["cross/3.png"]
    assert len(found.train) + len(found.validation) == 23


def test_more_than_a_tenth_that_do_not_open_are_an_error(tmp_path: Path):
    folder = draw_shapes(tmp_path / "shapes", each=8)
    for k in range(3):
        spoil(folder / "cross" / f"{k}.png", "web page")
    with pytest.raises(StudyError, match=r"3 of 24 pictures do not open, more than a tenth: cross/0.png is a web page"):
        find(folder)


@pytest.mark.parametrize(
    "prepare, cause",
    [
        (lambda root: None, "is no folder"),
        (lambda root: root.mkdir(), "holds no pictures in class folders"),
        (lambda root: (root / "a").mkdir(parents=True), "holds no pictures in class folders"),
        (lambda root: write(root / "a" / "1.png"), "holds one class, a, and nothing is learnt from one"),
        (lambda root: (write(root / "a" / "1.png"), write(root / "b" / "1.txt")), "no picture in b"),
        (lambda root: (write(root / "a" / "1.png"), write(root / "b" / "1.png")), "none is left to score by"),
        (lambda root: split(root, ["a", "b"], ["a", "c"]), "c has no folder in train"),
        (lambda root: split(root, ["a"], ["a"]), "holds one class, a"),
    ],
)
def test_a_folder_from_which_nothing_is_learnt_is_refused(tmp_path: Path, prepare: Callable, cause: str):
    prepare(tmp_path / "pictures")
    with pytest.raises(StudyError) as caught:
        find(tmp_path / "pictures")
    assert cause in str(caught.value) and "pictures" in str(caught.value)


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9)).save(path, "PNG")
    return path


def split(root: Path, train: list[str], validation: list[str]) -> None:
    for part, names in (("train", train), ("val", validation)):
        for name in names:
            write(root / part / name / "1.png")
            write(root / part / name / "2.png")


def test_a_class_of_which_no_picture_opens_is_refused(tmp_path: Path):
    folder = draw_shapes(tmp_path / "shapes", each=20)
    spoil(write(folder / "star" / "1.png"), "empty")
    with pytest.raises(StudyError, match="no picture that opens in star"):
        find(folder)


def test_a_picture_that_is_gone_meanwhile_is_named(tmp_path: Path):
    files = PictureFiles(find(draw_shapes(tmp_path / "shapes", each=3)).train, plain(SMALL))
    files.pictures[0].path.unlink()
    with pytest.raises(Cov3dError, match=r"\.png: is not there; it opened before"):
        files[Place(0, 0)]


# How they are coded


@pytest.mark.parametrize(
    "mode, suffix, level",
    [("L", "png", 100), ("RGB", "jpg", 100), ("RGBA", "png", 100), ("LA", "png", 100), ("P", "png", 100), ("CMYK", "jpg", 100),
     ("1", "png", 255), ("I;16", "png", 100), ("RGB", "bmp", 100), ("RGB", "webp", 100)],
)  # fmt: skip
def test_pictures_of_any_coding_have_their_grey(tmp_path: Path, mode: str, suffix: str, level: int):
    image = Image.new("L", (16, 12), level)
    if mode == "I;16":
        image = Image.fromarray(np.full((12, 16), level * 257, np.uint16))
    elif mode == "CMYK":
        image = image.convert("RGB").convert("CMYK")
    elif mode != "L":
        image = image.convert(mode)
    path = tmp_path / f"picture.{suffix}"
    image.save(path)
    opened = open_picture(path)
    assert (opened.mode, opened.size) == ("L", (16, 12))
    assert np.abs(np.asarray(opened).astype(int) - level).max() <= 2


def test_the_cause_of_a_picture_that_does_not_open_is_a_scan_errors(tmp_path: Path):
    with pytest.raises(ScanError, match="is not there"):
        open_picture(tmp_path / "none.png")
