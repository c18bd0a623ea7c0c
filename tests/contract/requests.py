"""Requests of the contract over bare HTTP, and the checks that every reply must pass."""

import json
import os
from collections.abc import Iterable
from typing import Any

import httpx
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.live import Live

MODEL = "toolwire-demo"
KEY = "key-of-the-contract"
SLASHED = "org/name"
LOCKED = {"authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"
USER: Any = {"role": "user", "content": "What is the weather in Paris in celsius?"}
HELLO: Any = {"role": "user", "content": "Hello!"}
TWO_CITIES: Any = {"role": "user", "content": "What is the weather in Paris and in Rome?"}


def function(
    name: str, description: str = "", required: Iterable[str] | None = None, **properties: Any
) -> dict[str, Any]:
    """A tool; every property is required unless `required` says otherwise."""
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = function(
    "get_weather",
    "Get the current weather for a city",
    city={"type": "string", "description": "Name of the city"},
    unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
)
SEARCH = function("search_web", "Search the web", query={"type": "string", "description": "What to search for"})
NO_ARGUMENTS: Any = {
    "type": "function",
    "function": {"name": "get_time", "description": "Get the current time"},
}
TIMEOUT_S = float(os.environ.get("CONTRACT_TIMEOUT_S", "120"))
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


def post(
    server: Live, fields: Any = None, /, path: str = CHAT, headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    """A request with the model and one user message unless `fields` is a whole body of its own."""
    body = {"model": MODEL, "messages": [USER], **more} if fields is None else fields
    return httpx.post(server.url + path, json=body, headers=headers, timeout=TIMEOUT_S)


def ok(server: Live, **fields: Any) -> dict[str, Any]:
    """The reply, validated by the SDK's own type."""
    response = post(server, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["x-request-id"]
    body: dict[str, Any] = response.json()
    ChatCompletion.model_validate(body, strict=True)
    return body


def fault(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object of a reply, its envelope checked."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert response.headers.get("x-should-retry") != "true"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    if status < 500:
        assert error["type"] in ("invalid_request_error", "requests")
    return error


def refused(server: Live, param: str | None, code: str | None, **fields: Any) -> str:
    """The message of the 400 for these fields."""
    error = fault(post(server, **fields))
    assert (error["param"], error["code"]) == (param, code), error
    return str(error["message"])


def stream(server: Live, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream; its framing is checked byte by byte."""
    response = post(server, stream=True, **fields)
    assert response.status_code == 200, response.text
    return chunks_of(response)


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"]
    text = response.content.decode()
    assert text.endswith("data: [DONE]\n\n")
    frames = [frame for frame in text.removesuffix("data: [DONE]\n\n").split("\n\n") if frame != ": ping"]
    assert frames.pop() == ""
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames)
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    for chunk in chunks:
        # The SDK's type of chunks knows no custom calls; reading them raw works.
        if "error" not in chunk and '"custom": {' not in json.dumps(chunk):
            ChatCompletionChunk.model_validate(chunk, strict=True)
    return chunks


def deltas_of(chunks: list[dict[str, Any]], choice: int = 0) -> list[dict[str, Any]]:
    return [one["delta"] for chunk in chunks for one in chunk["choices"] if one["index"] == choice]


def text_of(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    return "".join(delta.get("content", "") for delta in deltas_of(chunks, choice))


def calls_of(chunks: list[dict[str, Any]], choice: int = 0) -> list[tuple[str, str]]:
    """Name and joined arguments of each call of a stream."""
    calls: dict[int, list[str]] = {}
    for delta in deltas_of(chunks, choice):
        for piece in delta.get("tool_calls", []):
            if "id" in piece:
                calls[piece["index"]] = [piece["function"]["name"], ""]
            calls[piece["index"]][1] += piece["function"]["arguments"]
    return [(name, arguments) for _, (name, arguments) in sorted(calls.items())]


def finish_of(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    finishes = [
        one["finish_reason"]
        for chunk in chunks
        for one in chunk["choices"]
        if one["index"] == choice and one["finish_reason"] is not None
    ]
    assert len(finishes) == 1
    return str(finishes[0])
