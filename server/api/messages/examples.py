"""Examples of the OpenAPI document: Messages requests, a reply, its stream, errors."""

from collections.abc import Mapping
from typing import Any

import msgspec

from server.api.errors import ApiError, error_of, no_such_model, too_large, unexpected
from server.api.messages.errors import MessageFrames, anthropic_error, status_of
from server.api.messages.to_reply import fold_message
from server.api.messages.wire import (
    AnthropicErrorBody,
    BlockInput,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    MessageDelta,
    MessageEvent,
    MessageReply,
    MessageStart,
    MessageStop,
    MessageToolUse,
    MessageUsage,
    StopDelta,
    ThinkingTokens,
    TokensCount,
)
from server.api.openapi.operations import REQUEST_ID, Responses, ref
from server.errors import DeadlinePassed, PromptTooLong, Starting

_WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather for a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
_CALL_ID = "toolu_b3Kd92mXqLw07TzVnRfYpGhA"
_CALL = {"type": "tool_use", "id": _CALL_ID, "name": "get_weather", "input": {"city": "Paris"}}
_RESULT = {"type": "tool_result", "tool_use_id": _CALL_ID, "content": '{"temperature": 21}'}
_REQUEST: Mapping[str, Any] = {
    "model": "toolwire-demo",
    "max_tokens": 1024,
    "messages": [_QUESTION],
    "tools": [_WEATHER],
}
REQUESTS: Mapping[str, Any] = {
    "tool call": _REQUEST,
    "streamed": {**_REQUEST, "stream": True},
    "forced": {**_REQUEST, "tool_choice": {"type": "tool", "name": "get_weather"}},
    "tool result": {
        **_REQUEST,
        "messages": [_QUESTION, {"role": "assistant", "content": [_CALL]}, {"role": "user", "content": [_RESULT]}],
    },
}
_USAGE = MessageUsage(32, 24, ThinkingTokens(0), 128)
_HEAD = MessageReply("msg_x7Qm2LkVw93TzRfYpGhAb04n", "assistant", "toolwire-demo", [], None, None, _USAGE)
_EVENTS: tuple[MessageEvent, ...] = (
    MessageStart(_HEAD),
    ContentBlockStart(0, MessageToolUse(_CALL_ID, "get_weather", msgspec.Raw(b"{}"))),
    ContentBlockDelta(0, BlockInput('{"city": "Paris"}')),
    ContentBlockStop(0),
    MessageDelta(StopDelta("tool_use", None), _USAGE),
    MessageStop(),
)
REPLY = msgspec.json.decode(msgspec.json.encode(fold_message(_EVENTS)))
STREAM = b"".join(map(MessageFrames().frame, _EVENTS)).decode()
COUNT = TokensCount(160)

_FAULTS: tuple[tuple[str, ApiError], ...] = (
    ("The request cannot be served as it stands.", error_of(PromptTooLong("", 3000, 2048))),
    ("No key, or a wrong one.", ApiError(401, "Incorrect API key provided.")),
    ("A model that is not served here.", no_such_model("claude-x")),
    ("The body did not arrive in time.", ApiError(408, "The request body did not arrive within 60 s.")),
    ("The body is too large.", too_large(16 * 1024 * 1024)),
    ("The key's own limit is reached.", ApiError(429, "Rate limit reached for requests per min.")),
    ("A failure of the server.", unexpected()),
    ("The deadline has passed.", error_of(DeadlinePassed("the request's deadline has passed"))),
    ("Overloaded, or the model is not loaded yet.", error_of(Starting("loading weights", 0.4))),
)
ERRORS: Responses = {
    status_of(error): {
        "description": text,
        "headers": REQUEST_ID,
        "content": {
            "application/json": {
                "schema": ref(AnthropicErrorBody),
                "example": msgspec.to_builtins(anthropic_error(error, "req_0a1b")),
            }
        },
    }
    for text, error in _FAULTS
}
