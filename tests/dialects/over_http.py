"""Chat requests over HTTP, with streamed and complete replies in one form."""

import json
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, streamed or not."""

    content: str
    thought: str
    calls: tuple[tuple[str, str], ...]
    finish: str
    flags: tuple[str, ...]
    tokens: int


async def send(client: httpx.AsyncClient, body: dict[str, Any], stream: bool) -> Reply:
    """Send a request and return the reply, complete or folded from its chunks."""
    answer = await client.post("/v1/chat/completions", json={**body, "stream": stream} | streaming(stream))
    assert answer.status_code == 200, answer.text
    if not stream:
        return whole(answer.json())
    frames = [frame for frame in answer.text.split("\n\n") if frame.startswith("data: {")]
    assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-600:]
    return joined([json.loads(frame.removeprefix("data: ")) for frame in frames])


def streaming(stream: bool) -> dict[str, Any]:
    """Request usage, which a stream has only on request."""
    return {"stream_options": {"include_usage": True}} if stream else {}


def whole(body: dict[str, Any]) -> Reply:
    """Return a complete reply."""
    choice = body["choices"][0]
    message = choice["message"]
    calls = [(one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls") or ()]
    return Reply(
        message.get("content") or "",
        message.get("reasoning_content") or "",
        tuple(calls),
        choice["finish_reason"],
        flags_of([body]),
        body["usage"]["completion_tokens"],
    )


def joined(chunks: list[dict[str, Any]]) -> Reply:
    """Join the chunks of a reply as OpenAI's clients do."""
    content, thought, finish = "", "", ""
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            content += delta.get("content") or ""
            thought += delta.get("reasoning_content") or ""
            for piece in delta.get("tool_calls") or ():
                call = calls.setdefault(piece["index"], ["", ""])
                call[0] += piece["function"].get("name", "")
                call[1] += piece["function"]["arguments"]
            finish = choice["finish_reason"] or finish
    ordered = tuple((name, arguments) for _, (name, arguments) in sorted(calls.items()))
    return Reply(content, thought, ordered, finish, flags_of(chunks), chunks[-1]["usage"]["completion_tokens"])


def flags_of(bodies: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the flags of the calls."""
    notes = [note for body in bodies for note in body.get("toolwire", {}).get("calls", ())]
    return tuple(flag for note in notes for flag in note["flags"])
