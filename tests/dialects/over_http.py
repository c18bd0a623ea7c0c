"""A chat request over HTTP, and its reply in one form, whether it came whole or as a stream."""

import json
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, however it came."""

    content: str
    thought: str
    calls: tuple[tuple[str, str], ...]
    finish: str
    flags: tuple[str, ...]
    tokens: int


async def ask(client: httpx.AsyncClient, body: dict[str, Any], stream: bool) -> Reply:
    """The reply, whole or folded from its chunks."""
    answer = await client.post("/v1/chat/completions", json={**body, "stream": stream} | streaming(stream))
    assert answer.status_code == 200, answer.text
    if not stream:
        return whole(answer.json())
    frames = [frame for frame in answer.text.split("\n\n") if frame.startswith("data: {")]
    assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-600:]
    return joined([json.loads(frame.removeprefix("data: ")) for frame in frames])


def streaming(stream: bool) -> dict[str, Any]:
    """Usage in a stream comes only if asked for."""
    return {"stream_options": {"include_usage": True}} if stream else {}


def whole(body: dict[str, Any]) -> Reply:
    """A reply that came at once."""
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
    """A reply from its chunks, as any client of OpenAI's joins them."""
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
    """What the server itself found to say of the calls."""
    notes = [note for body in bodies for note in body.get("toolwire", {}).get("calls", ())]
    return tuple(flag for note in notes for flag in note["flags"])
