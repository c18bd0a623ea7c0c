"""`cached_tokens` of turns that continue kept responses, on server processes with models of several dialects."""

from itertools import pairwise
from typing import Any

import pytest

from tests.families import family_checkpoint
from tests.live import Live, live_server

TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
BLOCK = 32
REWRITTEN = 2  # blocks at most: templates leave earlier thoughts out


def turns(client: Any, **fields: Any) -> list[Any]:
    """A forced call, its result, and a question: each continues the one before."""
    options: dict[str, Any] = {"model": "any", "tools": [TOOL], "max_output_tokens": 80, "temperature": 0, **fields}
    options["parallel_tool_calls"] = False
    found = [client.responses.create(input="Weather in Paris? " * 20, tool_choice="required", **options)]
    calls = [item for item in found[0].output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "21"} for call in calls]
    for sent in (results, "And tomorrow?"):
        options["previous_response_id"] = found[-1].id
        found.append(client.responses.create(input=sent, tool_choice="none", **options))
    return found


def check_cached(found: list[Any]) -> None:
    """The prompt before is found again, but for its last blocks: nothing of it was rendered otherwise."""
    assert found[0].status == "completed", found[0]
    for before, after in pairwise(found):
        cached = after.usage.input_tokens_details.cached_tokens
        assert cached >= (before.usage.input_tokens // BLOCK - REWRITTEN) * BLOCK > 0, (cached, before.usage)


@pytest.mark.parametrize(
    "family", ["kimi-k2", *(pytest.param(one, marks=pytest.mark.long) for one in ("qwen1.5", "glm-4.5"))]
)
def test_a_turn_finds_the_turns_before(family: str) -> None:
    options = ("--model", str(family_checkpoint(family)), "--allow-any-model", "--dtype", "float32", "--threads", "1")
    with live_server(*options, "--no-self-test", "--block-size", str(BLOCK)) as server:
        check_cached(turns(server.client(), reasoning={"effort": "none"}))


def test_a_turn_of_the_built_in_model_finds_the_turns_before(live: Live) -> None:
    check_cached(turns(live.client(), model="toolwire-demo"))
