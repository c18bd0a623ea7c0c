"""Command-line options of `toolwire`: one typer option for each field of the settings, grouped."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from server.settings import (
    ENV_PREFIX,
    GROUPS,
    Resolved,
    config_path_from_environment,
    read_environment,
    read_file,
    resolve,
)

TITLES: Mapping[str, str] = {"model": "Model", "engine": "Engine and memory", "api": "Server"}


def takes_settings(command: Callable[[Resolved], None]) -> Callable[..., None]:
    """Wrap a command into one with every setting as an option, and `--config FILE`.

    Options that are not given are None here, so that `resolve` can distinguish them from values equal to the default.
    """

    def wrapped(**arguments: Any) -> None:
        path = arguments.pop("config") or config_path_from_environment()
        command(resolve(arguments, read_environment(), read_file(path)))

    parameters = [_config_parameter()]
    for group, kind in GROUPS.items():
        hints = get_type_hints(kind)
        parameters += [_parameter(field, hints[field.name], TITLES[group]) for field in dataclasses.fields(kind)]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _config_parameter() -> inspect.Parameter:
    text = f"TOML file with any of these options as keys. [env: {ENV_PREFIX}CONFIG]"
    annotation = Annotated[str, typer.Option("--config", help=text, metavar="FILE")]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default="", annotation=annotation)


def _parameter(field: dataclasses.Field[Any], hint: Any, title: str) -> inspect.Parameter:
    flag = "--" + field.name.replace("_", "-")
    names = [flag, f"--no-{flag[2:]}"] if hint is bool else [flag]
    declaration = f"{names[0]}/{names[1]}" if hint is bool else flag
    shown = "none" if field.default == "" else field.default
    text = f"{field.metadata['help']} [default: {shown}] [env: {ENV_PREFIX}{field.name.upper()}]"
    info = typer.Option(
        declaration, help=_escape(text), rich_help_panel=title, metavar=_metavar(hint), show_default=False
    )
    annotation = Annotated[(bool if hint is bool else str) | None, info]  # type: ignore[valid-type]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _escape(text: str) -> str:
    """Square brackets are markup to rich."""
    return text.replace("[", r"\[")


def _metavar(hint: Any) -> str | None:
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    return {int: "N", float: "X", str: "TEXT", bool: None}[hint]
