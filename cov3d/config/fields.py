"""What a settings group is made of: fields with a help text and limits, and the way to JSON and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cov3d.errors import SettingError

# A SeriesInstanceUID, and what is written in its place.
UID, HIDDEN_UID = r"[0-9.]{1,64}", r"sha256:[0-9a-f]{16}"

Settings = TypeVar("Settings")


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field of a settings group: one default, one help text; ``min`` and ``max``; ``flag`` for a switch without a ``--no-``."""
    return field(default=default, metadata={"help": help, **limits})


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings group as plain values, for a worker process. A reading that is written is :func:`recorded` instead."""
    return asdict(settings)


def recorded(settings: Any) -> dict[str, Any]:
    """A settings group, and the groups in it, as plain values that may be written: a series' UID as its hash."""
    return asdict(settings, dict_factory=_without_uid)


def _without_uid(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: hide_uid(value) if name == "series" else value for name, value in values}


def hide_uid(series: str) -> str:
    """``--series`` as it may be written: a UID stands in a patient's headers, so a hash of it. Same UID, same hash."""
    return f"sha256:{hashlib.sha256(series.encode()).hexdigest()[:16]}" if re.fullmatch(UID, series) else series


def from_dict(group: type[Settings], values: Mapping[str, Any], source: str) -> Settings:
    """A settings group back from JSON; ``source`` names the file in the error.

    A setting that the file's version did not know yet has its default, which means what was done before.
    """
    known = {f.name for f in fields(group)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping) or not set(values) <= known:
        differing = sorted(set(values) - known) if isinstance(values, Mapping) else [type(values).__name__]
        raise SettingError(
            f"{source}: its {group.__name__} settings differ from this version's in {', '.join(differing)}; "
            "use the version of cov3d that wrote it"
        )
    try:
        return group(**values)
    except TypeError as error:
        raise SettingError(f"{source}: {group.__name__} settings are damaged: {error}") from error


def from_options(group: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A group, and the groups in it, from values of their fields by name; what is not there is as usual."""
    hints = get_type_hints(group)
    given = {
        f.name: from_options(hints[f.name], values) if is_dataclass(hints[f.name]) else values[f.name]
        for f in fields(group)  # type: ignore[arg-type]
        if is_dataclass(hints[f.name]) or f.name in values
    }
    return group(**given)


def check_limits(settings: Any) -> None:
    """Raise a SettingError for a value of another type than its field's, not among its choices, or out of its range."""
    hints = get_type_hints(type(settings))
    for f in fields(settings):
        name, value = f"--{f.name.replace('_', '-')}", getattr(settings, f.name)
        allowed = get_args(hints[f.name]) or (hints[f.name],)
        if value is None and NoneType in allowed:
            continue
        if get_origin(hints[f.name]) is tuple:
            if len(value) != len(allowed) or not all(isinstance(item, (int, float)) for item in value):
                raise SettingError(f"{name} {value!r} is not {len(allowed)} numbers")
            continue
        if get_origin(hints[f.name]) is Literal:
            if value not in allowed:
                raise SettingError(f"{name} {value!r} is not one of {', '.join(allowed)}")
            continue
        if type(value) not in allowed and not (type(value) is int and float in allowed):
            wanted = " or ".join(kind.__name__ for kind in allowed if kind is not NoneType)
            raise SettingError(f"{name} {value!r} is not of the kind {wanted}")
        low, high = f.metadata.get("min"), f.metadata.get("max")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            wanted = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise SettingError(f"{name} {value} is out of range; expected {wanted}")
