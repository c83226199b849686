"""Lungs are found in drawn chests and real ones, however ill, turned or cut, and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cov3d import Preprocessing, preprocess, read
from cov3d.chest import AIR, BONE, FAT, MUSCLE, Chest
from cov3d.chest import draw as draw_chest
from cov3d.forms import WINDOW
from cov3d.scans.body import Box
from cov3d.scans.lungs import cut_off, find_lungs, glance_at_lungs

draw = cache(draw_chest)


def to_grey(hu: np.ndarray, window: tuple[float, float] = WINDOW) -> np.ndarray:
    low, high = window
    return np.rint((np.clip(hu.astype(np.float32), low, high) - low) * 255 / (high - low)).astype(np.uint8)


def shows_lungs(grey: np.ndarray, window: tuple[float, float] = WINDOW) -> bool:
    return glance_at_lungs(grey, window) is not None


def box_of(mask: np.ndarray) -> Box:
    places = np.argwhere(mask)
    d, h, w = (slice(int(a), int(b) + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    return d, h, w


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    shared = np.prod([max(0, min(a.stop, b.stop) - max(a.start, b.start)) for a, b in zip(one, other, strict=True)])
    one_size, other_size = (np.prod([side.stop - side.start for side in box]) for box in (one, other))
    return float(shared / (one_size + other_size - shared))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * np.sum(one & other) / (one.sum() + other.sum()))


def check(hu: np.ndarray, truth: np.ndarray, holds: float = 0.995, least: float = 0.9, spacing=None) -> None:
    """The box that is found holds the lungs, and little else."""
    lungs = find_lungs(to_grey(hu), spacing)
    assert lungs is not None
    assert truth[lungs.box].sum() >= holds * truth.sum()
    assert overlap(lungs.box, box_of(truth)) >= least


@cache
def tensor_of(path: Path, width: int, depth: int) -> np.ndarray:
    return preprocess(read(path), Preprocessing(width=width, depth=depth))[0]


def right_lung(chest: Chest) -> np.ndarray:
    columns = np.arange(chest.lungs.shape[2])
    return chest.lungs & (columns < np.average(columns, weights=chest.lungs.sum((0, 1))))


def within(mask: np.ndarray) -> list[np.ndarray]:
    """Where voxels lie along each axis of a mask's box, 0…1."""
    return [
        (axis - side.start) / (side.stop - side.start)
        for axis, side in zip(np.ogrid[tuple(map(slice, mask.shape))], box_of(mask), strict=True)
    ]


# --- whole chests


@pytest.mark.parametrize("severity", range(5))
@pytest.mark.parametrize("seed", range(3))
def test_the_box_of_a_drawn_chest_holds_its_lungs_and_little_else(seed: int, severity: int):
    chest = draw(seed, severity, 96, 48)
    check(chest.hu, chest.lungs)


@pytest.mark.parametrize("severity", [0, 4])
def test_the_mask_is_the_lungs_with_their_lesions(severity: int):
    chest = draw(1, severity, 128, 96)
    lungs = find_lungs(to_grey(chest.hu), chest.spacing)
    assert (lungs.mask.shape, lungs.mask.dtype) == (chest.hu.shape, bool)
    assert lungs.box == box_of(lungs.mask)
    assert dice(lungs.mask, chest.lungs) > (0.97, 0.93)[severity > 0]


@pytest.mark.parametrize(
    ("size", "slices", "times"),
    [(48, 24, (1, 1, 1)), (128, 15, (1, 4, 4)), (107, 53, (3, 3, 3)), (96, 96, (1, 1, 2)), (64, 200, (1, 1, 1))],
)
def test_any_size_and_shape_of_voxel_will_do(size: int, slices: int, times: tuple[int, ...]):
    chest = draw(2, 2, size, slices)
    hu, truth = (np.kron(volume, np.ones(times, volume.dtype)) for volume in (chest.hu, chest.lungs))
    check(hu, truth)


@pytest.mark.parametrize("spacing", [(6, 3.6, 3.6), (20, 2.5, 2.5), (1, 1, 1), (1.5, 6, 6), (0, np.nan, 2)])
def test_a_wrong_spacing_does_little(spacing: tuple[float, float, float]):
    chest = draw(3, 1, 96, 48)
    check(chest.hu, chest.lungs, spacing=spacing)


@pytest.mark.parametrize("window", [(-1000, 400), (-1350, 150), (-1024, 1024)])
def test_another_window_that_is_said_changes_nothing(window: tuple[float, float]):
    chest = draw(0, 2, 96, 48)
    expected, lungs = find_lungs(to_grey(chest.hu)), find_lungs(to_grey(chest.hu, window), window=window)
    assert dice(lungs.mask, expected.mask) > 0.98
    assert overlap(lungs.box, expected.box) > 0.95
    assert shows_lungs(to_grey(chest.hu, window), window)


@pytest.mark.parametrize("window", [(-1000, 400), (-1350, 150), (-1200, 600)])
def test_pictures_of_another_lung_window_show_lungs_still(window: tuple[float, float]):
    chest = draw(0, 2, 96, 48)
    assert shows_lungs(to_grey(chest.hu, window))
    assert overlap(find_lungs(to_grey(chest.hu, window)).box, box_of(chest.lungs)) > 0.9


# --- white lungs


@pytest.mark.parametrize("severity", [0, 4])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("part", ["lower lobe", "posterior 60 %", "posterior 30 % of both"])
def test_what_is_white_is_in_the_box(part: str, seed: int, severity: int):
    chest = draw(seed, severity, 128, 64)
    white = chest.lungs if "both" in part else right_lung(chest)
    z, v, _ = within(white)
    white = white & {"lower lobe": (z + v > 1) & (z > 0.3), "posterior 60 %": v > 0.4}.get(part, v > 0.7)
    hu = np.where(white, MUSCLE + np.random.default_rng(seed).normal(0, 20, white.shape), chest.hu)
    check(hu, chest.lungs)


def test_a_lung_that_is_white_altogether_is_where_the_other_is_reflected():
    chest = draw(3, 0, 96, 48)
    hu = np.where(right_lung(chest), MUSCLE, chest.hu)
    check(hu, chest.lungs, holds=0.98)
    mask = find_lungs(to_grey(hu)).mask
    assert np.mean(mask[right_lung(chest)]) > 0.8


# --- turned, cut, beside other things


TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": lambda volume: volume[:, :, ::-1],
    "feet first": lambda volume: volume[::-1],
    "prone": lambda volume: volume[:, ::-1],
    "on a side": lambda volume: volume.swapaxes(1, 2)[:, ::-1],
    "on the other side": lambda volume: volume.swapaxes(1, 2)[:, :, ::-1],
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS.keys())
def test_a_turned_chest_has_the_same_lungs_turned(turn: Callable[[np.ndarray], np.ndarray]):
    chest = draw(1, 3, 96, 48)
    _, v, _ = within(chest.lungs)
    hu = np.where(chest.lungs & (v > 0.7), MUSCLE, chest.hu)  # so that front and back matter
    lungs = find_lungs(to_grey(turn(hu)))
    assert dice(lungs.mask, turn(find_lungs(to_grey(hu)).mask)) > 0.97
    assert overlap(lungs.box, box_of(turn(chest.lungs))) > 0.9


@pytest.mark.parametrize("sides", [(0.1, 0, 0, 0), (0, 0.15, 0, 0), (0, 0, 0.2, 0), (0.1, 0.1, 0.1, 0.1)])
def test_lungs_that_the_picture_cuts_off_reach_its_edge(sides: tuple[float, ...]):
    chest = draw(2, 2, 96, 48)
    _, h, w = box_of(chest.lungs)
    front, back, right, left = sides
    rows, columns = h.stop - h.start, w.stop - w.start
    part = (
        slice(None),
        slice(h.start + int(front * rows) if front else 0, h.stop - int(back * rows) if back else None),
        slice(w.start + int(right * columns) if right else 0, w.stop - int(left * columns) if left else None),
    )
    check(chest.hu[part], chest.lungs[part])


@pytest.mark.parametrize("part", [slice(0, 20), slice(14, 34), slice(24, 48)], ids=["top", "middle", "bottom"])
def test_a_part_of_the_slices_will_do(part: slice):
    chest = draw(0, 2, 96, 48)
    check(chest.hu[part], chest.lungs[part])


def test_arms_and_the_air_beside_them_are_no_lungs():
    chest = draw(5, 1, 96, 48)
    sides = ((0, 0), (10, 10), (20, 20))
    hu, truth = np.pad(chest.hu, sides, constant_values=AIR), np.pad(chest.lungs, sides)
    rows, columns = np.ogrid[: hu.shape[1], : hu.shape[2]]
    for centre in (11, hu.shape[2] - 12):
        apart = np.hypot(rows - 60, columns - centre)
        for radius, level in ((10, FAT), (8, MUSCLE), (3, BONE)):
            hu[:, apart < radius] = np.maximum(hu[:, apart < radius], level)
    check(hu, truth)


def test_a_table_of_foam_in_a_shell_is_no_lung():
    chest = draw(0, 2, 96, 48)
    hu = chest.hu.copy()
    back = np.flatnonzero((hu[:, :, 40:56] > MUSCLE - 100).mean((0, 2)) > 0.5)[-1]
    free = hu < -700
    free &= ~ndimage.binary_dilation(chest.lungs, iterations=2)
    for rows, level in ((slice(back, None), -880), (slice(back, back + 1), 200), (slice(back + 10, back + 11), 200)):
        hu[:, rows][free[:, rows]] = level
    check(hu, chest.lungs)


def test_gas_and_stool_in_a_belly_below_are_no_lungs():
    chest = draw(0, 2, 96, 48)
    slice_ = np.where(chest.lungs[-1] | ((chest.hu[-1] < -500) & chest.lungs.any(0)), MUSCLE, chest.hu[-1])
    belly = np.repeat(slice_[None], 30, 0)
    rows, columns = np.ogrid[:96, :96]
    rng = np.random.default_rng(0)
    for row, column, level in ((38, 30, AIR + 15), (38, 66, -600), (34, 48, AIR + 25)):
        bowel = np.hypot(rows - row, columns - column) < 8
        belly[3:, bowel] = level + rng.normal(0, 40, (27, bowel.sum()))
    check(np.concatenate([chest.hu, belly]), np.concatenate([chest.lungs, np.zeros(belly.shape, bool)]))


def test_the_windpipe_above_the_lungs_is_not_in_the_box():
    chest = draw(0, 0, 96, 48)
    lungs = ndimage.binary_dilation(chest.lungs[0], iterations=3) & ~ndimage.binary_dilation(
        (chest.hu[0] < -900) & ~chest.lungs[0], iterations=2
    )
    neck = np.repeat(np.where(lungs & (chest.hu[0] < 0), MUSCLE, chest.hu[0])[None], 15, 0)
    check(np.concatenate([neck, chest.hu]), np.concatenate([np.zeros(neck.shape, bool), chest.lungs]))


# --- is it a chest?


@pytest.mark.parametrize("severity", range(5))
@pytest.mark.parametrize(("size", "slices"), [(64, 32), (96, 48), (128, 64)])
def test_every_drawn_chest_shows_lungs(size: int, slices: int, severity: int):
    for seed in (10, 11) if size < 128 else (10,):
        assert shows_lungs(to_grey(draw(seed, severity, size, slices).hu)), seed


def head() -> np.ndarray:
    z, v, u = np.ogrid[-1:1:64j, -1:1:96j, -1:1:96j]
    skull = np.sqrt((z / 0.9) ** 2 + (v / 0.75) ** 2 + (u / 0.6) ** 2)
    hu = np.select([skull < 0.86, skull < 0.93, skull < 1], [35, 800, MUSCLE], AIR).astype(float)
    sinus = np.sqrt(((z - 0.3) / 0.2) ** 2 + ((v + 0.45) / 0.12) ** 2 + ((np.abs(u) - 0.15) / 0.1) ** 2)
    hu[sinus < 1] = AIR
    return to_grey(hu + np.random.default_rng(0).normal(0, 15, hu.shape))


def belly() -> np.ndarray:
    """The lowest slice of a drawn chest, repeated, and gas in its bowel."""
    chest = draw(0, 0, 96, 48)
    hu = np.repeat(np.where(chest.lungs[-1:], MUSCLE, chest.hu[-1:]), 40, 0)
    hu[4:, 30:40, 30:44] = AIR + 10
    return to_grey(hu)


OTHERS: dict[str, Callable[[], np.ndarray]] = {
    "black": lambda: np.zeros((40, 80, 80), np.uint8),
    "white": lambda: np.full((40, 80, 80), 255, np.uint8),
    "grey as lung": lambda: np.full((40, 80, 80), 50, np.uint8),
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (40, 80, 80), np.uint8),
    "noise as dark as lung": lambda: (
        np.random.default_rng(0).normal(50, 30, (40, 80, 80)).clip(0, 255).astype(np.uint8)
    ),
    "air": lambda: np.random.default_rng(0).normal(25, 6, (40, 80, 80)).clip(0, 255).astype(np.uint8),
    "a mask of lungs": lambda: draw(0, 0, 96, 48).lungs.astype(np.uint8) * 255,
    "a mask of all else": lambda: (~draw(0, 0, 96, 48).lungs).astype(np.uint8) * 255,
    "a cylinder of water": lambda: to_grey(np.where(np.hypot(*np.ogrid[-1:1:80j, -1:1:80j]) < 0.8, 0, AIR))[
        None
    ].repeat(40, 0),
    "a head": head,
    "a belly": belly,
    "one voxel": lambda: np.full((1, 1, 1), 60, np.uint8),
    "one slice of nothing": lambda: np.full((1, 64, 64), 25, np.uint8),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_where_there_are_no_lungs_none_are_found(other: Callable[[], np.ndarray]):
    assert find_lungs(other()) is None
    assert not shows_lungs(other())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (2, 3, 5), (40, 5, 300), (300, 17, 16), (7, 129, 127)])
def test_no_shape_is_too_odd(shape: tuple[int, ...]):
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    lungs = find_lungs(noise)
    assert lungs is None or lungs.mask.shape == shape
    assert shows_lungs(noise) in (True, False)


# --- is all of them there?


def without(volume: np.ndarray, part: str, share: int) -> np.ndarray:
    """A volume without its upper or lower third, quarter …"""
    slices = len(volume) // share
    return volume[slices:] if part == "upper" else volume[: len(volume) - slices]


CUT = {"upper": "beyond the first slice: is the scan cut off?", "lower": "beyond the last slice: is the scan cut off?"}


@pytest.mark.parametrize("find", ["glance", "search"])
@pytest.mark.parametrize("severity", range(5))
@pytest.mark.parametrize("size", [64, 96, 128])
def test_lungs_that_go_on_beyond_the_scan_are_said_and_whole_ones_are_not(size: int, severity: int, find: str):
    def said(hu: np.ndarray) -> list[str]:
        grey = to_grey(hu)
        return cut_off(glance_at_lungs(grey) if find == "glance" else find_lungs(grey).mask)

    for seed in range(3):
        hu = draw(seed, severity, size, 40 + 12 * seed).hu
        assert said(hu) == []
        for part, expected in CUT.items():
            assert said(without(hu, part, 3)) == [f"the lungs go on {expected}"], (seed, part)


def test_a_slab_out_of_the_middle_goes_on_at_both_ends():
    slab = to_grey(draw(0, 1, 96, 48).hu[16:32])
    assert cut_off(glance_at_lungs(slab)) == [
        "the lungs go on beyond the first and the last slice: is the scan cut off?"
    ]


@pytest.mark.parametrize("turn", ["mirrored", "feet first", "prone"])
def test_how_a_whole_chest_lies_raises_no_doubt(turn: str):
    for seed in range(4):
        assert cut_off(glance_at_lungs(to_grey(TURNS[turn](draw(seed, 2, 96, 48).hu)))) == []


@pytest.mark.parametrize("areas", [[9], [9, 9], [0, 9, 0], [4, 9, 4]])
def test_one_or_two_slices_and_small_ends_say_nothing(areas: list[int]):
    assert cut_off(np.arange(9) < np.array(areas)[:, None, None]) == []


def test_it_is_quick():
    large = to_grey(np.kron(draw(0, 3, 107, 53).hu, np.ones((3, 3, 3), np.int16)))[:, :320, :320]
    small = to_grey(draw(1, 4, 128, 96).hu)

    def seconds(function: Callable[[np.ndarray], object], volume: np.ndarray) -> float:
        """Of one core; the least of some runs."""
        times = []
        for _ in range(4):
            begin = time.process_time()
            function(volume)
            times.append(time.process_time() - begin)
        return min(times)

    assert seconds(find_lungs, small) < 0.5
    assert seconds(shows_lungs, large) < 0.05


# --- real scans


REAL = {  # the box that was looked at in pictures, as shares of the volume
    "cip_ct64/ct-64.nii.gz": ((0.03, 0.91), (0.13, 0.81), (0.05, 0.96)),
    "jpg_stacks/cip_ct64": ((0.03, 0.92), (0.13, 0.81), (0.05, 0.96)),
    "jpg_stacks/lung2": ((0.04, 0.92), (0.23, 0.80), (0.11, 0.94)),
    "ibsi_phantom/nifti/image/phantom.nii.gz": ((0, 0.97), (0, 0.87), (0.23, 1)),
    "totalseg/pulmonary_ct_cropped.nii.gz": ((0, 1), (0.07, 1), (0, 1)),
}


@pytest.mark.parametrize("depth", [96, 32])
@pytest.mark.parametrize("name", REAL)
def test_the_lungs_of_real_scans_are_where_they_were_seen(shared: Path, name: str, depth: int):
    tensor = tensor_of(shared / name, {96: 128, 32: 64}[depth], depth)
    lungs = find_lungs(tensor)
    expected = [slice(int(a * n), round(b * n)) for (a, b), n in zip(REAL[name], tensor.shape, strict=True)]
    assert overlap(lungs.box, tuple(expected)) > 0.85
    assert shows_lungs(tensor)


def test_the_lungs_are_those_that_chest_imaging_platform_found(shared: Path):
    sitk = pytest.importorskip("SimpleITK")
    image, mask = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(shared / "cip_ct64" / name)))[::-1]
        for name in ("ct-64.nrrd", "wholeLung-64.nrrd")
    )
    lungs = find_lungs(to_grey(image), (3.99, 4.17, 4.17))
    assert dice(lungs.mask, mask > 0) > 0.95
    check(image, mask > 0)


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("name", ["cip_ct64/ct-64.nii.gz", "jpg_stacks/cip_ct64", "jpg_stacks/lung2"])
def test_real_scans_are_whole_until_they_are_cut(shared: Path, name: str, width: int):
    tensor = tensor_of(shared / name, width, width // 2)
    assert cut_off(glance_at_lungs(tensor)) == []
    for part, expected in CUT.items():
        assert cut_off(glance_at_lungs(without(tensor, part, 3))) == [f"the lungs go on {expected}"]


@pytest.mark.parametrize("name", ["ibsi_phantom/nifti/image/phantom.nii.gz", "totalseg/pulmonary_ct_cropped.nii.gz"])
def test_real_scans_that_their_publishers_cut_are_said_to_be_cut(shared: Path, name: str):
    assert cut_off(glance_at_lungs(tensor_of(shared / name, 128, 64))) == [f"the lungs go on {CUT['upper']}"]


@pytest.mark.parametrize(
    "where", [(slice(None), slice(20, 110), slice(15, 110)), (slice(None), slice(None), slice(20, 108))]
)
def test_emphysema_that_the_picture_cuts_off_is_not_taken_for_air(shared: Path, where: Box):
    tensor = tensor_of(shared / "cip_ct64/ct-64.nii.gz", 128, 96)
    whole = find_lungs(tensor).mask[where]
    assert dice(find_lungs(tensor[where]).mask, whole) > 0.95


@pytest.mark.parametrize("name", ["totalseg/example_ct_abdomen.nii.gz", "lungfcp_0006_15slices"])
@pytest.mark.parametrize("width", [64, 128])
def test_an_abdomen_and_shoulders_show_none(shared: Path, name: str, width: int):
    tensor = tensor_of(shared / name, width, width // 2)
    assert find_lungs(tensor) is None
    assert not shows_lungs(tensor)
