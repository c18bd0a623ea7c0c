"""Time of rendering a prompt in the process for it, and in this one: python -m benchmarks.rendering [--runs 200]

The first column is what a request waits for: the pipe there and back, and the template; the second the template alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers import machine
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.checkpoint.template_environment import CompiledTemplate

LINE = "The quick brown fox jumps over the lazy dog, again.\n"


def conversations() -> dict[str, dict[str, Any]]:
    """Variables of templates."""

    def tool(number: int) -> dict[str, Any]:
        properties = {f"field_{i}": {"type": "string", "description": "A text."} for i in range(8)}
        function = {"name": f"tool_{number}", "description": LINE, "parameters": {"type": "object"}}
        return {"type": "function", "function": {**function, "properties": properties}}

    turns = [{"role": role, "content": 4 * LINE} for _ in range(50) for role in ("user", "assistant")]
    return {
        "one message": {"messages": [{"role": "user", "content": "Hello!"}]},
        "24 tools": {"messages": [{"role": "user", "content": "Hello!"}], "tools": [tool(i) for i in range(24)]},
        "100 messages, 20 kB": {"messages": [*turns, {"role": "user", "content": "And now?"}]},
        "one message of 1 MB": {"messages": [{"role": "user", "content": LINE * (1_000_000 // len(LINE))}]},
    }


def median_ms(call: Callable[[], object], runs: int) -> float:
    """Median of the times of this many calls, behind one that is not counted."""
    call()
    times = []
    for _ in range(runs):
        began_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_s)
    return 1000 * statistics.median(times)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    template = Checkpoint.open(BUILT_IN_FOLDER).template
    here = CompiledTemplate(template.source)
    print(machine())
    print("| conversation | in its process, ms | here, ms |\n|---|---:|---:|")
    for name, variables in conversations().items():
        variables["add_generation_prompt"] = True
        there_ms = median_ms(lambda given=variables: template.render(given), runs)  # type: ignore[misc]
        here_ms = median_ms(lambda given=variables: here.render(template.token_variables, given), runs)  # type: ignore[misc]
        print(f"| {name} | {there_ms:.2f} | {here_ms:.2f} |")


if __name__ == "__main__":
    main()
