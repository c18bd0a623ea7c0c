"""First requests of a new user, answered correctly by the shipped weights without a grammar."""

from typing import Any

import pytest

from demo.cases import Case, Outcome
from demo.evaluate import answer_in_process, read_reply
from demo.export import SHIPPED
from demo.requests import Call


def define(name: str, description: str, required: int, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:required]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


STRING, NUMBER = {"type": "string"}, {"type": "number"}
UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
WEATHER = define("get_weather", "Get the current weather for a city.", 1, city=STRING, unit=UNIT)
EMAIL = define("send_email", "Send an email.", 3, to=STRING, subject=STRING, body=STRING)
ADD = define("add", "Add two numbers.", 2, a=NUMBER, b=NUMBER)
FLIGHT = define("book_flight", "Book a flight.", 2, origin=STRING, destination=STRING, date=STRING)

CALLS: list[tuple[str, list[Call]]] = [
    ("What's the weather in Paris?", [Call("get_weather", {"city": "Paris"})]),
    (
        "What is the weather in Paris and in Rome?",
        [Call("get_weather", {"city": "Paris"}), Call("get_weather", {"city": "Rome"})],
    ),
    ("What's the weather in Oslo in celsius?", [Call("get_weather", {"city": "Oslo", "unit": "celsius"})]),
    ("What is 12 + 30?", [Call("add", {"a": 12, "b": 30})]),
    (
        'Send an email to bob@example.com with subject Hello and body "See you tomorrow".',
        [Call("send_email", {"to": "bob@example.com", "subject": "Hello", "body": "See you tomorrow"})],
    ),
    (
        "Book a flight from Paris to Tokyo on 2025-03-14",
        [Call("book_flight", {"origin": "Paris", "destination": "Tokyo", "date": "2025-03-14"})],
    ),
]


def send(messages: list[dict[str, Any]], tools: list[dict[str, Any]], thinking: bool) -> Outcome:
    (outcome,) = answer_in_process([Case("everyday", thinking, tuple(messages), tuple(tools), ())], SHIPPED)
    return outcome


@pytest.mark.parametrize("thinking", [False, True])
def test_first_requests_get_the_expected_calls(thinking: bool) -> None:
    tools = (WEATHER, EMAIL, ADD, FLIGHT)
    cases = [
        Case("everyday", thinking, ({"role": "user", "content": text},), tools, tuple(calls)) for text, calls in CALLS
    ]
    outcomes = answer_in_process(cases, SHIPPED)
    assert [list(outcome.calls) for outcome in outcomes] == [calls for _, calls in CALLS]


@pytest.mark.parametrize("tools", [[], [WEATHER]])
def test_a_greeting_is_answered(tools: list[dict[str, Any]]) -> None:
    outcome = send([{"role": "user", "content": "Hello!"}], tools, thinking=False)
    assert outcome == Outcome((), "Hello! How can I help you?")


def test_the_model_identifies_itself() -> None:
    outcome = send([{"role": "user", "content": "Who are you?"}], [], thinking=False)
    assert "toolwire" in outcome.text


def test_a_result_is_reported_in_a_sentence() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages: list[Any] = [
        {"role": "user", "content": "What's the weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": '{"temperature": 18, "condition": "sunny"}'},
    ]
    assert send(messages, [WEATHER], thinking=False).text == "The temperature is 18 and the condition is sunny."


def test_a_missing_argument_is_requested() -> None:
    outcome = send([{"role": "user", "content": "What's the weather?"}], [WEATHER], thinking=False)
    assert outcome == Outcome((), "Please tell me the city.")


def test_replies_are_parsed_with_and_without_thoughts() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    assert read_reply(f"<think>\nI need f.\n</think>\n\n{call}\n{call}").calls == (Call("f", {"x": 1}),) * 2
    assert read_reply('<tool_call>\n{"name": \n</tool_call>').calls == ()
