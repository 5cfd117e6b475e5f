"""Options of `serve`, generated from the settings: one each, with its variable, its default and its sentence."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from momentum_sync.errors import Unsuitable
from momentum_sync.settings import Settings, read_with_errors, variable

_SCALES = ((1024 * 1024, "MiB"), (1024, "KiB"))


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with one option for each setting; options that are not given are None."""

    def run(**given: object) -> None:
        command(**given)

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_kind(field) | None, typer.Option(help=_help(name, field))],
        )
        for name, field in Settings.model_fields.items()
    ]
    cast(Any, run).__signature__ = inspect.Signature(parameters)
    run.__doc__ = command.__doc__
    return run


def _kind(field: FieldInfo) -> Any:
    """Return the type of an option; a string where the setting parses it."""
    kind = field.annotation
    if get_origin(kind) in (types.UnionType, Union):
        kind = next(each for each in get_args(kind) if each is not type(None))
    return kind if kind in (int, float, bool, Path) else str


def _help(name: str, field: FieldInfo) -> str:
    sentence = (field.description or "").replace("\n", " ")
    default = _default(field)
    return f"{sentence} [env: {variable(name)}{'' if default is None else f'; default: {default}'}]"


def server_url() -> str:
    """Return the root URL by which this machine reaches the server that `serve` would start. Raise Unsuitable."""
    hint = "Give the root URL of the server: --url http://127.0.0.1:8787"
    settings, errors = read_with_errors()
    if settings is None:
        raise Unsuitable(str(errors[0]), hint)
    if not settings.port:
        raise Unsuitable("MOMENTUM_PORT=0 is any free port.", hint)
    return settings.local_url


def described(name: str) -> str:
    """Return a setting's meaning, and its default where that is the same on every machine."""
    field = Settings.model_fields[name]
    sentence = (field.description or "").replace("\n", " ")
    default = None if isinstance(field.get_default(call_default_factory=True), Path) else _default(field)
    return sentence if default is None else f"{sentence} Default: {default}."


def _default(field: FieldInfo) -> str | None:
    value = field.get_default(call_default_factory=True)
    if value is None or value == ():
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        return f"{value.days}d" if value.days else f"{seconds:g}s"
    if isinstance(value, int):
        for size, unit in _SCALES:
            if value >= size and value % size == 0:
                return f"{value} ({value // size} {unit})"
    return f"{value:g}" if isinstance(value, float) else str(value)
