"""Examples of the OpenAPI document: requests for responses, a response and its stream, a compact conversation."""

from collections.abc import Mapping
from typing import Any

import msgspec

from server.api.chat.wire import Notes
from server.api.responses.plan import frame_of
from server.api.responses.wire import (
    ArgumentsDelta,
    ArgumentsDone,
    CompactedResponse,
    FunctionCallItem,
    InputDetails,
    OutputDetails,
    OutputItemAdded,
    OutputItemDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseInProgress,
    ResponseObject,
    ResponseUsage,
    StreamEvent,
)
from server.notes import Note

_WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
    },
}
REQUESTS: Mapping[str, Any] = {
    "text": {"model": "toolwire-demo", "input": "Name a city."},
    "tool call": {
        "model": "toolwire-demo",
        "input": "What is the weather in Paris in celsius?",
        "tools": [_WEATHER],
        "tool_choice": "required",
    },
    "in the background": {"model": "toolwire-demo", "input": "Name a city.", "background": True},
    "streamed": {"model": "toolwire-demo", "input": "Name a city.", "stream": True},
    "tool result": {
        "model": "toolwire-demo",
        "tools": [_WEATHER],
        "input": [
            {"role": "user", "content": "What is the weather in Paris in celsius?"},
            {
                "type": "function_call",
                "call_id": "call_b3Kd92mXqLw07TzVnRfYpGhA",
                "name": "get_weather",
                "arguments": '{"city": "Paris", "unit": "celsius"}',
            },
            {
                "type": "function_call_output",
                "call_id": "call_b3Kd92mXqLw07TzVnRfYpGhA",
                "output": '{"temperature": 21}',
            },
        ],
    },
}
COMPACT_REQUESTS: Mapping[str, Any] = {
    "a conversation": {"model": "toolwire-demo", "input": REQUESTS["tool result"]["input"]},
}
COMPACTED = CompactedResponse(
    id="resp_5yGqkD0w3XtZbN1cVfRmLpHs",
    created_at=1_760_000_000,
    output=[
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "What is the weather in Paris in celsius?"}],
            "id": "msg_b3Kd92mXqLw07TzVnRfYpGhA",
            "status": "completed",
        },
        {"type": "compaction", "id": "cmp_5yGqkD0w3XtZbN1cVfRmLpHs", "encrypted_content": "tws1.kq0Zx3..."},
    ],
    usage=ResponseUsage(212, InputDetails(192), 41, OutputDetails(0), 253),
    toolwire=Notes(
        notes=[
            Note(
                "compacted",
                "input",
                "these items stand in the summary alone: 1 function_call, 1 function_call_output.",
            )
        ]
    ),
)

_BEGUN = ResponseObject(
    id="resp_5yGqkD0w3XtZbN1cVfRmLpHs",
    created_at=1_790_000_000,
    status="in_progress",
    model="toolwire-demo",
    store=True,
    text={"format": {"type": "text"}},
    tool_choice="required",
    tools=[_WEATHER],
)
_CALL = FunctionCallItem("fc_5yGqkD0w3XtZbN1cVfRmLpHs00", "in_progress", "call_b3Kd92mXqLw07TzVnRfYpGhA", "get_weather")
_PIECES = ('{"city": "Paris", ', '"unit": "celsius"}')
_CALLED = msgspec.structs.replace(_CALL, status="completed", arguments="".join(_PIECES))
_ENDED = msgspec.structs.replace(
    _BEGUN,
    status="completed",
    completed_at=1_790_000_001,
    output=[_CALLED],
    usage=ResponseUsage(180, InputDetails(160), 27, OutputDetails(0), 207),
)
_EVENTS: tuple[StreamEvent, ...] = (
    ResponseCreated(0, _BEGUN),
    ResponseInProgress(1, _BEGUN),
    OutputItemAdded(2, 0, _CALL),
    *(ArgumentsDelta(3 + place, 0, _CALL.id, piece) for place, piece in enumerate(_PIECES)),
    ArgumentsDone(5, 0, _CALL.id, _CALLED.arguments),
    OutputItemDone(6, 0, _CALLED),
    ResponseCompleted(7, _ENDED),
)
REPLY: Mapping[str, Any] = msgspec.to_builtins(_ENDED)
STREAM = b"".join(map(frame_of, _EVENTS)).decode()
