"""Schemas that cost a server more than they look like, sent to a real one."""

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx

from tests.live import Live

LONGEST_S = 10.0  # of one request on a busy machine; what is guarded against took minutes or ended the server


def closed(properties: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    """An object of these properties alone."""
    names = list(properties) if required else []
    return {"type": "object", "properties": dict(properties), "required": names, "additionalProperties": False}


def send(live: Live, **fields: Any) -> httpx.Response:
    """The reply to a question with these fields, which comes within LONGEST_S."""
    body = {
        "model": "toolwire-demo",
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "max_tokens": 40,
        **fields,
    }
    content = json.dumps(body)
    began_s = time.monotonic()
    reply = httpx.post(
        f"{live.url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}, timeout=120
    )
    assert time.monotonic() - began_s < LONGEST_S
    return reply


def forced(parameters: Any, strict: bool = False) -> dict[str, Any]:
    """Fields that force a call of one function."""
    function = {"name": "f", "parameters": parameters, "strict": strict}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


def test_no_value_of_a_schema_is_built_to_force_a_call(live: Live) -> None:
    """The shortest value was: 100 MB of text, tokenized, ended the process at 6 GB."""
    long_texts = {"type": "array", "minItems": 1000, "items": {"type": "string", "minLength": 100_000}}
    reply = send(live, **forced(closed({"texts": long_texts})))
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["finish_reason"] == "length"
