"""Longest gap of a stream beside costly requests of other clients: python -m benchmarks.interference

One stream of the built-in model is read while another process sends one kind of request after the other. Each line is
the worst gap between two reads of the stream in `--rounds` rounds, and that of the same stream alone.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping
from multiprocessing.synchronize import Event
from typing import Any

import httpx

from benchmarks.crowd import CHAT
from benchmarks.peers import machine
from tests.live import live_server

MODEL = "toolwire-demo"
VICTIM = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello!"}],
    "stream": True,
    "max_tokens": 7000,
    "ignore_eos": True,
}
SETTLE_READS = 50
ALONE_S = 3.0
AFTER_S = 0.3
LINE = "The quick brown fox jumps over the lazy dog, again.\n"


def requests_of(round_number: int) -> Mapping[str, tuple[str, bytes]]:
    """Path and body of each kind; every round differs, so that no cache answers."""

    def chat(text: str, **fields: Any) -> tuple[str, bytes]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1, **fields}
        return CHAT, json.dumps(body).encode()

    def tool(number: int) -> dict[str, Any]:
        properties = {f"field_{round_number}_{number}_{i}": {"type": "string", "maxLength": i + 3} for i in range(8)}
        function = {"name": f"tool_{number}", "parameters": {"type": "object", "properties": properties}}
        return {"type": "function", "function": function}

    def text(num_bytes: int) -> str:
        return f"{round_number} " + LINE * (num_bytes // len(LINE))

    return {
        "a new tool": chat("Hi", tools=[tool(0)], tool_choice="required"),
        "24 new tools": chat("Hi", tools=[tool(i) for i in range(1, 25)], tool_choice="required"),
        "a new tool, 128 choices": chat("Hi", tools=[tool(25)], tool_choice="required", n=128),
        "128 choices": chat("Hi", n=128),
        "400 kB prompt (refused)": chat(text(400_000)),
        "2 MB prompt (refused)": chat(text(2_000_000)),
        "/tokenize, 1 MB": ("/tokenize", json.dumps({"prompt": text(1_000_000)}).encode()),
        "/detokenize, 5 MB (refused)": (
            "/detokenize",
            json.dumps({"tokens": [1000 + round_number] * 830_000}).encode(),
        ),
        "14 MiB of small parts (refused)": chat(
            "Hi", messages=[{"role": "user", "content": [{"type": "text"}] * 750_000}]
        ),
    }


def send(url: str, path: str, body: bytes, ready: Event, begin: Event) -> None:
    """One request, in a process of its own whose start is not measured; any status is an answer."""
    ready.set()
    begin.wait()
    httpx.post(url + path, content=body, headers={"content-type": "application/json"}, timeout=120)


def worst_gap_s(url: str, path: str, body: bytes) -> float:
    """Longest time between two reads of the stream beside the request; without a path: of the stream alone."""
    context = multiprocessing.get_context("spawn")
    ready, begin = context.Event(), context.Event()
    sender = context.Process(target=send, args=(url, path, body, ready, begin)) if path else None
    if sender is not None:
        sender.start()
        ready.wait()
    worst_s, reads, end_s, last_s = 0.0, 0, 0.0, 0.0
    with httpx.stream("POST", url + CHAT, json=VICTIM, timeout=120) as reply:
        reply.raise_for_status()
        for _ in reply.iter_raw():
            now_s, reads = time.perf_counter(), reads + 1
            if reads <= SETTLE_READS:
                if reads == SETTLE_READS:
                    begin.set()
                    end_s = time.perf_counter() + (ALONE_S if sender is None else 120.0)
                    now_s = time.perf_counter()
                last_s = now_s
                continue
            worst_s, last_s = max(worst_s, now_s - last_s), now_s
            if sender is not None and end_s > now_s + AFTER_S and not sender.is_alive():
                end_s = now_s + AFTER_S
            if now_s > end_s:
                break
    if sender is not None:
        sender.join()
    return worst_s


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(machine())
    print("| beside | longest gap, ms |\n|---|---:|")
    bodies = [requests_of(i) for i in range(rounds)]
    with live_server() as server:
        alone = max(worst_gap_s(server.url, "", b"") for _ in range(rounds))
        print(f"| nothing | {1000 * alone:.0f} |")
        for name in bodies[0]:
            gap_s = max(worst_gap_s(server.url, *of_round[name]) for of_round in bodies)
            print(f"| {name} | {1000 * gap_s:.0f} |", flush=True)


if __name__ == "__main__":
    main()
