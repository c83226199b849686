"""Published settings by name: all there, each a run that can be, and overridden by what is said besides."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cov3d.cli import app
from cov3d.config import (
    Augmentation,
    LossSettings,
    NetSettings,
    Preprocessing,
    RunSettings,
    Training,
)
from cov3d.errors import SettingError
from cov3d.options import expand
from cov3d.recipes import METHODS, RECIPES, Recipe, find_recipe

GROUPS = {
    "preprocessing": Preprocessing,
    "net": NetSettings,
    "loss": LossSettings,
    "training": Training,
    "augmentation": Augmentation,
}


def settings_of(options: dict[str, Any]) -> RunSettings:
    """The settings of a recipe; every option must find its place."""
    left = dict(options)
    task = left.pop("task")
    groups = {
        name: group(**{f: left.pop(f) for f in inspect.signature(group).parameters if f in left})
        for name, group in GROUPS.items()
    }
    assert not left, left
    return RunSettings(task=task, **groups)


def test_all_28_settings_of_cov3d_and_the_submissions_of_3d_convnext_are_there():
    assert [name for name in RECIPES if name.startswith("cov3d-")] == [f"cov3d-{k}" for k in range(1, 29)]
    assert sum(name.startswith("convnext-severity-") for name in RECIPES) == 10
    assert sum(name.startswith("convnext-presence-") for name in RECIPES) == 5


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_run_that_can_be(name: str):
    recipe = RECIPES[name]
    options = {**recipe.options, **({"weights": "convnext.safetensors"} if recipe.weights else {})}
    settings = settings_of(options)
    assert settings.training.batch_size == (2 if name.startswith("cov3d") else 4)
    assert recipe.scores and all(0 < score < 1 for score in recipe.scores.values())


def test_the_best_of_both_by_hand():
    best = settings_of(RECIPES["cov3d-14"].options)
    assert best.preprocessing.shape == (128, 256, 256)
    assert (best.severity_factor, best.loss.smoothing("joint"), best.training.epochs) == (0.9, (0.1, 0.0), 40)
    assert RECIPES["cov3d-14"].scores == {"presence, validation": 0.9256, "severity, validation": 0.7546}
    second = settings_of({**RECIPES["convnext-severity-segmia"].options, "weights": "f"})
    assert second.preprocessing.shape == (224, 224, 224)
    assert (second.ema, second.loss_kind, second.training.schedule) == (0.99, "balanced-ce", "constant")
    assert RECIPES["convnext-severity-segmia"].scores["severity, test"] == 0.4885


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(SettingError, match=r"no recipe 'cov3d14'; did you mean cov3d-14\?"):
        find_recipe("cov3d14")
    with pytest.raises(SettingError, match="did you mean convnext-severity-segmia"):
        find_recipe("convnext-severty-segmia")


def run(*words: str) -> dict[str, Any]:
    """What a command with a recipe is called with."""
    called: dict[str, Any] = {}

    def command(
        training: Training, preprocessing: Preprocessing, recipe: str | None = None, task: str = "both"
    ) -> None:
        called.update(training=training, preprocessing=preprocessing, task=task)

    front = typer.Typer()
    front.command()(expand(command))
    result = CliRunner().invoke(front, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return called


def test_a_recipe_stands_in_for_what_nobody_said(monkeypatch: pytest.MonkeyPatch):
    recipe = Recipe("r", {"epochs": 50, "width": 320, "task": "severity"}, {})
    monkeypatch.setattr("cov3d.options.find_recipe", lambda name: recipe)
    called = run("--recipe", "r")
    assert (called["training"].epochs, called["preprocessing"].width, called["task"]) == (50, 320, "severity")
    called = run("--recipe", "r", "--epochs", "3", "--task", "both")
    assert (called["training"].epochs, called["preprocessing"].width, called["task"]) == (3, 320, "both")
    called = run("--recipe", "r", "--epochs", "40")  # the default, but said
    assert called["training"].epochs == 40
    assert run()["training"].epochs == 40


def test_a_recipe_that_begins_with_weights_asks_for_them():
    result = CliRunner().invoke(app, ["train", "nowhere", "--recipe", "convnext-severity-segmia"])
    assert result.exit_code == 2
    assert "begins with a convnext-tiny pretrained by segmia; say --weights FILE" in result.stderr


def test_the_list_is_what_can_be_typed():
    lines = CliRunner().invoke(app, ["recipes"]).stdout.splitlines()
    assert len(lines) == 2 * (len(RECIPES) + len(METHODS))
    assert "--learning-rate 1e-05 " in lines[lines.index("pretrain --method segmentation") + 1]
    first = lines.index(next(line for line in lines if line.startswith("cov3d-14:")))
    assert "severity, validation 0.7546" in lines[first] and "--severity-factor 0.9 " in lines[first + 1]


def test_depth_and_crop_keep_their_ratios_to_another_width():
    settings = find_recipe("convnext-severity-random").settings(width=112)
    assert settings.preprocessing.shape == (112, 112, 112) and settings.augmentation.crop_from == 128
    assert find_recipe("cov3d-14").settings(width=128).preprocessing.shape == (64, 128, 128)
    assert find_recipe("cov3d-14").settings(width=128, depth=32).preprocessing.shape == (32, 128, 128)


def test_another_task_has_its_own_weight_in_the_loss():
    assert find_recipe("cov3d-14").settings().severity_factor == 0.9
    assert find_recipe("cov3d-14").settings(task="presence").severity_factor == 0.1


def test_without_weights_nothing_is_inflated():
    assert find_recipe("convnext-severity-imagenet").settings(weights="none").training.inflate == "none"


def test_without_crops_scans_are_cached_as_large_as_they_are_seen():
    assert find_recipe("convnext-severity-random").settings(random_crop=0.0).augmentation.crop_from is None


def test_what_a_recipe_brings_is_not_blamed_on_its_user():
    words = ["train", ".", "--recipe", "convnext-severity-random", "--architecture", "resnet18"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 2 and "with --recipe convnext-severity-random: --crop-from says nothing" in run.stderr


@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_pretraining_has_settings_that_can_be(method: str):
    METHODS[method].settings(task="severity")
