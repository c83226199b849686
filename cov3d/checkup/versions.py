"""Which versions are installed, whether they are those that cov3d needs, and whether they can be imported."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, metadata

from cov3d.checkup.findings import Finding

# Packages whose modules have other names, or where another module is what the commands take.
MODULES = {"fastai": "fastai.learner", "pillow": "PIL", "python-gdcm": "gdcm", "scikit-learn": "sklearn"}
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:(>=|==)\s*([0-9.]+))?")
UPGRADE = "run 'pip install --upgrade"


def look_at_versions() -> Iterator[Finding]:
    """cov3d itself, torch, and every other package that it needs."""
    version, needed = _own()
    yield judge_cov3d(version)
    yield look_at_torch(needed.get("torch", ""))
    others = {name: least for name, least in needed.items() if name != "torch"}
    installed = {name: _installed(name) for name in others}
    broken = {name: cause for name in others if installed[name] and (cause := import_error(name))}
    yield judge_packages(others, installed, broken, _pinned_torch(), _installed("torch"))


def judge_cov3d(version: str | None) -> Finding:
    """cov3d, Python and the system's kind."""
    found = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if version is None:
        advice = "cov3d is not installed, so nobody knows which packages it needs; run 'pip install .' in its folder"
        return Finding("cov3d", found, "note", advice)
    return Finding("cov3d", f"{version}, {found}")


def look_at_torch(least: str) -> Finding:
    """torch, as it is imported."""
    installed = _installed("torch")
    if installed is None:
        return Finding("torch", "not installed", "bad", f"{UPGRADE} torch'")
    if cause := import_error("torch"):
        return Finding("torch", f"{installed} cannot be imported: {cause}", "bad", f"{UPGRADE} torch', or reinstall it")
    import torch

    rocm = getattr(torch.version, "hip", None)
    brought = f"ROCm {rocm}" if rocm else "for CPUs"
    if torch.version.cuda:
        brought = f"CUDA {torch.version.cuda}, cuDNN {_cudnn(torch.backends.cudnn.version())}"
    return judge_torch(installed, least, brought)


def judge_torch(installed: str, least: str, brought: str) -> Finding:
    """torch's version, and in words those of the libraries it was ``brought`` with."""
    found = f"{installed}, {brought}"
    if numbers(installed) >= numbers(least):
        return Finding("torch", found)
    advice = f"cov3d needs torch {least} or later; {UPGRADE} torch torchvision'"
    if numbers(installed)[:2] == (2, 9):
        advice = f"torch 2.9 leaves cuDNN out of 3D convolution in half precision, which is many times slower; {advice}"
    return Finding("torch", found, "bad", advice)


def judge_packages(
    needed: Mapping[str, str],
    installed: Mapping[str, str | None],
    broken: Mapping[str, str],
    pinned_torch: str = "",
    torch: str | None = None,
) -> Finding:
    """All packages but torch: there, new enough, importable; torchvision made for the torch that is there."""
    names = sorted(needed)
    found = ", ".join(f"{name} {installed[name]}" for name in names if installed[name])
    missing = [name for name in names if installed[name] is None]
    old = [name for name in names if numbers(installed[name] or "") < numbers(needed[name]) and name not in missing]
    said = [f"{name} is missing" for name in missing]
    said += [f"{name} {needed[name]} or later is needed" for name in old]
    said += [f"{name} cannot be imported: {cause}" for name, cause in broken.items()]
    again = [*missing, *old, *broken]
    if pinned_torch and torch and numbers(pinned_torch)[:2] != numbers(torch)[:2]:
        said.append(f"torchvision was made for torch {pinned_torch}")
        again += ["torch", "torchvision"]
    if not said:
        return Finding("packages", found)
    advice = f"{'; '.join(said)}; {UPGRADE} {' '.join(dict.fromkeys(again))}'"
    return Finding("packages", found or "none", "bad", advice)


def numbers(version: str) -> tuple[int, ...]:
    """``2.10.0+cu128`` as (2, 10, 0), to be compared."""
    release = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, release.group().split("."))) if release else ()


def requirements(lines: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Which version is needed of which package, and how: ``{"torch": (">=", "2.10")}``. Extras are not needed."""
    matched = [REQUIREMENT.match(line) for line in lines if "extra ==" not in line.replace("extra==", "extra ==")]
    return {m.group(1).lower(): (m.group(2) or "", m.group(3) or "") for m in matched if m}


def _own() -> tuple[str | None, dict[str, str]]:
    """cov3d's version, and the least versions of what it needs."""
    try:
        needed = requirements(metadata.requires("cov3d") or [])
        return metadata.version("cov3d"), {name: least for name, (_, least) in needed.items()}
    except metadata.PackageNotFoundError:
        return None, {"torch": "2.10"}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _pinned_torch() -> str:
    """The torch that torchvision was made for."""
    try:
        how, version = requirements(metadata.requires("torchvision") or []).get("torch", ("", ""))
    except metadata.PackageNotFoundError:
        return ""
    return version if how == "==" else ""


def import_error(package: str) -> str:
    """Why a package cannot be imported, in its own words without the folders it lies in; empty if it can."""
    try:
        import_module(MODULES.get(package, package))
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return re.sub(r"/[^\s'\"():]*/", "", text)[:120]
    return ""


def _cudnn(version: int | None) -> str:
    """cuDNN's version as people say it: torch says 91002 for 9.10.2."""
    if version is None:
        return "none"
    major, rest = divmod(version, 10_000 if version >= 90_000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"
