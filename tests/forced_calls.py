"""Forced calls of one tool: what servers with weights of few bits are asked for, and what they must answer."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jsonschema import Draft202012Validator

from tests.live import Live

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


def forced_call(server: Live, seed: int, temperature: float = 1.0, model: str = "tiny") -> str:
    """The arguments of a forced call."""
    reply = server.client().chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"How will the weather be in Oslo on day {seed}?"}],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=temperature,
        seed=seed,
        max_tokens=100,
    )
    calls: Any = reply.choices[0].message.tool_calls
    assert [made.function.name for made in calls] == ["forecast"]
    return str(calls[0].function.arguments)


def invalid_calls(server: Live, count: int, model: str = "tiny") -> list[str]:
    """The arguments that do not match the schema, of this many sampled calls from sixteen clients."""
    validator = Draft202012Validator(SCHEMA)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda seed: forced_call(server, seed, model=model), range(count)))
    return [text for text in found if not validator.is_valid(json.loads(text))]


def calls_alone_and_in_a_crowd(server: Live, model: str = "tiny") -> tuple[list[str], list[str]]:
    """Greedy calls one after the other, and each of them four times among 24 at once."""
    alone = [forced_call(server, seed, 0.0, model) for seed in range(6)]
    with ThreadPoolExecutor(16) as pool:
        crowd = list(pool.map(lambda seed: forced_call(server, seed % 6, 0.0, model), range(24)))
    return alone * 4, crowd
