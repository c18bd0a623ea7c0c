"""Measure the API process's CPU time per streamed token: python -m benchmarks.token_cost [--tokens 2000 --runs 15].

The real application (middleware, routes, service, decoder, SSE) is called over ASGI; the engine is replaced by a
backend that yields one prepared token a step, so nothing but the API process's own work is measured. Figures are
process CPU time, so other programs on the machine disturb them little.
"""

import argparse
import asyncio
import gc
import json
import statistics
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from server.api.app import create_app
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.messages import Delta, Generate, Pulse, Ready, TokenLogprob
from server.prompt.builder import PromptBuilder
from server.settings import Settings

MODEL = "toolwire-demo"
SENTENCE = "The weather in Paris is sunny with a light wind from the west, and tomorrow it will rain a little. "
TOOL = {
    "type": "function",
    "function": {
        "name": "write_note",
        "description": "Write a note.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
}


class PreparedBackend:
    """Yields prepared Deltas, one token each; the engine's double."""

    def __init__(self) -> None:
        self.deltas: Sequence[Delta] = ()

    async def start(self) -> Ready:
        """Nothing to load."""
        return Ready("prepared", "none", 0, 4096, 64, 16, 0, 0.0)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """The prepared Deltas, each in its own turn of the event loop."""
        for delta in self.deltas:
            yield delta
            await asyncio.sleep(0)

    async def health(self) -> Pulse:
        """An idle engine."""
        return Pulse(0.0, 0, 0, 64, 0, 0)

    async def close(self) -> None:
        """Nothing to end."""


def prepare(checkpoint: Checkpoint, text: str, num_tokens: int, logprobs: bool) -> list[Delta]:
    """An admission and `num_tokens` Deltas of one id each that write a beginning of `text`, then the stop id."""
    ids = checkpoint.tokenizer.encode(text, add_special_tokens=False).ids[:num_tokens]
    if text.startswith("<tool_call>"):  # keep the end of the call
        tail = checkpoint.tokenizer.encode('"}}\n</tool_call>', add_special_tokens=False).ids
        ids = [*ids[: num_tokens - len(tail)], *tail]
    assert len(ids) == num_tokens
    scores = [[TokenLogprob(one, -0.5, ((one, -0.5),))] if logprobs else None for one in ids]
    written = [Delta("x", [one], score) for one, score in zip(ids, scores, strict=True)]
    end = [TokenLogprob(checkpoint.stop_ids[0], -0.1, ())] if logprobs else None
    return [Delta("x", cached=0), *written, Delta("x", [checkpoint.stop_ids[0]], end, "stop")]


@dataclass(frozen=True, slots=True)
class MeasuredStream:
    """One kind of stream: what is written, the request for it, and what its last frame holds."""

    path: str
    written: str
    body: Mapping[str, Any]
    end: bytes


async def stream(app: Any, path: str, body: bytes) -> bytes:
    """Send one request; return the last writes of its stream."""
    writes: list[bytes] = []
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
        else:
            writes.append(message.get("body", b""))

    headers = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return b"".join(writes[-4:])


def streams_of(num_tokens: int) -> dict[str, MeasuredStream]:
    """Every kind of stream; those of the other surfaces write the same text as the first."""
    text = SENTENCE * (num_tokens // 4)
    call = '<tool_call>\n{"name": "write_note", "arguments": {"text": "' + text
    plain: dict[str, Any] = {"model": MODEL, "stream": True}
    messages = {**plain, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1000}
    chat, done = "/v1/chat/completions", b"data: [DONE]"
    responses = {**plain, "input": "Hi", "max_output_tokens": 1000, "store": False}
    return {
        "text": MeasuredStream(chat, text, messages, done),
        "text with logprobs": MeasuredStream(chat, text, {**messages, "logprobs": True, "top_logprobs": 1}, done),
        "tool call": MeasuredStream(chat, call, {**messages, "tools": [TOOL]}, done),
        "text by Responses": MeasuredStream("/v1/responses", text, responses, b"event: response.completed"),
        "text by Messages": MeasuredStream("/v1/messages", text, messages, b"event: message_stop"),
        "text by Completions": MeasuredStream(
            "/v1/completions", text, {**plain, "prompt": "Hi", "max_tokens": 1000}, done
        ),
    }


def measure(num_tokens: int, runs: int) -> dict[str, dict[str, float]]:
    """Microseconds of process CPU time per token, by kind of reply: least and median over the runs."""
    checkpoint, settings, backend = Checkpoint.open(BUILT_IN_FOLDER), Settings(), PreparedBackend()
    app = create_app(settings, checkpoint, PromptBuilder(checkpoint, settings), backend, MODEL)
    kinds = streams_of(num_tokens)
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for run in range(runs + 1):  # the first is not counted
            for kind, one in kinds.items():
                backend.deltas = prepare(checkpoint, one.written, num_tokens, bool(one.body.get("logprobs")))
                raw = json.dumps(one.body).encode()
                gc.collect()
                began_s = time.process_time()
                last = runner.run(stream(app, one.path, raw))
                cost = (time.process_time() - began_s) * 1e6 / num_tokens
                assert one.end in last, last
                if run:
                    costs[kind].append(cost)
    return {
        kind: {"least": round(min(found), 1), "median": round(statistics.median(found), 1)}
        for kind, found in costs.items()
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    print(json.dumps({"unit": "us of CPU per token", **measure(given.tokens, given.runs)}, indent=2))


if __name__ == "__main__":
    main()
