"""Speed and memory of turning one scan into a tensor: cov3d beside other ways to the same tensor.

    pip install '.[benchmarks]'
    python tests/benchmarks/preprocessing.py                            # everything, a few minutes
    python tests/benchmarks/preprocessing.py --sizes 128 --rounds 1     # a glance

The scan is drawn: 160 slices of 512×512, RGB-coded grey JPEGs of about 80 KB. Every way starts at its folder, decoding
included, and ends at a volume in memory; one core, one thread. Seconds are the processor's, which on an idle core are the
clock's, and on a shared one do not count the neighbours. The ways take turns, round after round; a ratio is taken within
a round, and the median over the rounds is shown. A turn lasts two seconds or more: a short way is gone several times and
the median counts, as a single third of a second hangs on what ran before it. Nothing is extrapolated.

published loop      Pillow, then one scipy CubicSpline object per pixel column, float64 (Cov3d, arXiv 2207.12218, 3.1)
vectorised spline   the same with one CubicSpline call for all columns
torchio B-spline    torchio.Resample of the decoded stack to the same grid; it does not low-pass when it shrinks
cov3d               cov3d.preprocess(cov3d.read(folder), cov3d.Preprocessing(width=…))

Memory is the peak resident size of a fresh process that goes one way once, less what the interpreter held before its
first import; a way's libraries count.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["VECLIB_MAXIMUM_THREADS"] = os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import argparse
import platform
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from scipy.interpolate import CubicSpline

SLICES, MANY_SLICES, SIDE = 160, 1201, 512
WIDTHS = (128, 256, 320)  # depth is half of it
JUDGED = 320  # the width that the demands are about
NOISE = 2.7  # grey levels that make a drawn slice as large a file, and as slow to decode, as a scanner's
TURN = 2.0  # seconds
FASTER_THAN = {"published loop": 30, "torchio B-spline": 8}
MOST_MEGABYTES = 300
LIBRARIES = ("cov3d", "numpy", "scipy", "pillow", "torch", "torchio", "SimpleITK")

# A child's ru_maxrss begins at its parent's, so the peak is read as Linux keeps it for the process alone. The limit keeps
# a greedy way from taking the machine down.
CHILD = """
def kilobytes(field, file="/proc/self/status"):
    with open(file) as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

at_start = kilobytes("VmRSS:")
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, 2 * [kilobytes("MemAvailable:", "/proc/meminfo") * 768])
sys.path.insert(0, sys.argv[1])
import preprocessing
preprocessing.go(sys.argv[2], sys.argv[3], int(sys.argv[4]))
print((kilobytes("VmHWM:") - at_start) * 1024 / 1e6)
"""


def published_loop(folder: Path, width: int) -> np.ndarray:
    slices = shrunken_slices(folder, width)
    knots, places = np.linspace(0, 1, len(slices)), np.linspace(0, 1, width // 2)
    volume = np.empty((width // 2, width, width))
    for row in range(width):
        for column in range(width):
            volume[:, row, column] = CubicSpline(knots, slices[:, row, column])(places)
    return volume


def vectorised_spline(folder: Path, width: int) -> np.ndarray:
    slices = shrunken_slices(folder, width)
    return CubicSpline(np.linspace(0, 1, len(slices)), slices)(np.linspace(0, 1, width // 2))


def torchio_spline(folder: Path, width: int) -> np.ndarray:
    import torch
    import torchio

    stack = np.stack([np.asarray(decode(path)) for path in slice_files(folder)])
    image = torchio.ScalarImage(tensor=torch.from_numpy(stack).permute(2, 1, 0)[None])
    target = (width, width, width // 2), grid(stack.shape, width)
    resample = torchio.Resample(target, image_interpolation="bspline")
    return resample(image).data[0].permute(2, 1, 0).numpy()


def by_cov3d(folder: Path, width: int) -> np.ndarray:
    import cov3d

    return cov3d.preprocess(cov3d.read(folder), cov3d.Preprocessing(width=width))[0]


WAYS = {
    "published loop": published_loop,
    "vectorised spline": vectorised_spline,
    "torchio B-spline": torchio_spline,
    "cov3d": by_cov3d,
}


def go(way: str, folder: str | Path, width: int) -> np.ndarray:
    """Go one way from a folder to a volume ``(D, H, W)``: 0…1 if it is float64, else 0…255."""
    return WAYS[way](Path(folder), width)


def slice_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: int(path.stem))


def decode(path: Path) -> Image.Image:
    return Image.open(path).convert("L")


def shrunken_slices(folder: Path, width: int) -> np.ndarray:
    """All slices ``(n, width, width)``, 0…1, float64."""
    size = (width, width)
    return np.stack([np.asarray(decode(f).resize(size, Image.Resampling.BICUBIC)) / 255 for f in slice_files(folder)])


def grid(shape: tuple[int, ...], width: int) -> np.ndarray:
    """Where the others' voxels lie: the same field of view in plane, the first and last slice the same in depth."""
    slices, side, _ = shape
    affine = np.diag([side / width, side / width, (slices - 1) / (width // 2 - 1), 1])
    affine[:2, 3] = (side / width - 1) / 2
    return affine


def draw_scan(folder: Path) -> Path:
    """Write a drawn chest as a folder of slices: enlarged smoothly, with noise on every pixel."""
    from cov3d.chest import draw
    from cov3d.forms import WINDOW

    low, high = WINDOW
    chest = (np.clip(draw(0, 2, 128, SLICES).hu, low, high) - low).astype(np.float32) * (255 / (high - low))
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number, pixels in enumerate(chest):
        large = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        noisy = large + NOISE * rng.standard_normal(large.shape, np.float32)
        grey = Image.fromarray(np.rint(np.clip(noisy, 0, 255)).astype(np.uint8))
        grey.convert("RGB").save(folder / f"{number}.jpg", quality=95)
    return folder


def repeat_slices(scan: Path, folder: Path, count: int) -> Path:
    """A scan of ``count`` slices: those of ``scan``, over and over, under other numbers."""
    files = slice_files(scan)
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").hardlink_to(files[number % len(files)])
    return folder


def stay_on_one_core() -> str:
    """Keep this process, its children and every library to one core and one thread; returns how far that went."""
    from threadpoolctl import threadpool_limits

    if find_spec("torchio"):
        import SimpleITK
        import torch
        import torchio  # noqa: F401  so that no way pays for imports

        torch.set_num_threads(1)
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1)
    if not hasattr(os, "sched_setaffinity"):
        return "one thread; this system does not pin to a core"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return "one core, one thread"


def time_ways(scan: Path, width: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, tuple[float, float]]]:
    """Seconds of every way in every round, and its largest and mean difference in grey levels from the first way."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS if is_installed(way)}
    apart: dict[str, tuple[float, float]] = {}
    reference = None
    for number in range(1, rounds + 1):
        for way in seconds:
            say(f"{of_size(width)}, round {number} of {rounds}: {way}")
            taken, volume = take_turn(way, scan, width)
            seconds[way].append(taken)
            if number == 1:
                levels = grey_levels(volume)
                reference = levels if reference is None else reference
                apart[way] = difference(levels, reference)
            del volume
    return seconds, apart


def take_turn(way: str, scan: Path, width: int) -> tuple[float, np.ndarray]:
    """Go one way again and again until the turn is over; the median of the seconds it took, and the last volume."""
    seconds: list[float] = []
    while sum(seconds) < TURN:
        volume = None  # one at a time
        start = time.process_time()
        volume = go(way, scan, width)
        seconds.append(time.process_time() - start)
    return median(seconds), volume


def difference(levels: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    gap = np.abs(levels - reference)
    return float(gap.max()), float(gap.mean())


def is_installed(way: str) -> bool:
    return way != "torchio B-spline" or find_spec("torchio") is not None


def grey_levels(volume: np.ndarray) -> np.ndarray:
    """Float32, 0…255. The published ways overshoot a little between slices; what no pixel can show does not count."""
    return np.clip(volume * 255 if volume.dtype == np.float64 else volume, 0, 255).astype(np.float32)


def median_ratio(seconds: dict[str, list[float]], way: str) -> float:
    """How many times faster cov3d is than another way."""
    return median(other / own for other, own in zip(seconds[way], seconds["cov3d"], strict=True))


def peak_megabytes(way: str, scan: Path, width: int) -> float | None:
    """Peak memory of a fresh process; None off Linux, or where it takes over three quarters of the free memory."""
    if not Path("/proc/self/status").exists():
        return None
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", CHILD, here, way, scan, str(width)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        print(f"{way}: {(child.stderr.splitlines() or [f'ended with {child.returncode}'])[-1]}", file=sys.stderr)
        return None
    return float(child.stdout.split()[-1])


def of_size(width: int) -> str:
    return f"{width // 2}×{width}²"


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(library: str) -> str:
    try:
        return f"{library} {metadata.version(library)}"
    except metadata.PackageNotFoundError:
        return f"no {library}"


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """The first two columns to the left, figures to the right."""
    say("")
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, ["─" * width for width in widths], *rows):
        cells = [f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(row)]
        print("  ".join(cells).rstrip())
    print()


def say(news: str) -> None:
    """Show what is going on, in the table's place; only to a person."""
    if sys.stderr.isatty():
        print(f"\r{news:60}", end="\r", file=sys.stderr, flush=True)


def print_speed(scan: Path, warm: Path, widths: list[int], rounds: int) -> dict[str, float]:
    """The table of speed; returns how many times faster cov3d is than each way at the judged width, if it was asked."""
    rows, judged = [], {}
    for way in filter(is_installed, WAYS):
        go(way, warm, 32)
    for width in widths:
        seconds, apart = time_ways(scan, width, rounds)
        ratios = {way: median_ratio(seconds, way) for way in seconds}
        rows += [speed_row(way, width, seconds, apart, ratios) for way in WAYS]
        judged = ratios if width == JUDGED else judged
    print_table(["size", "way", "seconds", "cov3d is faster", "largest difference", "mean"], rows)
    print(
        "Seconds: of the processor, median of the rounds. Differences: from the published loop, in grey levels of 0…255.\n"
    )
    return judged


def speed_row(way: str, width: int, seconds: dict, apart: dict, ratios: dict) -> list[str]:
    if way not in seconds:
        return [of_size(width), f"{way}: pip install '.[benchmarks]'", "–", "–", "–", "–"]
    times = "–" if way == "cov3d" else f"{ratios[way]:.1f} times"
    differences = ["–", "–"] if way == "published loop" else [f"{level:.2g}" for level in apart[way]]
    return [of_size(width), way, f"{median(seconds[way]):.2f}", times, *differences]


def print_memory(scan: Path, many: Path) -> float | None:
    """The table of memory; returns the peak of cov3d with many slices."""
    rows, peak = [], None
    for folder, count in ((scan, SLICES), (many, MANY_SLICES)):
        for way in ("vectorised spline", "cov3d"):
            say(f"memory of {count} slices: {way}")
            peak = peak_megabytes(way, folder, JUDGED)
            rows.append([f"{count} slices to {of_size(JUDGED)}", way, "–" if peak is None else f"{peak:.0f}"])
    print_table(["scan", "way", "peak MB"], rows)
    print("Peak of a fresh process above what it held before its first import; libraries count.\n")
    return peak


def judge(demand: str, reached: float | None, met: bool, unit: str) -> None:
    outcome = "not measured" if reached is None else f"{reached:.1f} {unit}: {'met' if met else 'MISSED'}"
    print(f"{demand}: {outcome}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    help = "widths of the tensor; half of it is its depth (default: all)"
    parser.add_argument("--sizes", type=int, nargs="+", choices=WIDTHS, default=WIDTHS, help=help)
    parser.add_argument("--rounds", type=int, default=3, help="how often every way is timed (default: 3)")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        measure(Path(folder), asked.sizes, max(asked.rounds, 1))


def measure(folder: Path, widths: list[int], rounds: int) -> None:
    print(f"{cpu_name()}: {stay_on_one_core()}")
    print(f"Python {platform.python_version()}, {', '.join(map(version, LIBRARIES))}")
    scan = draw_scan(folder / "scan")
    size = sum(path.stat().st_size for path in scan.iterdir()) / SLICES / 1e3
    print(f"{SLICES} slices of {SIDE}×{SIDE}, RGB-coded grey JPEGs of {size:.0f} KB; rounds: {rounds}\n")
    ratios = print_speed(scan, repeat_slices(scan, folder / "few", 8), widths, rounds)
    peak = print_memory(scan, repeat_slices(scan, folder / "many", MANY_SLICES))
    for way, demanded in FASTER_THAN.items():
        ratio = ratios.get(way)
        demand = f"{of_size(JUDGED)} at least {demanded} times faster than {way}"
        judge(demand, ratio, (ratio or 0) >= demanded, "times")
    judge(f"{MANY_SLICES} slices within {MOST_MEGABYTES} MB", peak, (peak or 0) <= MOST_MEGABYTES, "MB")


if __name__ == "__main__":
    main()
