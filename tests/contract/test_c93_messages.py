"""Messages and Completions by a real server process: the SDKs, their tool runner, and a coding agent's session."""

from typing import Any

import anthropic
import openai
import pytest
from anthropic import beta_tool

from benchmarks.agent_cache import run_session
from tests.contract.requests import MODEL
from tests.live import Live

QUESTION: Any = {"role": "user", "content": "What is the weather in Paris and in Rome?"}
asked: list[str] = []


@beta_tool
def get_weather(city: str) -> str:
    """Get the current weather for a city

    Args:
        city: Name of the city
    """
    asked.append(city)
    return '{"temperature": 21, "sky": "sunny"}'


def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="any", max_retries=0, timeout=120)


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_runner_runs_two_calls_and_reads_the_answer(script: str, stream: bool) -> None:
    asked.clear()
    with client(script) as sdk:
        runner: Any = sdk.beta.messages.tool_runner(
            model=MODEL, max_tokens=300, tools=[get_weather], messages=[QUESTION], stream=stream
        )
        last: Any = [turn.get_final_message() if stream else turn for turn in runner][-1]
    assert asked == ["Paris", "Rome"]
    assert last.stop_reason == "end_turn" and last.content[0].text.startswith("It is 21 degrees")


def test_the_built_in_model_calls_a_tool_and_answers(live: Live) -> None:
    tool: Any = get_weather.to_dict()
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 300, "tools": [tool], "extra_body": {"temperature": 0}}
    with client(live.url) as sdk:
        whole = sdk.messages.create(messages=[QUESTION], tool_choice={"type": "any"}, **options)
        with sdk.messages.stream(messages=[QUESTION], tool_choice={"type": "any"}, **options) as stream:
            streamed = stream.get_final_message()
        calls = [block for block in whole.content if block.type == "tool_use"]
        assert [(one.name, one.input) for one in calls] == [
            (one.name, one.input) for one in streamed.content if one.type == "tool_use"
        ]
        assert calls and whole.stop_reason == streamed.stop_reason == "tool_use"
        results: Any = [{"type": "tool_result", "tool_use_id": one.id, "content": "sunny"} for one in calls]
        messages: Any = [
            QUESTION,
            {"role": "assistant", "content": whole.content},
            {"role": "user", "content": results},
        ]
        reply = sdk.messages.create(messages=messages, tool_choice={"type": "none"}, **options)
        assert reply.content[-1].type == "text" and reply._request_id
        counted = sdk.messages.count_tokens(model=MODEL, messages=messages, tools=[tool])
        usage = reply.usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        assert [model.id for model in sdk.models.list()] == [MODEL]
        with pytest.raises(anthropic.NotFoundError, match="claude-x"):
            sdk.messages.create(messages=[QUESTION], **{**options, "model": "claude-x"})


def test_completions_by_the_sdk(live: Live) -> None:
    sdk: openai.OpenAI = live.client()
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 12, "temperature": 0, "logprobs": 1}
    whole = sdk.completions.create(prompt=["The weather in", "A city is"], **options)
    chunks = list(sdk.completions.create(prompt=["The weather in", "A city is"], stream=True, **options))
    for index, choice in enumerate(whole.choices):
        pieces = [one for chunk in chunks for one in chunk.choices if one.index == index]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert choice.logprobs is not None and choice.logprobs.tokens
        assert "".join(choice.logprobs.tokens) == choice.text
    assert whole.usage is not None and whole.usage.completion_tokens >= 2


def test_a_coding_agents_session_is_served_from_the_cache(live: Live) -> None:
    """The requests of ten rounds as recorded; a field that is rendered otherwise each time ends the prefix."""
    rounds = run_session(live.url, MODEL, "pi-messages-session")
    assert len(rounds) == 10
    assert [one.share for one in rounds[1:] if one.share <= 0.9] == []
