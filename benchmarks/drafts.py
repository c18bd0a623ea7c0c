"""Gain of drafts copied from the prompt, on real text: chat, calls that copy, and agents' rounds.

    python -m benchmarks.drafts MODEL [--rounds 3]

MODEL is a checkpoint that speaks: with random weights text goes in circles, and drafts are accepted far more often. Two
servers, with and without drafts, answer each request in turns; greedy replies are the same on both. Tokens a second are
those of a whole request behind its first token, the median over rounds and requests.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.peers import machine
from tests.live import ROOT, Live, live_server

MODEL = "any"
MAX_TOKENS = 160
QUESTIONS = (
    "What should I see in Lisbon in two days?",
    "Explain how a bicycle stays upright.",
    "Write a short letter to a neighbour whose dog barks at night.",
    "Give me a recipe for lentil soup.",
)
TEXTS = [
    " ".join(part.split())
    for part in (ROOT / "docs/security.md").read_text(encoding="utf-8").split("\n\n")
    if 200 < len(part) < 900 and not part.startswith(("#", "|", "-"))
]


def tool(name: str, *arguments: str) -> dict[str, Any]:
    """A function of these strings."""
    properties = {argument: {"type": "string"} for argument in arguments}
    schema = {"type": "object", "properties": properties, "required": list(arguments), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": name.replace("_", " "), "parameters": schema}}


def workloads() -> dict[str, list[dict[str, Any]]]:
    """Requests by kind."""
    named = {"type": "function", "function": {"name": "save_note"}}
    copying = [
        {
            "messages": [{"role": "user", "content": f"Save this note, word for word:\n\n{text}"}],
            "tools": [tool("save_note", "text")],
            "tool_choice": named,
        }
        for text in TEXTS[:4]
    ]
    return {
        "chat": [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS],
        "a call that copies": copying,
        "an agent's round": [_round(text) for text in TEXTS[:4]],
    }


def _round(text: str) -> dict[str, Any]:
    """The file has been read; the next call writes it again with a change."""
    call = {"id": "1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "security.md"}'}}
    return {
        "messages": [
            {"role": "user", "content": "In security.md, replace the word 'report' by 'message'."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": text},
        ],
        "tools": [tool("read_file", "path"), tool("write_file", "path", "content")],
        "tool_choice": {"type": "function", "function": {"name": "write_file"}},
    }


def ask(server: Live, body: Mapping[str, Any]) -> float:
    """Tokens a second of the reply behind its first chunk."""
    fields = {"model": MODEL, "temperature": 0, "max_tokens": MAX_TOKENS, "stream": True}
    options = {"stream_options": {"include_usage": True}}
    began = ended = 0.0
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json={**fields, **options, **body}, timeout=300
    ) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk["choices"] and chunk["choices"][0]["delta"]:
                ended = time.perf_counter()
                began = began or ended
            usage = chunk.get("usage") or {}
    return float((usage["completion_tokens"] - 1) / max(ended - began, 1e-6))


def measure(servers: Sequence[Live], requests: Sequence[Mapping[str, Any]], rounds: int) -> Iterator[float]:
    """Tokens a second of each server."""
    speeds: list[list[float]] = [[] for _ in servers]
    for _ in range(rounds):
        for body in requests:
            for own, server in zip(speeds, servers, strict=True):
                own.append(ask(server, body))
    return map(statistics.median, speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(machine()))
    common = ("--model", str(options.model), "--served-model-name", MODEL, "--generation-config", "none")
    with ExitStack() as running:
        servers = [running.enter_context(live_server(*common, "--draft-tokens", count)) for count in ("0", "-1")]
        print("\n| tokens a second | without drafts | with | ratio |\n|---|---|---|---|")
        for name, requests in workloads().items():
            without, drafted = measure(servers, requests, options.rounds)
            print(f"| {name} | {without:.1f} | {drafted:.1f} | {drafted / without:.2f} |", flush=True)


if __name__ == "__main__":
    main()
