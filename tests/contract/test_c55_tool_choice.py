"""C55-C65: tool_choice, and arguments that follow their schemas."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from tests.contract.requests import (
    HELLO,
    NAMED,
    NO_ARGUMENTS,
    SEARCH,
    TWO_CITIES,
    USER,
    WEATHER,
    fault,
    function,
    ok,
    post,
    refused,
    stream,
)
from tests.live import Live

MARKUP = ("<tool_call>", "</tool_call>", "<|im_", "<think>")


def calls(reply: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = reply["choices"][0]["message"].get("tool_calls", [])
    return found


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_c55_none_calls_nothing_and_leaks_no_markup(live: Live, temperature: float) -> None:
    for seed in range(4):
        reply = ok(
            live, tools=[WEATHER, SEARCH], tool_choice="none", temperature=temperature, seed=seed, max_tokens=200
        )["choices"][0]
        assert "tool_calls" not in reply["message"]
        assert reply["finish_reason"] in ("stop", "length")
        assert not any(markup in reply["message"]["content"] for markup in MARKUP)


@pytest.mark.parametrize("temperature", [0, 1.2])
@pytest.mark.parametrize("user", [USER, HELLO], ids=["wanted", "unwanted"])
def test_c56_required_calls_something(live: Live, user: dict[str, str], temperature: float) -> None:
    reply = ok(
        live, messages=[user], tools=[WEATHER, SEARCH], tool_choice="required", temperature=temperature, seed=1,
        max_tokens=400,
    )  # fmt: skip
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    assert calls(reply)
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in (WEATHER, SEARCH)}
    for call in calls(reply):
        jsonschema.validate(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])


def test_c57_named_calls_that_function_alone(live: Live) -> None:
    for name in ("get_weather", "search_web"):
        choice = {"type": "function", "function": {"name": name}}
        reply = ok(live, tools=[WEATHER, SEARCH, NO_ARGUMENTS], tool_choice=choice, max_tokens=400)
        assert reply["choices"][0]["finish_reason"] == "tool_calls"
        assert {call["function"]["name"] for call in calls(reply)} == {name}
        once = ok(live, tools=[WEATHER, SEARCH], tool_choice=choice, parallel_tool_calls=False, max_tokens=400)
        assert len(calls(once)) == 1


def test_c58_allowed_tools(live: Live) -> None:
    for temperature in (0, 1.2):
        reply = ok(
            live, tools=[WEATHER, SEARCH, NO_ARGUMENTS], tool_choice=allowed("required", "search_web", "get_time"),
            temperature=temperature, seed=5, max_tokens=400,
        )  # fmt: skip
        assert {call["function"]["name"] for call in calls(reply)} <= {"search_web", "get_time"}
        assert calls(reply)
    reply = ok(live, tools=[WEATHER, SEARCH], tool_choice=allowed("auto", "search_web"), max_tokens=200)
    assert {call["function"]["name"] for call in calls(reply)} <= {"search_web"}


def test_c58_the_choice_leaves_the_prompt_alone(live: Live) -> None:
    """The prefix cache holds only if the prompt does not change with the choice."""
    choices = ["auto", "none", "required", NAMED, allowed("auto", "search_web")]
    counts = {
        ok(live, tools=[WEATHER, SEARCH], tool_choice=choice, max_tokens=64)["usage"]["prompt_tokens"]
        for choice in choices
    }
    assert len(counts) == 1


def test_c59_an_allowed_tool_that_was_not_declared(live: Live) -> None:
    refused(live, "tool_choice", None, tools=[WEATHER], tool_choice=allowed("auto", "nothing"))
    assert fault(post(live, tools=[WEATHER], tool_choice=allowed("auto")))["type"] == "invalid_request_error"


def test_c60_choices_that_are_none(live: Live) -> None:
    message = refused(live, "tool_choice", "invalid_value", tools=[WEATHER], tool_choice="bogus")
    assert message == "Invalid value: 'bogus'. Supported values are: 'none', 'auto', and 'required'."
    at, missing = "tool_choice.function", "missing_required_parameter"
    refused(live, at, missing, tools=[WEATHER], tool_choice={"type": "function"})
    absent = {"type": "function", "function": {"name": "absent"}}
    message = refused(live, "tool_choice", None, tools=[WEATHER], tool_choice=absent)
    assert (
        message == "Invalid value for 'tool_choice': no function named 'absent' was specified in the 'tools' parameter."
    )


def test_c61_a_choice_without_tools(live: Live) -> None:
    for choice in ("required", NAMED, allowed("auto", "get_weather")):
        refused(live, "tool_choice", None, tool_choice=choice)
    for allowed_choice in ("none", "auto", None):
        ok(live, messages=[HELLO], tool_choice=allowed_choice, max_tokens=2)
        ok(live, messages=[HELLO], tools=[], tool_choice=allowed_choice, max_tokens=2, parallel_tool_calls=False)


def test_c62_one_call_or_several(live: Live) -> None:
    one = ok(live, messages=[TWO_CITIES], tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert len(calls(one)) == 1 and one["choices"][0]["finish_reason"] == "tool_calls"
    several = ok(live, messages=[TWO_CITIES], tools=[WEATHER], parallel_tool_calls=True, temperature=0, max_tokens=400)
    assert len(calls(several)) == 2
    assert len({call["id"] for call in calls(several)}) == 2
    cities = [json.loads(call["function"]["arguments"])["city"] for call in calls(several)]
    assert cities == ["Paris", "Rome"]


ORDER = function(
    "order",
    "Place an order",
    text={"type": "string", "maxLength": 12},
    items={
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {
            "type": "object",
            "properties": {
                "size": {"enum": ["S", "größer", '"\n']},
                "count": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["size", "count"],
            "additionalProperties": False,
        },
    },
    flag={"type": ["boolean", "null"]},
)
SENTENCES = ('Say "hi"\nand \\ done', "Größe 🏔 東京", "{}[]</tool_call>", "Order two large pizzas.", "<|im_end|>")


def test_c63_arguments_are_json_of_their_schema(live: Live) -> None:
    """Fifty prompts at a temperature at which a small model writes noise."""

    def ask(seed: int) -> None:
        user = {"role": "user", "content": SENTENCES[seed % len(SENTENCES)]}
        reply = ok(
            live, messages=[user], tools=[ORDER], tool_choice="required", parallel_tool_calls=False, temperature=1.5,
            seed=seed, max_tokens=400,
        )  # fmt: skip
        (call,) = calls(reply)
        jsonschema.validate(json.loads(call["function"]["arguments"]), ORDER["function"]["parameters"])

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(ask, range(50)))


def test_c63_a_string_of_ten_thousand_characters(live: Live) -> None:
    text = "the " * 2500
    write = function("write", "Write a text", text={"type": "string", "pattern": "^(the ){2500}$"})
    reply = ok(live, tools=[write], tool_choice="required", parallel_tool_calls=False, max_tokens=7000)
    (call,) = calls(reply)
    assert json.loads(call["function"]["arguments"]) == {"text": text}


def custom(syntax: str, definition: str) -> dict[str, Any]:
    grammar = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
    return {"type": "custom", "custom": {"name": "run", "description": "Run it", "format": grammar}}


@pytest.mark.parametrize(
    ("syntax", "definition"), [("regex", r"[a-c]{3,5}-[0-9]{2}"), ("lark", 'start: /[a-c]{3,5}/ "-" /[0-9]{2}/')]
)
def test_c64_custom_tools_follow_their_grammar(live: Live, syntax: str, definition: str) -> None:
    tool = custom(syntax, definition)
    choice = {"type": "custom", "custom": {"name": "run"}}
    fields = {
        "tools": [tool],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 200,
        "temperature": 0,
    }
    ok(live, **fields)  # from now on the prompt is cached, and sums are rounded alike
    (call,) = calls(ok(live, **fields))
    assert set(call) == {"id", "type", "custom"} and call["type"] == "custom"
    assert re.fullmatch(r"[a-c]{3,5}-[0-9]{2}", call["custom"]["input"])
    pieces = [
        delta["tool_calls"][0]
        for chunk in stream(live, **fields)
        for delta in [chunk["choices"][0]["delta"]]
        if "tool_calls" in delta
    ]
    assert pieces[0] == {"index": 0, "id": pieces[0]["id"], "type": "custom", "custom": {"input": "", "name": "run"}}
    assert all(set(piece) == {"index", "custom"} and set(piece["custom"]) == {"input"} for piece in pieces[1:])
    assert "".join(piece["custom"]["input"] for piece in pieces) == call["custom"]["input"]


@pytest.mark.parametrize(("syntax", "definition"), [("regex", "("), ("lark", "start: nowhere")])
def test_c64_a_grammar_that_is_none(live: Live, syntax: str, definition: str) -> None:
    fault(post(live, tools=[custom(syntax, definition)]))


def test_c65_tools_beside_a_structured_answer(live: Live) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema, "strict": True}}
    for user in (USER, HELLO):
        for temperature in (0, 1.2):
            reply = ok(
                live, messages=[user], tools=[WEATHER], response_format=wanted, temperature=temperature, seed=1,
                max_tokens=300,
            )  # fmt: skip
            if calls(reply):
                for call in calls(reply):
                    jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER["function"]["parameters"])
            else:
                jsonschema.validate(json.loads(reply["choices"][0]["message"]["content"]), schema)
