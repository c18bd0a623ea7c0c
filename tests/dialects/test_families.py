"""Every family of models over HTTP, with its own tokens and template: detection, self-test, forced and free calls.

All tools, streamed and not: `python -m tests.dialects.forced`.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from server.checkpoint.checkpoint import Checkpoint
from server.self_test import self_test
from tests.caches import latest
from tests.dialects.forced import EMPTY, Outcome, endings, faults, request_for, run, serve, tools_for
from tests.dialects.over_http import Reply, send
from tests.families import FAMILIES, family_checkpoint
from tests.live import Live

TOOLS = range(3, 200, 66)
OPENERS = {"kimi_k2": "<|tool_calls_section_begin|>", "react": "Action:"}
FREE = 3  # replies
CERTAIN = 40.0  # a bias that makes an allowed id almost certain


@dataclass(frozen=True, slots=True)
class Served:
    """A running server and its family."""

    family: str
    server: Live

    @property
    def dialect(self) -> str:
        """The dialect that the server has to detect."""
        return FAMILIES[self.family].dialect


@latest
def opened(family: str) -> Checkpoint:
    """Open the family's checkpoint."""
    return Checkpoint.open(family_checkpoint(family))


# Tagged calls of Qwen3.5 over HTTP are in tests/test_hybrids.py too, with its weights as published.
SERVED = [pytest.param(name, marks=pytest.mark.long if name == "qwen3.5" else ()) for name in FAMILIES]
NOT_SERVED = [pytest.param(name, marks=() if name == "qwen3.5" else pytest.mark.long) for name in FAMILIES]


def some_served(*names: str) -> list[Any]:
    """These families, and in the long tests all."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.long) for name in FAMILIES]


@pytest.fixture(scope="module", params=SERVED)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Start one server per family."""
    with serve(request.param) as server:
        yield Served(request.param, server)


@pytest.mark.parametrize("family", NOT_SERVED)
def test_the_dialect_is_found_and_passes_its_self_test_with_the_family_s_own_tokens(family: str) -> None:
    """A server of the family does both at its start."""
    checkpoint = opened(family)
    assert checkpoint.dialect.name == FAMILIES[family].dialect
    assert self_test(checkpoint) == []
    assert all(marker in checkpoint.marker_ids for marker in checkpoint.dialect.markers)


@pytest.mark.parametrize("served", ["qwen1.5"], indirect=True)
def test_notes_on_the_checkpoint_are_shown_at_start_and_with_the_model(served: Served) -> None:
    """An operator has to learn that the checkpoint's own template is not used."""
    (note,) = opened(served.family).notes
    assert "ReAct" in note and str(opened(served.family).path) not in note
    assert httpx.get(f"{served.server.url}/v1/models").json()["data"][0]["notes"] == [note]
    assert "Note" in served.server.output() and "ReAct" in served.server.output()


def test_forced_calls_are_valid_and_finished_and_streamed_as_they_are_whole(served: Served) -> None:
    outcome = Outcome(served.family, served.dialect)
    assert asyncio.run(run(served.server, served.family, TOOLS, outcome)) == []
    assert outcome.valid == outcome.requests == 2 * len(TOOLS)
    assert outcome.unfinished == 0 and outcome.streamed_equal + outcome.rounded_apart == len(TOOLS)


def free_requests(served: Served, **fields: Any) -> list[dict[str, Any]]:
    """Return requests in `auto` with a bias that makes an opener almost certain wherever it is allowed."""
    tools, tokenizer = tools_for(served.dialect), opened(served.family).tokenizer
    ids = tokenizer.encode(OPENERS.get(served.dialect, "<tool_call>"), add_special_tokens=False).ids
    bias = endings(tokenizer, served.dialect) | {str(token_id): CERTAIN for token_id in ids}
    requests = [request_for(tools, number, bias, thinks=False) for number in range(1, FREE * 27, 27)]
    return [{**body, "tool_choice": "auto", "parallel_tool_calls": False} | fields for body in requests]


def replies(served: Served, bodies: list[dict[str, Any]]) -> list[Reply]:
    """Send the requests concurrently and return the complete replies."""

    async def gather() -> list[Reply]:
        async with httpx.AsyncClient(base_url=served.server.url, timeout=170) as client:
            return list(await asyncio.gather(*(send(client, body, False) for body in bodies)))

    return asyncio.run(gather())


def check_free(served: Served, bodies: list[dict[str, Any]], found: list[Reply]) -> int:
    """Return the number of replies with calls, after checking that these are valid calls of declared tools."""
    schemas = {tool.name: tool.parameters or EMPTY for tool in tools_for(served.dialect)}
    called = [(body, reply) for body, reply in zip(bodies, found, strict=True) if reply.calls]
    for body, reply in called:
        declared = {one["function"]["name"]: schemas[one["function"]["name"]] for one in body["tools"]}
        problems = [fault for fault in faults(reply, declared, True) if not fault.startswith("text beside")]
        assert problems == [], reply
    return len(called)


@pytest.mark.parametrize("served", [one for one in SERVED if one.values != ("qwen1.5",)], indirect=True)
def test_calls_of_a_free_reply_are_valid_inside_a_think_block_as_well(served: Served) -> None:
    """The bias opens a call where the model should have continued its thoughts or closed the block."""
    checkpoint = opened(served.family)
    bodies = free_requests(served, max_tokens=1500)
    if "<think>" in checkpoint.template.source:
        may_think = {str(checkpoint.marker_ids["<think>"]): CERTAIN}  # as likely as a call
        thinking = {"chat_template_kwargs": {"enable_thinking": True}}
        bodies += [{**body, **thinking, "logit_bias": body["logit_bias"] | may_think} for body in bodies]
    found = replies(served, bodies)
    assert check_free(served, bodies, found) == len(bodies)


@pytest.mark.parametrize("served", some_served("qwen3", "qwen1.5"), indirect=True)
def test_d10_thinking_ends_in_time_for_a_forced_call(served: Served) -> None:
    """These weights think up to the limit; the call must fit in the rest of `max_tokens`."""
    unit = {"type": "object", "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}}, "required": ["unit"]}
    function = {"name": "get_unit", "parameters": unit}
    checkpoint = opened(served.family)
    thinks = "<think>" in checkpoint.template.source
    begins = {str(checkpoint.marker_ids["<think>"]): CERTAIN}
    bodies = [
        {
            **request_for(tools_for(served.dialect), seed, begins, thinks=False),
            "tools": [{"type": "function", "function": function}],
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "max_tokens": 80,
            "chat_template_kwargs": {"enable_thinking": True},
        }
        for seed in (1, 2)
        for choice in ("required", {"type": "function", "function": {"name": "get_unit"}})
    ]
    found = replies(served, bodies)
    for reply in found:
        assert faults(reply, {"get_unit": unit}, True) == [], reply
    assert any(reply.thought for reply in found) == thinks


@pytest.mark.parametrize("served", some_served("qwen3", "glm-4.5"), indirect=True)
def test_case_44_where_an_answer_must_come_a_model_that_would_end_at_once_goes_on(served: Served) -> None:
    """The bias makes the end of the reply almost certain, after the thoughts or at once."""
    ends = {str(token_id): CERTAIN for token_id in opened(served.family).stop_ids}
    body = {**request_for(tools_for(served.dialect), 2, ends, thinks=True), "tool_choice": "auto", "max_tokens": 60}
    ways: tuple[dict[str, Any], ...]
    ways = {"thinking_budget": 4}, {"chat_template_kwargs": {"enable_thinking": False}}, {"tools": []}
    for more in ways:
        silent, held = replies(served, [body | more, body | more | {"must_answer": True}])
        assert (silent.content.strip(), silent.finish) == ("", "stop")
        assert held.content.strip() and held.finish == "stop"


def test_none_calls_nothing_and_leaks_no_markup(served: Served) -> None:
    """The bias makes the opener almost certain."""
    for reply in replies(served, free_requests(served, tool_choice="none", max_tokens=30)[:3]):
        assert not reply.calls and reply.content
        assert not any(marker in reply.content for marker in ("tool_call", "\nAction:", "<arg_"))
