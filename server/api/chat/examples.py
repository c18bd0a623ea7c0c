"""Examples of the OpenAPI document: chat requests, a reply, streams."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.api.errors import error_of
from server.errors import EngineDied

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}
_QUESTION = {"role": "user", "content": "What is the weather in Paris in celsius?"}
_CALL = {
    "id": "call_b3Kd92mXqLw07TzVnRfYpGhA",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "celsius"}'},
}
_REQUEST: Mapping[str, Any] = {"model": "toolwire-demo", "messages": [_QUESTION], "tools": [_WEATHER]}
REQUESTS: Mapping[str, Any] = {
    "tool call": _REQUEST,
    "streamed": {**_REQUEST, "stream": True, "stream_options": {"include_usage": True}},
    "forced": {**_REQUEST, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    "tool result": {
        **_REQUEST,
        "messages": [
            _QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": _CALL["id"], "content": '{"temperature": 21}'},
        ],
    },
    "structured answer": {
        "model": "toolwire-demo",
        "messages": [{"role": "user", "content": "Name a city."}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "city",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}},
                    "required": ["name"],
                    "additionalProperties": False,
                },
            },
        },
    },
}
REPLY: Mapping[str, Any] = {
    "id": "chatcmpl-5yGqkD0w3XtZbN1cVfRmLpHs",
    "created": 1790000000,
    "model": "toolwire-demo",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "tool_calls": [_CALL],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {
        "prompt_tokens": 180,
        "completion_tokens": 27,
        "total_tokens": 207,
        "prompt_tokens_details": {"cached_tokens": 160, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    },
    "object": "chat.completion",
    "system_fingerprint": None,
}

_HEADER = {"index": 0, "id": _CALL["id"], "type": "function", "function": {"name": "get_weather", "arguments": ""}}
_DELTAS: tuple[tuple[Mapping[str, Any], str | None], ...] = (
    ({"role": "assistant", "content": ""}, None),
    ({"tool_calls": [_HEADER]}, None),
    ({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Paris", '}}]}, None),
    ({"tool_calls": [{"index": 0, "function": {"arguments": '"unit": "celsius"}'}}]}, None),
    ({}, "tool_calls"),
)
_CHUNK: Mapping[str, Any] = {
    "id": REPLY["id"],
    "created": REPLY["created"],
    "model": "toolwire-demo",
    "object": "chat.completion.chunk",
    "system_fingerprint": None,
}


def _stream(deltas: Sequence[tuple[Mapping[str, Any], str | None]], last: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": end} for delta, end in deltas]
    events = [*({**_CHUNK, "choices": [choice], "usage": None} for choice in choices), last]
    return {"value": "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"}


_ENGINE_DIED = error_of(EngineDied("the engine process ended (exit code -9) while this request ran"))
STREAMS: Mapping[str, Any] = {
    "tool call": _stream(_DELTAS, {**_CHUNK, "choices": [], "usage": REPLY["usage"]}),
    "error in the middle": _stream(_DELTAS[:3], json.loads(_ENGINE_DIED.body())),
}
