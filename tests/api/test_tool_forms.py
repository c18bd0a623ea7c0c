"""Tools and choices in the form of another API: read alike on every surface, with a note; `--strict` refuses them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.conftest import CALL, WEATHER, Serve
from tests.api.test_surfaces import USER, WITH_MESSAGES, asked_of, past, post
from tests.backends.scripted import Script

Reply = Callable[..., Script]
SCHEMA = WEATHER["function"]["parameters"]
NAMED = {"name": "get_weather", "description": "Get the weather"}
FORMS: dict[str, dict[str, Any]] = {
    "chat": WEATHER,
    "responses": {"type": "function", **NAMED, "parameters": SCHEMA, "strict": False},
    "messages": {**NAMED, "input_schema": SCHEMA},
    "custom of messages": {"type": "custom", **NAMED, "input_schema": SCHEMA},
    "no type": {**NAMED, "parameters": SCHEMA},
    "mcp": {**NAMED, "inputSchema": SCHEMA},
}
CHOICES: list[tuple[Any, str]] = [
    ("any", "required"),
    ("required", "required"),
    ("auto", "auto"),
    ({"type": "any"}, "required"),
    ({"type": "auto"}, "auto"),
    ({"type": "none"}, "none"),
    ({"type": "required"}, "required"),
    ({"type": "tool", "name": "get_weather"}, "named"),
    ({"type": "function", "name": "get_weather"}, "named"),
    ({"type": "function", "function": {"name": "get_weather"}}, "named"),
    ({"function": {"name": "get_weather"}}, "named"),
    ({"name": "get_weather"}, "named"),
]


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_tool_in_any_form_is_offered_and_called(
    serve: Serve, reply: Reply, surface: str, form: str, stream: bool
) -> None:
    """It was a 400, or left out as if it were a tool of Anthropic's servers."""
    own = FORMS[surface]
    async with serve(reply(CALL)) as served:
        answer = await post(served, surface, tools=[FORMS[form]], stream=stream)
        assert answer.status_code == 200, answer.text
        prompt = served.text_of(served.backend.asked[-1].token_ids)
        await post(served, surface, tools=[own])
        assert served.text_of(served.backend.asked[-1].token_ids).replace(', "strict": false', "") == prompt.replace(
            ', "strict": false', ""
        )
    assert '"get_weather"' in answer.text
    is_own = form == surface or (surface == "messages" and form == "custom of messages")
    assert ('"kind":"form"' in answer.text) != is_own


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize(("choice", "meant"), CHOICES, ids=str)
async def test_a_choice_in_any_form_is_the_choice(
    serve: Serve, reply: Reply, surface: str, choice: Any, meant: str
) -> None:
    async with serve(reply(CALL)) as served:
        asked = await asked_of(served, surface, tools=[WEATHER], tool_choice=choice)
    assert asked.constraint is not None
    start = asked.constraint.source.partition("\n")[0]
    assert ("first" in start) == (meant in ("required", "named")), start
    assert ("open_call" in start) == (meant == "auto"), start


@pytest.mark.parametrize(
    ("surface", "choice"),
    [
        ("chat", {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}),
        ("responses", {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER]}}),
        ("responses", {"type": "allowed_tools", "mode": "required", "tools": [WEATHER]}),
    ],
)
async def test_allowed_tools_in_the_other_form(serve: Serve, reply: Reply, surface: str, choice: Any) -> None:
    async with serve(reply(CALL)) as served:
        asked = await asked_of(served, surface, tools=[WEATHER], tool_choice=choice)
    assert asked.constraint is not None and asked.constraint.source.startswith("start: ")
    assert "open_call" not in asked.constraint.source.partition("\n")[0]


@pytest.mark.parametrize("surface", ["chat", "responses"])
async def test_a_choice_of_messages_can_forbid_several_calls(serve: Serve, reply: Reply, surface: str) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    async with serve(reply(CALL)) as served:
        asked = await asked_of(served, surface, tools=[WEATHER], tool_choice=choice)
    assert asked.constraint is not None and "further" not in asked.constraint.source.partition("\n")[0]


GRAMMAR = {"syntax": "regex", "definition": "[a-z]+"}
NESTED = {"type": "custom", "custom": {"name": "run", "format": {"type": "grammar", "grammar": GRAMMAR}}}
FLAT = {"type": "custom", "name": "run", "format": {"type": "grammar", **GRAMMAR}}


@pytest.mark.parametrize("surface", ["chat", "responses"])
@pytest.mark.parametrize("tool", [NESTED, FLAT], ids=["nested", "flat"])
async def test_a_custom_tool_in_either_form(serve: Serve, reply: Reply, surface: str, tool: dict[str, Any]) -> None:
    async with serve(reply("Hi")) as served:
        asked = await asked_of(served, surface, tools=[tool], tool_choice="required")
    assert asked.constraint is not None and "[a-z]" in asked.constraint.source


@pytest.mark.parametrize(
    ("surface", "form"), [("chat", "responses"), ("chat", "messages"), ("responses", "chat"), ("messages", "chat")]
)
async def test_strict_refuses_other_forms(serve: Serve, surface: str, form: str) -> None:
    async with serve(strict=True) as served:
        answer = await post(served, surface, tools=[FORMS[form]], tool_choice="any")
    assert answer.status_code == 400, answer.text


COUNTS = {
    "chat": "/v1/chat/completions/input_tokens",
    "responses": "/v1/responses/input_tokens",
    "messages": "/v1/messages/count_tokens",
}


@pytest.mark.parametrize("surface", WITH_MESSAGES)
async def test_a_count_of_tokens_says_what_was_read_as_something_else(serve: Serve, surface: str) -> None:
    """Its notes were dropped."""
    form = "messages" if surface == "chat" else "chat"
    field = "input" if surface == "responses" else "messages"
    body = {"model": "org/tiny", field: [USER], "tools": [FORMS[form]]}
    async with serve() as served:
        answer = await served.http.post(COUNTS[surface], json=body)
        plain = await served.http.post(COUNTS[surface], json={"model": "org/tiny", field: [USER]})
    assert [note["kind"] for note in answer.json()["toolwire"]["notes"]] == ["form"]
    assert plain.json()["input_tokens"] > 0 and "toolwire" not in plain.json()


def twice(surface: str) -> dict[str, Any]:
    """Two calls with one id, each with its result, in one reply and in two."""

    def call(city: str) -> dict[str, Any]:
        given = {"city": city}
        if surface == "messages":
            return {"type": "tool_use", "id": "c", "name": "get_weather", "input": given}
        function = {"name": "get_weather", "arguments": json.dumps(given)}
        kind = "function_call" if surface == "responses" else "function"
        return (
            {"type": kind, "call_id": "c", **function}
            if surface == "responses"
            else {"type": kind, "id": "c", "function": function}
        )

    def result(text: str) -> dict[str, Any]:
        if surface == "responses":
            return {"type": "function_call_output", "call_id": "c", "output": text}
        if surface == "messages":
            return {"type": "tool_result", "tool_use_id": "c", "content": text}
        return {"role": "tool", "tool_call_id": "c", "content": text}

    if surface == "responses":
        parts = [call("Oslo"), call("Rome"), result("cold"), result("warm"), call("Bonn"), result("wet")]
        return {"input": [USER, *parts]}
    if surface == "messages":
        both = {"role": "assistant", "content": [call("Oslo"), call("Rome")]}
        back = {"role": "user", "content": [result("cold"), result("warm")]}
        one = {"role": "assistant", "content": [call("Bonn")]}
        return {"messages": [USER, both, back, one, {"role": "user", "content": [result("wet")]}]}
    both = {"role": "assistant", "tool_calls": [call("Oslo"), call("Rome")]}
    one = {"role": "assistant", "tool_calls": [call("Bonn")]}
    return {"messages": [USER, both, result("cold"), result("warm"), one, result("wet")]}


@pytest.mark.parametrize("surface", WITH_MESSAGES)
async def test_calls_of_one_id_are_answered_in_their_order(serve: Serve, reply: Reply, surface: str) -> None:
    """Servers that count calls from nought in each reply give the same id again; it was a 400 on Responses."""
    async with serve(reply("Hi")) as served:
        prompt = served.text_of((await asked_of(served, surface, **twice(surface))).token_ids)
    order = ["Oslo", "Rome", "cold", "warm", "Bonn", "wet"]
    assert [prompt.index(word) for word in order] == sorted(prompt.index(word) for word in order)


async def test_a_result_too_many_is_refused(serve: Serve) -> None:
    fields = past("responses", "ok")
    async with serve() as served:
        answer = await post(served, "responses", input=[*fields["input"], fields["input"][-1]])
    assert answer.status_code == 400 and "has an output already" in answer.text


@pytest.mark.parametrize("surface", WITH_MESSAGES)
async def test_a_call_in_the_history_may_have_lost_its_name(serve: Serve, reply: Reply, surface: str) -> None:
    """Clients that put streams together lose it; every later request of the session was refused."""
    sent = json.loads(json.dumps(past(surface, "ok", name="LOST")).replace('"name": "LOST", ', ""))
    async with serve(reply("Hi")) as served:
        await asked_of(served, surface, **sent)
    async with serve(strict=True) as served:
        assert (await post(served, surface, **sent)).status_code == 400


@pytest.mark.parametrize("surface", WITH_MESSAGES)
@pytest.mark.parametrize("own", [{}, {"id": "fc_1"}], ids=["call_id", "both"])
async def test_calls_in_a_message_may_name_their_ids_as_responses_do(
    serve: Serve, reply: Reply, surface: str, own: dict[str, Any]
) -> None:
    """`call_id` was dropped, so that results in another order than their calls were those of other calls, or a 400."""
    call = {**own, "type": "function_call", "name": "get_weather"}
    calls = [{**call, "call_id": city, "arguments": json.dumps({"city": city})} for city in ("Oslo", "Rome")]
    results = [{"role": "tool", "call_id": city, "content": f"It is in {city}."} for city in ("Rome", "Oslo")]
    if surface == "chat":
        results = [{**one, "tool_call_id": one.pop("call_id")} for one in results]
    field = "input" if surface == "responses" else "messages"
    sent = {field: [USER, {"role": "assistant", "tool_calls": calls}, *results]}
    async with serve(reply("Hi")) as served:
        prompt = served.text_of((await asked_of(served, surface, **sent)).token_ids)
        ordered = {field: [USER, {"role": "assistant", "tool_calls": calls}, *results[::-1]]}
        expected = served.text_of((await asked_of(served, surface, **ordered)).token_ids)
    assert prompt.index("in Oslo.") < prompt.index("in Rome.")
    assert prompt == expected
