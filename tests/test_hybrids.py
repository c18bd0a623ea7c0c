"""Qwen3.5 over HTTP, dense and (with --long) MoE, as published: thinking by default, tagged calls, recurrent state."""

import json
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest
from jsonschema import Draft202012Validator

from tests.checkpoints import TOOL_CALL, Kind
from tests.contract.requests import calls_of, chunks_of, deltas_of, finish_of, text_of
from tests.live import Live, live_server
from tests.published import write_published

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Lima", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "hourly": {"type": "boolean"},
    },
    "required": ["city", "days", "hourly"],
}
TOOLS = [
    {"type": "function", "function": {"name": "forecast", "description": "Weather to come.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
QUESTION = {"role": "user", "content": "How will the weather be in Oslo? " * 12}
CERTAIN = {str(TOOL_CALL): 100.0}
BLOCK = 32
QUIET = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module", params=["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.long)])
def hybrid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of this kind; it only starts if its self-test of tool calls passes."""
    assert request.param in get_args(Kind)
    folder = write_published(request.param, tmp_path_factory.mktemp("hybrid") / "model")
    options = ["--threads", "1", "--max-running", "8", "--served-model-name", "hybrid", "--generation-config", "none"]
    with live_server("--model", str(folder), *options) as server:
        yield server


def post(server: Live, **fields: Any) -> httpx.Response:
    body = {"model": "hybrid", "messages": [QUESTION], "tools": TOOLS, "temperature": 0, "max_tokens": 160, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)


def post_both_ways(server: Live, **fields: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The reply, after checking that the streamed one is the same, and its calls."""
    whole = post(server, **fields).json()
    chunks = chunks_of(post(server, stream=True, **fields))
    (choice,) = whole["choices"]
    message = choice["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
    assert calls_of(chunks) == calls
    assert text_of(chunks) == (message["content"] or "")
    thoughts = "".join(delta.get("reasoning_content") or "" for delta in deltas_of(chunks))
    assert thoughts == (message.get("reasoning_content") or "")
    assert finish_of(chunks) == choice["finish_reason"]
    return choice, calls


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
@pytest.mark.parametrize("thinking", [True, False])
def test_forced_calls_are_valid_and_the_same_when_streamed(hybrid: Live, choice: Any, thinking: bool) -> None:
    """Random weights would think without end; max_tokens reserves space for the forced call."""
    fields = {} if thinking else QUIET
    sampling = {"seed": 3, "temperature": 0.8, "top_k": 20, "parallel_tool_calls": False}
    reply, calls = post_both_ways(hybrid, tool_choice=choice, **sampling, **fields)
    assert reply["finish_reason"] == "tool_calls"
    ((name, arguments),) = calls
    assert name == "forecast" or choice == "required"
    Draft202012Validator(SCHEMA if name == "forecast" else {}).validate(json.loads(arguments))
    assert bool(reply["message"].get("reasoning_content")) == thinking
    assert "<think>" not in (reply["message"]["content"] or "")


@pytest.mark.parametrize("thinking", [True, False])
def test_calls_with_tool_choice_auto_are_valid_and_the_same_when_streamed(hybrid: Live, thinking: bool) -> None:
    """A call ends the think block and follows its schema, also where no call is required."""
    fields = {} if thinking else QUIET
    sampling = {"seed": 5, "temperature": 0.7, "top_k": 20, "parallel_tool_calls": False}
    reply, calls = post_both_ways(hybrid, tool_choice="auto", logit_bias=CERTAIN, **sampling, **fields)
    assert reply["finish_reason"] == "tool_calls"
    ((name, arguments),) = calls
    Draft202012Validator(SCHEMA if name == "forecast" else {}).validate(json.loads(arguments))


def test_it_thinks_by_default_unless_disabled(hybrid: Live) -> None:
    thinking, _ = post_both_ways(hybrid, tools=None, max_tokens=12)
    assert thinking["message"]["reasoning_content"] and not thinking["message"]["content"]
    plain, _ = post_both_ways(hybrid, tools=None, max_tokens=12, **QUIET)
    assert plain["message"]["content"] and not plain["message"].get("reasoning_content")


def test_a_repeated_prompt_starts_from_a_snapshot_and_gives_the_same_reply(hybrid: Live) -> None:
    other = {"role": "user", "content": "Tell me of snapshots. " * 20}
    first = post(hybrid, messages=[other], tool_choice="required").json()
    again = post(hybrid, messages=[other], tool_choice="required").json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] < 100
    calls = [[call["function"] for call in reply["choices"][0]["message"]["tool_calls"]] for reply in (first, again)]
    assert calls[0] == calls[1]


@pytest.mark.parametrize("effort", ["none", "high"])
def test_the_next_turn_of_a_kept_response_starts_from_a_snapshot(hybrid: Live, effort: Any) -> None:
    """A prompt whose last full block ends in the think block, which the next prompt lacks: nothing was cached then."""
    client = hybrid.client()
    options: dict[str, Any] = {"model": "hybrid", "reasoning": {"effort": effort}}
    text = "How will the weather be in Lima?" + " or" * 64
    num_tokens = client.responses.input_tokens.count(input=text, **options).input_tokens
    text += " or" * ((1 - num_tokens) % BLOCK)
    turns = [client.responses.create(input=text, max_output_tokens=8, **options)]
    for asks in ("And tomorrow?", "And then?"):
        before = turns[-1]
        assert before.usage is not None
        num_repeated = before.usage.input_tokens - 4  # without the think block
        after = client.responses.create(input=asks, previous_response_id=before.id, max_output_tokens=8, **options)
        assert after.usage is not None
        assert after.usage.input_tokens_details.cached_tokens >= num_repeated // BLOCK * BLOCK > 0
        turns.append(after)
    assert turns[0].usage is not None and turns[0].usage.input_tokens % BLOCK == 1


@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_images_are_refused_with_a_clear_error(hybrid: Live, kind: str) -> None:
    """The vision tower is in the files but not loaded."""
    part = {"type": kind, kind: {"url": "data:image/png;base64,AAAA"}}
    answer = post(hybrid, messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_value")
    assert "this model reads text" in error["message"] and error["param"].startswith("messages[0].content[1]")


def test_the_memory_of_recurrent_state_is_reported(hybrid: Live) -> None:
    assert "state per sequence" in hybrid.output()
