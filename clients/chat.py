"""Terminal chat with tools: `toolwire chat --tools FILE` offers the functions of a Python file to the model."""

import sys
from collections.abc import Iterator
from pathlib import Path

from openai import APIConnectionError, APIError
from rich.console import Console
from rich.markup import escape

from clients.connect import Server, options, server_of
from clients.functions import Toolbox, functions_in_file
from clients.loop import Conversation, LoopObserver, StreamedCall
from clients.terminal import printable

HELP = "/tools lists the tools, /reset starts a new conversation, /quit or Ctrl-D ends; Ctrl-C stops a reply"
LONGEST_RESULT_SHOWN = 300


def main() -> None:
    """python -m clients.chat"""
    parser = options(__doc__ or "")
    parser.prog = "toolwire chat"
    parser.add_argument("--tools", type=Path, help="Python file; its public functions are offered as tools")
    parser.add_argument("--system", default="", help="system message")
    chosen = parser.parse_args()
    console = Console(highlight=False)
    try:
        tools = Toolbox.of(functions_in_file(chosen.tools) if chosen.tools else [])
        server = server_of(chosen)
    except (APIConnectionError, ValueError, TypeError) as error:
        hint = f"no server answers at {chosen.url}; start one with: toolwire serve"
        raise SystemExit(hint if isinstance(error, APIConnectionError) else f"--tools: {error}") from error
    except APIError as error:
        raise SystemExit(printable(f"{chosen.url}: {error.message}")) from error
    chat(console, server, tools, chosen.system)


def chat(console: Console, server: Server, tools: Toolbox, system: str) -> None:
    """Answer lines from standard input until it ends; prompts are printed only on a terminal."""
    start = [{"role": "system", "content": system}] if system else []
    conversation = Conversation(server.client(), server.model, tools, list(start))
    console.print(f"[dim]{_shown(server.model)}: {HELP}[/dim]")
    for line in _lines(console):
        match line.strip():
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/help":
                console.print(HELP)
            case "/reset":
                conversation.messages[:] = start
            case "/tools":
                _print_tools(console, tools)
            case text:
                _send(console, conversation, text)


def _send(console: Console, conversation: Conversation, text: str) -> None:
    """Send one user message; if the reply is stopped or fails, the conversation is restored."""
    num_before = len(conversation.messages)

    def show(piece: str, style: str = "") -> None:
        console.print(printable(piece), end="", markup=False, soft_wrap=True, style=style)

    observer = LoopObserver(
        on_text=show,
        on_reasoning=lambda piece: show(piece, "dim italic"),
        on_call=lambda call, result: _print_call(console, call, result),
    )
    try:
        conversation.send(text, observer)
        console.print()
    except KeyboardInterrupt:
        console.print("[dim] (stopped)[/dim]")
        del conversation.messages[num_before:]
    except (APIError, RuntimeError) as error:
        console.print(f"\n[red]{_shown(str(error))}[/red]")
        del conversation.messages[num_before:]


def _print_call(console: Console, call: StreamedCall, result: str) -> None:
    shown = result if len(result) <= LONGEST_RESULT_SHOWN else result[:LONGEST_RESULT_SHOWN] + " …"
    console.print(f"[cyan]{_shown(call.name)}[/cyan]({_shown(call.arguments)})", soft_wrap=True)
    console.print(f"[dim]  = {_shown(shown)}[/dim]", soft_wrap=True)


def _shown(text: str) -> str:
    """Text from the server or a tool, inside rich's markup."""
    return escape(printable(text))


def _print_tools(console: Console, tools: Toolbox) -> None:
    for name, tool in tools.tools.items():
        console.print(f"[cyan]{escape(name)}[/cyan]  {escape(tool.definition['function']['description'])}")
    if not tools.tools:
        console.print("none; give some with --tools FILE")


def _lines(console: Console) -> Iterator[str]:
    while True:
        try:
            yield console.input("[bold]> [/bold]") if sys.stdin.isatty() else input()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print()
            return


if __name__ == "__main__":
    main()
