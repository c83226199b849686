"""Settings groups become command-line options: one field, one option, one help text.

A command takes whole groups (``def train(study, settings: RunSettings)``); :func:`expand` gives Typer a function that takes
their fields one by one. Where a command takes a ``recipe``, or the ``method`` of a pretraining, its options stand in for those
that nobody gave.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Set
from dataclasses import Field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from cov3d.config import from_options
from cov3d.errors import SettingError
from cov3d.recipes import METHODS, Recipe, find_recipe


def expand(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same command with every parameter that is a settings group replaced by that group's fields."""
    # get_type_hints would wrap options whose default is None once more before Python 3.11, and Typer then lose them
    signature = inspect.signature(command, eval_str=True)
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    brought = {name for recipe in METHODS.values() for name in recipe.options} if "method" in hints else set()
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in signature.parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and is_dataclass(hint):
            groups[parameter.name] = hint
            parameters += _parameters(hint, brought)
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(parameter.name, kind, default=parameter.default, annotation=hint))

    own = {name for name in hints if name not in groups}
    if {"recipe", "method"} & set(hints):
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter("context", kind, annotation=typer.Context))

    @functools.wraps(command)
    def expanded(**values: Any) -> Any:
        values = with_recipe(values)
        built = {name: _built(group, values) for name, group in groups.items()}
        return command(**{name: value for name, value in values.items() if name in own}, **built)

    vars(expanded)["__signature__"] = inspect.Signature(parameters)
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    del expanded.__wrapped__  # else Typer would look through to the groups
    return expanded


def with_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a command's options, a recipe's in place of those that nobody gave; without Typer's context.

    Raises:
        SettingError: there is no such recipe, or it begins with weights that nobody named.
    """
    context, recipe = values.pop("context", None), _recipe(values)
    if context is None or recipe is None:
        return values
    given = {option for option in values if _source(context, option) != "DEFAULT"}
    if recipe.weights and "weights" not in given:
        raise SettingError(
            f"--recipe {recipe.name} begins with {recipe.weights}; say --weights FILE, or --weights none"
        )
    return {**values, **recipe.beside({option: values[option] for option in given})}


def _recipe(values: Mapping[str, Any]) -> Recipe | None:
    """The recipe that a command's options name; a way of pretraining is one, too."""
    if "method" in values:
        return METHODS[values["method"]]
    return find_recipe(values["recipe"]) if values.get("recipe") is not None else None


def _source(context: typer.Context, option: str) -> str:
    """Where an option's value comes from: DEFAULT, COMMANDLINE, …"""
    source = context.get_parameter_source(option)
    return source.name if source else "DEFAULT"


def _built(group: type, values: Mapping[str, Any]) -> Any:
    """A group from its options' values. Where a recipe gave some of them, an error says so: nobody may have typed them."""
    try:
        return from_options(group, values)
    except SettingError as error:
        recipe = _recipe(values)
        if recipe is None:
            raise
        option = "method" if "method" in values else "recipe"
        raise SettingError(f"with --{option} {recipe.name}: {error}") from error


def _parameters(group: type, brought: Set[str] = frozenset()) -> list[inspect.Parameter]:
    """An option for each field of a group, and of the groups in it; a method brings its own defaults of those ``brought``."""
    hints = get_type_hints(group)
    nested = [
        _parameters(hints[f.name], brought)
        if is_dataclass(hints[f.name])
        else [_parameter(group, f, by_method=f.name in brought)]
        for f in fields(group)
    ]
    return [parameter for part in nested for parameter in part]


def _has_groups(group: type) -> bool:
    return any(is_dataclass(hint) for hint in get_type_hints(group).values())


def _parameter(group: type, f: Field, by_method: bool = False) -> inspect.Parameter:
    hint = get_type_hints(group)[f.name]
    panel = None if _has_groups(group) else (group.__doc__ or "").split("\n", 1)[0].rstrip(".").split(".")[0]
    limits = {name: f.metadata[name] for name in ("min", "max") if name in f.metadata}
    flag = [f.metadata["flag"]] if "flag" in f.metadata else []
    if by_method:
        limits["show_default"] = "as --method says"
    declared = typer.Option(*flag, help=f.metadata["help"], rich_help_panel=panel, **limits)
    annotation = Annotated[hint, declared]  # type: ignore[valid-type]
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=annotation)
