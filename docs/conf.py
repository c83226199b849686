"""How the documentation is built: ``sphinx-build -W -b html docs docs/_build``."""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import typer
from sphinx.errors import ExtensionError

import cov3d
from cov3d.cli import app as front_door

project = "cov3d"
author = "The cov3d developers"
copyright = author
version = release = metadata.version("cov3d")

warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)  # fastai's, at import
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"cov3d {release}"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

OWN = "Options of its own"
HERE = Path(__file__).parent


def command_line_page() -> str:
    """Every command and its options, from the texts that ``cov3d COMMAND --help`` shows."""
    lines = ["# The command line", "", "```text", "cov3d COMMAND [STUDY] [OPTIONS]", "```", ""]
    lines += ["This page is made from the program's own help. `-h` and `--help` show it, `--version` the version.", ""]
    lines += ["Results go to files and standard output, messages to standard error. [Exit codes](exit-codes.md).", ""]
    parsed: Any = typer.main.get_command(front_door)
    for command in front_door.registered_commands:
        if not command.hidden:
            name = command.name or command.callback.__name__.replace("_", "-")
            spelled = {p.name: [*p.opts, *p.secondary_opts] for p in parsed.commands[name].params}
            lines += command_section(name, command.callback, spelled)
    return "\n".join(lines)


def command_section(name: str, command: Any, spelled: dict[str, list[str]]) -> list[str]:
    """One command: what it does, its arguments, and its options in their groups."""
    usage: list[str] = []
    groups: dict[str, list[str]] = defaultdict(list, {"Arguments": [], OWN: []})
    for parameter in inspect.signature(command).parameters.values():
        if parameter.annotation is typer.Context:
            continue
        hint, declared = get_args(parameter.annotation)[:2]
        if declared.hidden:
            continue
        if isinstance(declared, typer.models.ArgumentInfo):
            word = (declared.metavar or parameter.name).upper() + ("…" if get_origin(plain(hint)) is list else "")
            usage.append(word if parameter.default is parameter.empty else f"[{word}]")
            groups["Arguments"].append(table_row([word], hint, declared, parameter.default))
        else:
            row = table_row(spelled[parameter.name], hint, declared, parameter.default)
            groups[declared.rich_help_panel or OWN].append(row)
    lines = [f"## {name}", "", " ".join(inspect.getdoc(command).split()), ""]
    lines += ["```text", " ".join(["cov3d", name, *usage, "[OPTIONS]"]), "```", ""]
    for title, rows in groups.items():
        lines += [f"**{title}**", "", "| | | default |", "|---|---|---|", *rows, ""] if rows else []
    return lines


def table_row(names: list[str], hint: Any, declared: Any, default: Any) -> str:
    """Name, meaning with the values that are taken, and default of a parameter."""
    text = declared.help
    choices = [f"`{choice}`" for choice in get_args(plain(hint))] if get_origin(plain(hint)) is Literal else []
    if choices:
        text += f" One of {', '.join(choices)}."
    if declared.min is not None:
        text += f" At least {declared.min:g}." if declared.max is None else f" {declared.min:g} to {declared.max:g}."
    written = " ".join(f"`{name}`" for name in names)
    return f"| {written} | {text} | {default_text(names, declared, default)} |"


def default_text(names: list[str], declared: Any, default: Any) -> str:
    """The default as people would say it."""
    if isinstance(declared.show_default, str):
        return declared.show_default
    if default is inspect.Parameter.empty:
        return "required"
    if isinstance(default, bool):
        return f"`{names[not default]}`" if len(names) > 1 else "off"
    return "" if default is None else f"`{default}`"


def plain(hint: Any) -> Any:
    """A type without the ``| None`` of it."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(hint) else hint


def describe_settings(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give a settings group's docstring its fields, each with the help text of the option it becomes."""
    if what == "class" and is_dataclass(obj):
        helped = [f for f in fields(obj) if "help" in f.metadata]
        lines += ["", *(f":param {f.name}: {f.metadata['help']}" for f in helped)]


def check_public_names() -> None:
    """The page of the Python names has all of them."""
    page = (HERE / "reference" / "python.md").read_text(encoding="utf-8")
    missing = [name for name in cov3d.ROOMS if f":: cov3d.{name}\n" not in page]
    if missing:
        raise ExtensionError(f"reference/python.md lacks {', '.join(missing)}")


def setup(app: Any) -> None:
    """Write the page of commands before anything is read."""
    check_public_names()
    (HERE / "reference" / "command-line.md").write_text(command_line_page(), encoding="utf-8")
    app.connect("autodoc-process-docstring", describe_settings)
