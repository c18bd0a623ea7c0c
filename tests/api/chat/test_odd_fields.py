"""Fields that clients send as null, beside another, or of the wrong type: taken, or refused by name."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.api.conftest import WEATHER, Serve
from tests.backends.scripted import Script

Reply = Callable[..., Script]
CALL = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
HI = {"role": "user", "content": "Hi"}


def past(call: dict[str, Any]) -> list[dict[str, Any]]:
    return [HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "ok"}]


def part(**fields: Any) -> list[dict[str, Any]]:
    return [HI, {"role": "assistant", "content": [fields]}, HI]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{**WEATHER, "custom": None}]},
        {"tools": [{**WEATHER, "custom": {"name": "x"}}]},
        {"tools": [{"type": "custom", "custom": {"name": "x"}, "function": None}]},
        {"tools": [{**WEATHER, "function": {**WEATHER["function"], "custom": None, "format": None}}]},
        {"messages": past({**CALL, "custom": None}), "tools": [WEATHER]},
        {"messages": past({**CALL, "custom": {"name": "x", "input": "y"}}), "tools": [WEATHER]},
        {"messages": past({**CALL, "custom": 5}), "tools": [WEATHER]},
        {"messages": past({"id": "c", "type": "custom", "custom": {"name": "x", "input": "y"}, "function": None})},
        {"messages": part(type="text", text="x", refusal={})},
        {"messages": part(type="text", text="x", refusal=None)},
        {"messages": part(type="refusal", refusal="x", text=5)},
        {"messages": part(type="refusal", refusal="x", text=None)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "image_url": {}}]}]},
    ],
    ids=str,
)
async def test_fields_of_another_kind_are_left_out(serve: Serve, reply: Reply, fields: dict[str, Any]) -> None:
    """Pydantic dumps a union with the other members as null; a tool with `"custom": null` was a 500."""
    async with serve(reply("Hi")) as served:
        answer = await served.chat(**fields)
        assert answer.status_code == 200, answer.text
