"""C85-C87 and C90: the openai SDKs, Python and Node, with all their helpers."""

import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.contract.node_programs import run_node
from tests.contract.requests import MODEL, TWO_CITIES, USER, WEATHER
from tests.live import Live


class GetWeather(BaseModel):
    """Get the current weather for a city"""

    city: str
    unit: Literal["celsius", "fahrenheit"]


class Mood(BaseModel):
    mood: Literal["good", "bad"]
    intensity: Literal[1, 2, 3]


TOOL = openai.pydantic_function_tool(GetWeather)


def test_c85_stream_helper_with_a_pydantic_tool(live: Live) -> None:
    fields: dict[str, Any] = {"messages": [TWO_CITIES], "tools": [TOOL], "tool_choice": "required", "max_tokens": 400}
    with live.client().chat.completions.stream(model=MODEL, **fields) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    calls = final.choices[0].message.tool_calls or []
    assert len(done) == len(calls) >= 1
    for event, call in zip(done, calls, strict=True):
        assert event.name == call.function.name == "GetWeather"
        assert isinstance(event.parsed_arguments, GetWeather)
        assert isinstance(call.function.parsed_arguments, GetWeather)
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in deltas if event.index == 0) == calls[0].function.arguments


def test_c85_content_events(live: Live) -> None:
    with live.client().chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "Hello!"}], max_tokens=24, logprobs=True, top_logprobs=2
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    content = [event.content for event in events if event.type == "content.done"]
    assert content == [final.choices[0].message.content]
    assert final.choices[0].logprobs is not None and final.choices[0].logprobs.content


def test_c86_parse_tools(live: Live) -> None:
    reply = live.client().chat.completions.parse(
        model=MODEL, messages=[USER], tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=200
    )
    (call,) = reply.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)
    assert reply._request_id


def test_c86_parse_an_answer(live: Live) -> None:
    fields: dict[str, Any] = {
        "messages": [USER],
        "response_format": Mood,
        "max_tokens": 200,
        "reasoning_effort": "none",
    }
    reply = live.client().chat.completions.parse(model=MODEL, **fields)
    assert isinstance(reply.choices[0].message.parsed, Mood)
    with live.client().chat.completions.stream(model=MODEL, **fields) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Mood)


def test_c86_a_reply_cut_off_is_the_sdks_own_error(live: Live) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        live.client().chat.completions.parse(model=MODEL, messages=[USER], response_format=Mood, max_tokens=3)


def test_faults_are_the_sdks_own_errors(live: Live) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        live.client().chat.completions.create(model=MODEL, messages=[USER], temperature=3)
    assert (bad.value.code, bad.value.param, bad.value.type) == (
        "decimal_above_max_value", "temperature", "invalid_request_error",
    )  # fmt: skip
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        live.client().chat.completions.create(model="none", messages=[USER])
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize("parallel", ["parallel", "single"])
def test_c87_node_streams_a_tool_loop(live: Live, script: str, parallel: str) -> None:
    url = script if parallel == "parallel" else live.url
    told = run_node("loop.mjs", f"{url}/v1", MODEL, parallel)
    called, answered, called_again, answered_again = json.loads(told)
    for one in (called, called_again):
        assert one["finish"] == "tool_calls" and one["total"] > 0
        assert len(one["calls"]) == (2 if parallel == "parallel" else 1)
        for call_id, name, arguments in one["calls"]:
            assert call_id.startswith("call_") and name == "get_weather"
            assert set(json.loads(arguments)) == {"city"}
    for one in (answered, answered_again):
        assert one["calls"] == [] and one["content"]


@pytest.mark.parametrize("streamed", [False, True])
def test_c90_a_tool_loop_of_three_rounds(live: Live, streamed: bool) -> None:
    """Call, result, text; then again in the same conversation."""
    client = live.client()
    messages: list[Any] = []
    ids: set[str] = set()

    def ask(choice: str) -> Any:
        fields: dict[str, Any] = {
            "model": MODEL, "messages": messages, "tools": [WEATHER], "tool_choice": choice, "temperature": 0,
            "max_tokens": 300,
        }  # fmt: skip
        if not streamed:
            return client.chat.completions.create(**fields).choices[0]
        with client.chat.completions.stream(**fields) as stream:
            return stream.get_final_completion().choices[0]

    for city in ("Paris", "Rome", "Oslo"):
        messages.append({"role": "user", "content": f"What is the weather in {city} in celsius?"})
        called = ask("required")
        assert called.finish_reason == "tool_calls"
        messages.append(called.message.to_dict())
        for call in called.message.tool_calls:
            assert call.id not in ids
            ids.add(call.id)
            assert set(json.loads(call.function.arguments)) == {"city", "unit"}
            messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'})
        answered = ask("none")
        assert answered.finish_reason in ("stop", "length")
        assert answered.message.content and not answered.message.tool_calls
        messages.append(answered.message.to_dict())
