"""Speed of augmenting one volume: cov3d's one sampling beside the same steps done by others.

    pip install '.[benchmarks]'
    python tests/benchmarks/augmentation.py             # 64×128×128, two minutes
    python tests/benchmarks/augmentation.py --large     # 112×224×224 as well

A drawn chest is flipped, rotated in plane by up to 30°, deformed elastically, blurred and given noise: every step every
time. One core, one thread. The ways take turns, round after round; a short way is gone several times in its turn, and its
median counts. A ratio is taken within a round, and the median over the rounds is shown. Ways begin at what their
pipelines keep, float32 in memory, cov3d at its uint8, and end at float32. Not all do quite the same:

published           numpy and scipy one after another (rotation by cubic spline), then white noise under the full Gaussian
                    by three convolutions for each component, and grid_sample; σ 35 of 224 voxels, in proportion
torchio             RandomFlip, RandomAffine, RandomBlur, RandomNoise, RandomElasticDeformation (B-spline, 7³ points)
torchio, fused      the same with RandomAffineElasticDeformation, one sampling for rotation and deformation
MONAI               RandFlip, RandRotate, RandGaussianSmooth, RandGaussianNoise, Rand3DElastic with the same σ
MONAI, fused        the same with the rotation within Rand3DElastic, one sampling for both
cov3d               cov3d.training.augment.augment

Two more sections: how much a cached scan shrunk whole in the sampling (--crop-from) differs from one preprocessed at
the network's size; and, where there is a GPU, the time of a batch of 4 there.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import argparse
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from scipy import ndimage

warnings.filterwarnings("ignore")

from cov3d.chest import draw
from cov3d.config import Augmentation, AugmentationNumbers, Preprocessing
from cov3d.scans.preprocess import preprocess
from cov3d.scans.scan import Scan
from cov3d.training.augment import apply, augment
from cov3d.training.draws import Draw

SMALL, LARGE = (64, 128, 128), (112, 224, 224)
TURN = 1.0  # seconds
FASTER_THAN_BEST_PEER = 5
STEPS = AugmentationNumbers(flip_width=1.0, rotate=1.0, blur=1.0, noise=1.0, elastic=1.0)
LIBRARIES = ("torch", "numpy", "scipy", "torchio", "monai")


def published(volume: np.ndarray) -> Callable[[], object]:
    rng = np.random.default_rng(0)

    def way() -> torch.Tensor:
        scan = np.flip(volume, 2)
        scan = ndimage.rotate(scan, rng.uniform(-30, 30), axes=(1, 2), reshape=False)
        scan = ndimage.gaussian_filter(scan, rng.uniform(0.6, 0.8))
        scan = 0.97 * scan + 0.03 * rng.normal(0.5, rng.uniform(0.3, 1), scan.shape).astype(np.float32)
        return deformed(torch.from_numpy(scan)[None, None], float(rng.uniform(1, 7)))

    return way


def deformed(scan: torch.Tensor, alpha: float) -> torch.Tensor:
    """The published deformation of ``(1, 1, D, H, W)``, with linear sampling."""
    shape = scan.shape[2:]
    moves = []
    for _ in shape:
        noise = torch.rand(scan.shape) * 2 - 1
        for axis, side in enumerate(shape):
            taps = int(5 * 35 * side / 224) // 2 * 2 + 1
            kernel = torch.exp(-((torch.arange(taps) - taps // 2) ** 2) / (2 * (35 * side / 224) ** 2))
            sides, padding = [1, 1, 1], [0, 0, 0]
            sides[axis], padding[axis] = taps, taps // 2
            noise = torch.nn.functional.conv3d(noise, (kernel / kernel.sum()).view(1, 1, *sides), padding=padding)
        moves.append(alpha * noise[0, 0])
    places = torch.meshgrid(*((2 * torch.arange(side) + 1) / side - 1 for side in shape), indexing="ij")
    at = torch.stack([place + move for place, move in zip(places, moves, strict=True)][::-1], -1)
    return torch.nn.functional.grid_sample(scan, at[None], padding_mode="border", align_corners=False)


def torchio_ways(volume: np.ndarray) -> dict[str, Callable[[], object]]:
    import torchio

    subject = torchio.ScalarImage(tensor=torch.from_numpy(volume)[None])
    affine = {"scales": 0, "degrees": (-30, 30, 0, 0, 0, 0), "default_pad_value": 0}
    elastic = {"num_control_points": 7, "max_displacement": 2.0}
    flip, blur = torchio.RandomFlip(axes=(2,), flip_probability=1), torchio.RandomBlur((0.6, 0.8))
    noise = torchio.RandomNoise(0.015, (0.009, 0.03))
    in_turn = [flip, torchio.RandomAffine(**affine), blur, noise, torchio.RandomElasticDeformation(**elastic)]
    both = torchio.RandomAffineElasticDeformation(affine_kwargs=affine, elastic_kwargs=elastic)
    return {
        "torchio": lambda: torchio.Compose(in_turn)(subject).data,
        "torchio, fused": lambda: torchio.Compose([flip, both, blur, noise])(subject).data,
    }


def monai_ways(volume: np.ndarray) -> dict[str, Callable[[], object]]:
    from monai import transforms

    scan = torch.from_numpy(volume)[None]
    angle = np.deg2rad(30)
    elastic = {"sigma_range": (35 * volume.shape[2] / 224,) * 2, "magnitude_range": (1, 7), "padding_mode": "zeros"}
    flip, sigma = transforms.RandFlip(prob=1, spatial_axis=2), (0.6, 0.8)
    blur = transforms.RandGaussianSmooth(sigma, sigma, sigma, prob=1)
    noise = transforms.RandGaussianNoise(prob=1, mean=0.015, std=0.03)
    rotate = transforms.RandRotate(range_x=angle, prob=1, padding_mode="zeros")
    in_turn = transforms.Compose([flip, rotate, blur, noise, transforms.Rand3DElastic(prob=1, **elastic)])
    both = transforms.Rand3DElastic(prob=1, rotate_range=(angle, 0, 0), **elastic)
    fused = transforms.Compose([flip, both, blur, noise])
    return {"MONAI": lambda: in_turn(scan), "MONAI, fused": lambda: fused(scan)}


def by_cov3d(volume: np.ndarray) -> Callable[[], object]:
    scans = torch.from_numpy(np.rint(volume * 255).astype(np.uint8))[None, None]
    generator = torch.Generator().manual_seed(0)
    return lambda: augment(scans, STEPS, generator)


def ways(volume: np.ndarray) -> dict[str, Callable[[], object]]:
    """Every way that is installed; cov3d last."""
    found = {"published": published(volume)}
    if find_spec("torchio"):
        found |= torchio_ways(volume)
    if find_spec("monai"):
        found |= monai_ways(volume)
    return {**found, "cov3d": by_cov3d(volume)}


def seconds(way: Callable[[], object]) -> float:
    """The median of the goes that fit into a turn, in seconds of the processor, which do not count the neighbours."""
    times: list[float] = []
    end = time.monotonic() + TURN
    while not times or time.monotonic() < end:
        begin = time.process_time()
        way()
        times.append(time.process_time() - begin)
    return median(times)


def chest(preprocessing: Preprocessing, size: int) -> np.ndarray:
    """A drawn chest as it is cached, uint8 ``(1, D, H, W)``."""
    hu = draw([0, 0], 3, size, size // 3).hu
    return preprocess(Scan("drawn", list(hu.astype(np.float32)), "HU"), preprocessing)  # type: ignore[arg-type]


def compare(shape: Sequence[int], rounds: int) -> bool:
    """Time all ways at one size; whether cov3d is fast enough beside the best of the others."""
    volume = chest(Preprocessing(width=shape[2], depth=shape[0]), shape[2])[0].astype(np.float32) / 255
    found = ways(volume)
    taken = {name: [] for name in found}
    for name in list(found):
        try:
            found[name]()  # imports, first allocations
        except (MemoryError, RuntimeError) as error:
            print(f"{name} failed: {str(error)[:100]}")
            del found[name], taken[name]
    for _ in range(rounds):
        for name, way in found.items():
            taken[name].append(seconds(way))
    print(f"\n| way, {'×'.join(map(str, shape))} | seconds | cov3d is faster |\n|---|---|---|")
    ratios = {}
    for name, times in taken.items():
        ratios[name] = median(a / b for a, b in zip(times, taken["cov3d"], strict=True))
        print(f"| {name} | {median(times):.3f} | {f'{ratios[name]:.1f} times' if name != 'cov3d' else ''} |")
    best = min((ratio, name) for name, ratio in ratios.items() if name != "cov3d")
    print(f"\nbest of the others: {best[1]}, {best[0]:.1f} times cov3d's time (asked: {FASTER_THAN_BEST_PEER})")
    return best[0] >= FASTER_THAN_BEST_PEER


def resampled(width: int, crop_from: int) -> None:
    """A scan cached larger and shrunk whole, beside the scan preprocessed at the network's size, in grey levels."""
    preprocessing = Preprocessing(width=width)
    wanted = torch.from_numpy(chest(preprocessing, 512)).float()[0]
    cached = torch.from_numpy(chest(Augmentation(crop_from=crop_from).to_cache(preprocessing), 512))
    apart = (apply(cached[None], [Draw()], preprocessing.shape)[0, 0] * 255 - wanted).abs()
    worst = torch.quantile(apart.flatten()[::7], torch.tensor([0.5, 0.99])).tolist()
    print(
        f"\nwhole scan cached at {crop_from} and shrunk to {width}, beside preprocessed at {width}: "
        f"mean {apart.mean():.2f} grey levels, median {worst[0]:.2f}, 99 % within {worst[1]:.1f}, most {apart.max():.0f}"
    )


def on_gpu(shape: Sequence[int], count: int = 4) -> None:
    """The time of a batch on the GPU, every step every time and as published."""
    scans = torch.randint(0, 256, (count, 1, *shape), dtype=torch.uint8, device="cuda")
    generator = torch.Generator().manual_seed(0)
    for name, numbers in (("every step", STEPS), ("as published", Augmentation().numbers("convnext"))):
        times = []
        for _ in range(30):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            augment(scans, numbers, generator)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        print(f"{torch.cuda.get_device_name()}, {count} of {shape}, {name}: {1000 * median(times[5:]):.1f} ms a batch")


def limit_memory() -> None:
    """No more than three quarters of what is free, so that a greedy way fails and the machine stays up."""
    if platform.system() == "Linux" and not torch.cuda.is_available():  # CUDA reserves more addresses than it uses
        import resource

        with Path("/proc/meminfo").open() as status:
            free = next(int(line.split()[1]) for line in status if line.startswith("MemAvailable"))
        resource.setrlimit(resource.RLIMIT_AS, (free * 768, free * 768))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--large", action="store_true", help="112×224×224 as well; the others take minutes")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limit_memory()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES if find_spec(name))
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}; cov3d beside:")
    fast = compare(SMALL, arguments.rounds)
    if arguments.large:
        compare(LARGE, 1)
    resampled(224, 256)
    if torch.cuda.is_available():
        on_gpu(LARGE)
    if not fast:
        raise SystemExit("cov3d is slower than asked")


if __name__ == "__main__":
    main()
