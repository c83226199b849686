"""Settings groups become command-line options: one field, one option, one help text.

A command takes whole groups (``def train(study, training: Training, net: NetSettings)``); :func:`expand` gives Typer a
function that takes their fields one by one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer


def expand(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same command with every parameter that is a settings group replaced by that group's fields."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if isinstance(hint, type) and is_dataclass(hint):
            groups[parameter.name] = hint
            parameters += [_parameter(hint, f) for f in fields(hint)]
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(parameter.name, kind, default=parameter.default, annotation=hint))

    @functools.wraps(command)
    def expanded(**values: Any) -> Any:
        built = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        return command(**values, **built)

    vars(expanded)["__signature__"] = inspect.Signature(parameters)
    expanded.__annotations__ = {p.name: p.annotation for p in parameters}
    del expanded.__wrapped__  # else Typer would look through to the groups
    return expanded


def _parameter(group: type, f: Field) -> inspect.Parameter:
    hint = get_type_hints(group)[f.name]
    panel = (group.__doc__ or "").split("\n", 1)[0].rstrip(".").split(".")[0]
    limits = {name: f.metadata[name] for name in ("min", "max") if name in f.metadata}
    flag = [f.metadata["flag"]] if "flag" in f.metadata else []
    declared = typer.Option(*flag, help=f.metadata["help"], rich_help_panel=panel, **limits)
    annotation = Annotated[hint, declared]  # type: ignore[valid-type]
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=annotation)
