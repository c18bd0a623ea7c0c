"""Share of cached prompt tokens in a coding agent's session: python -m benchmarks.agent_cache --url http://127.0.0.1:8000

Ten rounds over Messages, shaped like a coding agent's: a line for accounts that is new in each request, instructions,
tools, then a call and its result a round. Each line is one round. Without `--url` the built-in model is served.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tests.live import live_server

ROUNDS = 10
INSTRUCTIONS = (
    """You are a coding assistant that works in the repository of the person who talks to you.
Read a file before you change it. Make the smallest change that does what was said, in the style of the code around it.
Run the tests that cover a change, and say plainly which of them failed. Never invent the output of a command.
Say what you are about to do in one short sentence, then do it with the tools that you have. Ask only where two ways
to go on differ in what the person will get. When the work is done, sum it up in two sentences and stop.
Paths are relative to the root of the repository. Do not read what lies outside of it, and do not fetch from elsewhere.
"""
    * 2
)


@dataclass(frozen=True, slots=True)
class Round:
    """One request's prompt tokens, and how many of them were found in the cache."""

    prompt_tokens: int
    cached_tokens: int

    @property
    def share(self) -> float:
        """Cached tokens of all, 0 to 1."""
        return self.cached_tokens / self.prompt_tokens


def _tool(name: str, about: str, **fields: str) -> dict[str, Any]:
    properties = {field: {"type": "string", "description": text} for field, text in fields.items()}
    schema = {"type": "object", "properties": properties, "required": list(fields), "additionalProperties": False}
    return {"name": name, "description": about, "input_schema": schema}


TOOLS = [
    _tool("read_file", "Read a text file", path="Path of the file"),
    _tool("edit_file", "Replace a text in a file", path="Path of the file", old="Text to replace", new="New text"),
    _tool("run_command", "Run a command in a shell", command="The command", reason="What it is run for"),
    _tool("search", "Search the files for a regular expression", pattern="The expression", folder="Where to search"),
]


def run_session(url: str, model: str) -> list[Round]:
    """Run the session. Raises httpx.HTTPStatusError where a request is refused."""
    reminder = {"type": "text", "text": "<reminder>\nThe working folder is clean.\n</reminder>\n"}
    task = {
        "type": "text",
        "text": "Rename the function load to read, everywhere.",
        "cache_control": {"type": "ephemeral"},
    }
    messages: list[Any] = [{"role": "user", "content": [reminder, task]}]
    rounds = []
    for number in range(ROUNDS):
        header = f"x-anthropic-billing-header: version=2.0.{number}; check={number * 7919:05x};"
        system = [{"type": "text", "text": header}, {"type": "text", "text": INSTRUCTIONS}]
        body = {
            "model": model, "max_tokens": 64, "temperature": 0, "system": system, "tools": TOOLS, "messages": messages,
            "tool_choice": {"type": "tool", "name": "read_file"},
        }  # fmt: skip
        reply = httpx.post(f"{url}/v1/messages?beta=true", json=body, timeout=120).raise_for_status().json()
        usage = reply["usage"]
        cached = usage["cache_read_input_tokens"]
        rounds.append(Round(usage["input_tokens"] + cached, cached))
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": f"def load_{number}(path):\n    return path"}
            for block in reply["content"]
            if block["type"] == "tool_use"
        ]
        messages += [{"role": "assistant", "content": reply["content"]}, {"role": "user", "content": results}]
    return rounds


@contextlib.contextmanager
def _server(url: str) -> Iterator[str]:
    if url:
        yield url
        return
    with live_server() as server:
        yield server.url


def main() -> None:
    """Print one line a round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="", help="address of a running server, without /v1")
    chosen = parser.parse_args()
    with _server(chosen.url) as url:
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        for number, one in enumerate(run_session(url, model), 1):
            print(json.dumps({"round": number, "prompt": one.prompt_tokens, "cached": one.cached_tokens,
                              "share": round(one.share, 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
