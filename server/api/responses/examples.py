"""Examples of the OpenAPI document: requests for responses."""

from collections.abc import Mapping
from typing import Any

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
