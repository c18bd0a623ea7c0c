"""The `toolwire` command: reads the options, builds what a command needs, and stands aside."""

import dataclasses
import gc
import os
import signal
import subprocess
import sys
from typing import Annotated

import typer

from server.cli.options import takes_settings
from server.errors import CannotStart
from server.settings import BUILT_IN_MODEL, GROUPS, Resolved

app = typer.Typer(
    name="toolwire",
    help="An OpenAI-compatible inference server for the Qwen family whose heart is function calling.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _serve(resolved: Resolved) -> None:
    """Serve a model over HTTP; without options the built-in demonstration model on 127.0.0.1:8000."""
    from server.backends.child import Child
    from server.cli.launch import listen, share_one_heap

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until it serves, both signals end a start alike
    api = resolved.settings.api
    share_one_heap()
    with listen(api.host, api.port) as listener, Child() as engine:
        # Importing takes a second here, and longer in the engine: both at once. What is imported stays: looking for
        # garbage among it takes time, now and while replies are written.
        gc.disable()
        from rich.console import Console

        from server.cli.banner import LoadingBar, print_ready
        from server.cli.serve import ServerInfo, StartedEarly, serve

        gc.freeze()
        gc.enable()
        console = Console()
        bar = LoadingBar(console)

        def on_ready(serving: ServerInfo) -> None:
            bar.close()
            print_ready(console, serving.url, serving.model, serving.ready)

        try:
            serve(resolved.settings, StartedEarly(listener, engine), bar.show, on_ready)
        finally:
            bar.close()


def _config(resolved: Resolved) -> None:
    """Print every option, its value and where it came from."""
    from rich.console import Console
    from rich.table import Table

    table = Table("option", "value", "from")
    for group, kind in GROUPS.items():
        values = getattr(resolved.settings, group)
        for field in dataclasses.fields(kind):
            value = getattr(values, field.name)
            shown = "********" if field.metadata["secret"] and value else str(value)
            table.add_row(field.name, shown, resolved.origins[field.name])
    Console().print(table)


app.command("serve")(takes_settings(_serve))
app.command("config")(takes_settings(_config))


@app.command("check")
def check(
    model: Annotated[str, typer.Argument(help="Folder or hub id; weights are not needed.")],
    chat_template: Annotated[str, typer.Option(help="Jinja file to use instead of the checkpoint's own.")] = "",
    dialect: Annotated[str, typer.Option(help="Tool format to force.")] = "auto",
) -> None:
    """Send tool calls through a checkpoint's template, tokenizer and parser, and see whether they come back."""
    from rich.console import Console

    from server.checkpoint.checkpoint import Checkpoint
    from server.checkpoint.locate import locate
    from server.self_test import self_test

    folder = locate(model, weights=False)
    checkpoint = Checkpoint.open(folder, chat_template=chat_template, dialect=dialect)
    console = Console()
    console.print(f"dialect {checkpoint.dialect.name}, context {checkpoint.max_model_len:,} tokens")
    if faults := self_test(checkpoint):
        raise CannotStart("the self-test of tool calls failed:\n" + "\n".join(f"  {fault}" for fault in faults))
    console.print("self-test passed: every call came back as it was sent")


@app.command("plan", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(context: typer.Context, model: Annotated[str, typer.Argument(help="Folder or hub id.")]) -> None:
    """Print what a model needs of memory, without loading it: toolwire plan MODEL [--gpu-memory 24GiB]."""
    from server.checkpoint.locate import BUILT_IN_FOLDER

    place = str(BUILT_IN_FOLDER) if model == BUILT_IN_MODEL else model
    command = [sys.executable, "-m", "server.cli.plan", place, *context.args]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("chat", context_settings=PASSED_ON)
def chat(context: typer.Context) -> None:
    """Chat in the terminal with a running server; --tools FILE offers the functions of a Python file as tools."""
    _run_module("clients.chat", context.args)


@app.command("top", context_settings=PASSED_ON)
def top(context: typer.Context) -> None:
    """Watch a running server: throughput, queue, KV cache and memory."""
    _run_module("server.cli.top", context.args)


def _run_module(name: str, arguments: list[str]) -> None:
    """Hand over to a program of its own, with its own options; Ctrl-C is its business alone."""
    os.execv(sys.executable, [sys.executable, "-m", name, *arguments])


def main() -> None:
    """Run the command; a fault at start-up is one line and exit code 2."""
    try:
        app()
    except CannotStart as error:
        print(f"toolwire: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
