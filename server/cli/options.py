"""Command-line options of `toolwire`: one typer option for each field of the settings, grouped."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from server.settings import (
    ENV_PREFIX,
    GROUPS,
    TEXTS,
    Resolved,
    config_path_from_environment,
    read_environment,
    read_file,
    resolve,
)

TITLES: Mapping[str, str] = {
    "model": "Model",
    "engine": "Engine and memory",
    "remote": "Engines elsewhere",
    "api": "Server",
}
METAVARS = {"adapter": "NAME=FOLDER"}  # of options whose type says too little
# Options of `toolwire engine`, beside those of its own group: it knows no clients and no other engine.
ENGINE_OPTIONS = {
    "model", "chat_template", "dialect", "generation_config", "max_model_len", "engine_key", "drain_timeout_s",
    "log_format",
}  # fmt: skip


def takes_settings(command: Callable[[Resolved], None]) -> Callable[..., None]:
    """Wrap a command into one with every setting as an option, and `--config FILE`."""
    return _with_options(command, lambda group, name: True)


def takes_engine_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The same with the settings of an engine alone; the command's own parameters stay its options."""
    return _with_options(command, lambda group, name: group == "engine" or name in ENGINE_OPTIONS)


def _with_options(command: Callable[..., None], has: Callable[[str, str], bool]) -> Callable[..., None]:
    """Options that are not given are None here, so that `resolve` can tell them from values equal to the default."""
    _, *own = inspect.signature(command).parameters.values()

    def wrapped(**arguments: Any) -> None:
        path = arguments.pop("config") or config_path_from_environment()
        beside = {one.name: arguments.pop(one.name) for one in own}
        given = {name: value for name, value in arguments.items() if value != []}  # of several values none
        command(resolve(given, read_environment(), read_file(path)), **beside)

    parameters = [*own, _config_parameter()]
    for group, kind in GROUPS.items():
        hints = get_type_hints(kind)
        fields = [field for field in dataclasses.fields(kind) if has(group, field.name)]
        parameters += [_parameter(field, hints[field.name], TITLES[group]) for field in fields]
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
    shown = "none" if field.default in ("", ()) else field.default
    text = f"{field.metadata['help']} [default: {shown}] [env: {ENV_PREFIX}{field.name.upper()}]"
    info = typer.Option(
        declaration,
        help=_escape(text),
        rich_help_panel=title,
        metavar=METAVARS.get(field.name) or _metavar(hint),
        show_default=False,
    )
    taken: Any = bool if hint is bool else list[str] if hint == TEXTS else str
    annotation = Annotated[taken | None, info]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _escape(text: str) -> str:
    """Square brackets are markup to rich."""
    return text.replace("[", r"\[")


def _metavar(hint: Any) -> str | None:
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    return {int: "N", float: "X", str: "TEXT", bool: None, TEXTS: "URL"}[hint]
