"""Terminal output of a start: progress while the model loads, and a summary once the server is ready."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from server.checkpoint.locate import BUILT_IN_NAME, SMOLLM2_NAME
from server.messages import Progress as Loading
from server.messages import Ready

# What a user may expect of the models that come with toolwire.
REMARKS = {
    BUILT_IN_NAME: "a tiny demonstration model: it calls tools, it knows nothing",
    SMOLLM2_NAME: "SmolLM2-135M with an adapter: English, simple tools, little knowledge",
}
EXAMPLE_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}


class LoadingBar:
    """A progress bar on the terminal, one line a stage; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self._console = console
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console)
        self._tasks: dict[str, TaskID] = {}

    def show(self, loading: Loading) -> None:
        """Update the bar of this stage."""
        if loading.stage not in self._tasks:
            if self._console.is_terminal and not self._tasks:
                self._bars.start()
            elif not self._console.is_terminal:
                self._console.print(f"{loading.stage} …")
            self._tasks[loading.stage] = self._bars.add_task(loading.stage, total=1.0)
        self._bars.update(self._tasks[loading.stage], completed=loading.fraction)

    def close(self) -> None:
        """Stop updating; the bars stay on the screen."""
        if self._console.is_terminal and self._tasks:  # a display without bars would leave an empty line
            self._bars.stop()


def print_ready(
    console: Console, url: str, model: str, ready: Ready, notes: Sequence[str] = (), adapters: Sequence[str] = ()
) -> None:
    """URL, model, device, sizes, notes on the checkpoint, and a curl command that can be pasted as it is."""
    remark = f"  ({REMARKS[model]})" if model in REMARKS else ""
    table = Table.grid(padding=(0, 2))
    rows = (
        ("URL", f"{url}/v1"),
        ("Model", f"{model}{remark}"),
        *([("Adapters", ", ".join(adapters))] if adapters else ()),
        ("Device", f"{ready.device}, {ready.dtype}"),
        ("Context", f"{ready.max_model_len:,} tokens"),
        ("KV cache", f"{ready.num_blocks * ready.block_size:,} tokens"),
        ("Loaded in", f"{ready.load_s:.1f} s"),
        *(("Note", note) for note in notes),
    )
    for name, value in rows:
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(f"\nlistening on {url}", highlight=False)
    console.print(table, highlight=False)
    console.print("\nTry it:", highlight=False)
    console.out(example_curl(url, model), highlight=False)


def example_curl(url: str, model: str) -> str:
    """A shell command that requests a tool call."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [EXAMPLE_TOOL],
    }
    text = json.dumps(body, indent=1)
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{text}'\n"
