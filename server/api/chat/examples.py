"""What the OpenAPI document shows: requests, a reply, a stream, and faults of every status as the server makes them."""

import json
from collections.abc import Mapping
from typing import Any

from server.api.body import bad
from server.api.errors import ApiError, error_of, no_such_model, too_large, unexpected
from server.errors import DeadlinePassed, EngineDied, NoMemory, PromptTooLong, QueueFull, Starting

WEATHER = {
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
QUESTION = {"role": "user", "content": "What is the weather in Paris in celsius?"}
CALL = {
    "id": "call_b3Kd92mXqLw07TzVnRfYpGhA",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Paris", "unit": "celsius"}'},
}
ASK: Mapping[str, Any] = {"model": "toolwire-demo", "messages": [QUESTION], "tools": [WEATHER]}
EXAMPLES: Mapping[str, Any] = {
    "tool call": {"value": ASK},
    "streamed": {"value": {**ASK, "stream": True, "stream_options": {"include_usage": True}}},
    "forced": {"value": {**ASK, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}},
    "tool result": {
        "value": {
            **ASK,
            "messages": [
                QUESTION,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": CALL["id"], "content": '{"temperature": 21}'},
            ],
        }
    },
    "structured answer": {
        "value": {
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
        }
    },
}
REPLY_EXAMPLE: Mapping[str, Any] = {
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
                "tool_calls": [CALL],
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

_HEADER = {"index": 0, "id": CALL["id"], "type": "function", "function": {"name": "get_weather", "arguments": ""}}
_DELTAS: tuple[tuple[Mapping[str, Any], str | None], ...] = (
    ({"role": "assistant", "content": ""}, None),
    ({"tool_calls": [_HEADER]}, None),
    ({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Paris", '}}]}, None),
    ({"tool_calls": [{"index": 0, "function": {"arguments": '"unit": "celsius"}'}}]}, None),
    ({}, "tool_calls"),
)
_CHUNK: Mapping[str, Any] = {
    "id": REPLY_EXAMPLE["id"],
    "created": REPLY_EXAMPLE["created"],
    "model": "toolwire-demo",
    "object": "chat.completion.chunk",
    "system_fingerprint": None,
}


def _chunks() -> list[Mapping[str, Any]]:
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": end} for delta, end in _DELTAS]
    told = [{**_CHUNK, "choices": [choice], "usage": None} for choice in choices]
    return [*told, {**_CHUNK, "choices": [], "usage": REPLY_EXAMPLE["usage"]}]


def _frames(chunks: list[Mapping[str, Any]]) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def _told(fault: ApiError) -> Mapping[str, Any]:
    body: Mapping[str, Any] = json.loads(fault.body())
    return body


CHUNKS: tuple[Mapping[str, Any], ...] = tuple(_chunks())
_BROKEN = _told(error_of(EngineDied("the engine process ended (exit code -9) while this request ran")))
STREAM_EXAMPLES: Mapping[str, Any] = {
    "tool call": {"value": _frames(_chunks())},
    "fault in the middle": {"value": _frames([*_chunks()[:3], _BROKEN])},
}
_TOO_HOT = "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead."
_TOO_LONG = "This model's maximum context length is 2048 tokens. However, your messages resulted in 3000 tokens."
FAULTS: Mapping[str, tuple[str, tuple[ApiError, ...]]] = {
    "400": (
        "The request cannot be served as it stands; the first fault in OpenAI's order of fields.",
        (
            bad(_TOO_HOT, "temperature", "decimal_above_max_value").fault,
            bad("Missing required parameter: 'messages'.", "messages", "missing_required_parameter").fault,
            error_of(PromptTooLong(_TOO_LONG)),
        ),
    ),
    "401": ("No key, or a wrong one.", (ApiError(401, "Incorrect API key provided.", code="invalid_api_key"),)),
    "404": ("A model that is not served here.", (no_such_model("gpt-x"),)),
    "408": (
        "The body did not arrive in time.",
        (ApiError(408, "The request body did not arrive within 60 s.", code="body_timeout"),),
    ),
    "413": ("The body is too large.", (too_large(16 * 1024 * 1024),)),
    "429": ("The queue is full, or the key's own limit is reached.", (error_of(QueueFull("1024 requests wait")),)),
    "500": ("A fault of the server.", (error_of(EngineDied("the engine process ended")), unexpected())),
    "503": (
        "The model is not loaded yet, or memory is short.",
        (error_of(Starting("loading weights", 0.4)), error_of(NoMemory("the device's memory has been short for 30 s"))),
    ),
    "504": ("The deadline has passed.", (error_of(DeadlinePassed("the request's deadline has passed")),)),
}


def fault_examples(faults: tuple[ApiError, ...]) -> dict[str, Any]:
    """The bodies of these faults, named by their codes."""
    return {fault.code or fault.type: {"value": _told(fault)} for fault in faults}
