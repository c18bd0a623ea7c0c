"""A server with weights of four bits and a cache of eight.

Forced calls are valid, and greedy replies the same alone and in a crowd.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.live import Live, live_server

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Lima", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "hourly": {"type": "boolean"},
    },
    "required": ["city", "days", "hourly"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "forecast", "description": "Weather.", "parameters": SCHEMA}}]


@pytest.fixture(scope="module")
def quantized() -> Iterator[Live]:
    """The built-in model, whose weights are plain, in four bits; its keys and values in eight."""
    with live_server("--quantize", "int4", "--kv-dtype", "int8", "--threads", "2") as server:
        yield server


def call(server: Live, seed: int, temperature: float = 1.0) -> str:
    """The arguments of a forced call."""
    reply = server.client().chat.completions.create(
        model="built-in",
        messages=[{"role": "user", "content": f"How will the weather be in Oslo on day {seed}?"}],
        tools=TOOLS,
        tool_choice="required",
        temperature=temperature,
        seed=seed,
        max_tokens=100,
    )
    calls: Any = reply.choices[0].message.tool_calls
    assert [made.function.name for made in calls] == ["forecast"]
    return str(calls[0].function.arguments)


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.long)])
def test_forced_calls_are_valid(quantized: Live, count: int) -> None:
    validator = Draft202012Validator(SCHEMA)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda seed: call(quantized, seed), range(count)))
    assert [text for text in found if not validator.is_valid(json.loads(text))] == []


def test_greedy_replies_are_the_same_alone_and_in_a_crowd(quantized: Live) -> None:
    alone = [call(quantized, seed, 0.0) for seed in range(6)]
    with ThreadPoolExecutor(16) as pool:
        crowd = list(pool.map(lambda seed: call(quantized, seed % 6, 0.0), range(24)))
    assert crowd == alone * 4
