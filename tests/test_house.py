"""The house: imports go down, nothing heavy at the front door, nothing that unpickles or leaks, nothing twice."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cov3d"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Floors from the ground up; a room may import from lower floors and from its own.
FLOORS = {"words": 0, "scans": 1, "nets": 1, "training": 2, "results": 3, "cli": 4}
FRONT = {"cli", "demo", "__main__"}


def station(path: Path) -> str:
    """The station of a source file."""
    return station_of_module(".".join(["cov3d", *path.relative_to(PACKAGE).with_suffix("").parts]))


def imports(path: Path) -> set[str]:
    """Modules of the house that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cov3d"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("cov3d")}
    return found


def station_of_module(module: str) -> str:
    parts = module.split(".")[1:]
    if parts and parts[0] in FLOORS:
        return parts[0]
    return "cli" if parts and parts[0] in FRONT else "words"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_only_go_down(path: Path):
    here = station(path)
    for module in imports(path):
        there = station_of_module(module)
        assert FLOORS[there] <= FLOORS[here], f"{path.name} on floor {FLOORS[here]} imports {module}"
        assert {here, there} != {"scans", "nets"}, f"scans and nets do not know each other: {path.name}, {module}"


def test_inference_does_not_need_fastai():
    code = "import sys, cov3d.results.infer, cov3d.results.evaluate; assert 'fastai' not in sys.modules"
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True)


FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "load_learner",
    "SaveModelCallback",
    "CSVLogger",
    "joblib.load",
    "yaml.load",
    "eval",
    "exec",
    "extractall",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unpickles_or_runs_data(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name not in FORBIDDEN, f"{path.name}: {name}"
        assert name.split(".")[-1] not in FORBIDDEN - {"eval"}, f"{path.name}: {name}"
        values = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert values.get("allow_pickle") != "True"
        assert values.get("shell") != "True"
        if name == "torch.load":
            assert values.get("weights_only") == "True", f"{path.name}: torch.load without weights_only=True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_outputs_are_written_through_commit(path: Path):
    if path.name == "commit.py":
        return
    writers = {"write_text", "write_bytes", "to_csv", "savez", "savefig", "torch.save"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "torch.save" or name.split(".")[-1] in writers:
                assert any(ast.unparse(argument) == "file" for argument in node.args), f"{path.name}: {name}"
            mode = next((ast.literal_eval(a) for a in node.args[:1] if isinstance(a, ast.Constant)), "r")
            if name.split(".")[-1] == "open" and isinstance(mode, str) and set(mode) & set("wax+"):
                assert path.name == "journal.py", f"{path.name} opens a file to write"  # rows as they come


def test_every_public_function_says_what_it_is():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path.name} has no docstring"
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            assert not public or ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_the_front_names_are_all_there():
    import cov3d

    for name in cov3d.ROOMS:
        assert getattr(cov3d, name) is not None
    with pytest.raises(AttributeError, match="cov3d has no 'nothing'"):
        _ = cov3d.nothing


def test_loading_what_a_user_hands_over_never_unpickles(tmp_path: Path):
    """Read scans, a study, a cache, a model, weights and predictions under an audit hook."""
    import subprocess

    script = tmp_path / "audit.py"
    script.write_text(AUDIT)
    run = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, env=_with_tests_path())
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("events: []")


def _with_tests_path() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}


AUDIT = """
import sys
from pathlib import Path

import torch
from conftest import make_study, smooth_volume, write_nifti

import cov3d
from cov3d.nets.weights import start_from
from cov3d.predictions import read_predictions
from cov3d.results.infer import infer
from cov3d.scans.cache import make_entry
from cov3d.scans.tensors import make_tensors

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    root = make_study(folder / "study")
    write_nifti(folder / "scan.nii.gz", smooth_volume().astype("int16"))
    net = cov3d.NetSettings(base_width=4, penultimate=8)
    settings = cov3d.Preprocessing(width=32)
    built = cov3d.build(net)
    cov3d.save_model(folder / "m.safetensors", built, net, settings, "both", {})
    torch.save(built.state_dict(), folder / "w.pt")
    events = []
    sys.addaudithook(lambda event, arguments: events.append(event) if event == "pickle.find_class" else None)
    study = cov3d.read_study(root)
    one = cov3d.Machine(workers=1)
    cache = cov3d.fill_cache(study.rows, settings, folder / "cache", one)
    for row in study.rows:
        cache.load(row.scan)
    cov3d.preprocess(cov3d.read(folder / "scan.nii.gz"), settings)
    cov3d.load_model(folder / "m.safetensors")
    start_from(built, str(folder / "w.pt"), net)
    # What runs in workers, here where the hook can hear it.
    for row in study.rows:
        ways = {"settings": cov3d.config.to_dict(settings), "reading": cov3d.config.to_dict(cov3d.config.Reading())}
        job = {"scan": row.scan, "path": str(row.path), "folder": str(folder), **ways}
        make_entry(job)
        make_tensors({**job, "settings": [job["settings"]]})
    infer([root / "validation"], [folder / "m.safetensors"], folder / "p.csv", machine=one)
    read_predictions(folder / "p.csv")
    print("events:", events)
"""
