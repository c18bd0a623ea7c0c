"""Calls and results in the history as other clients write them: without ids, flat, or as parts of a content."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from server.api.chat.schemas import read_request
from server.api.chat.to_request import RequestMapper
from server.api.errors import RequestRefused
from server.api.sampling import SamplingMapper
from server.chat_request import AssistantMessage, ChatRequest, PastCall, ToolMessage, UserMessage
from server.checkpoint.checkpoint import SamplingDefaults
from tests.api.conftest import Serve
from tests.api.test_surfaces import asked_of, past, post
from tests.backends.scripted import Script

Reply = Callable[..., Script]
USER = {"role": "user", "content": "Hi"}
OSLO, ROME = '{"city": "Oslo"}', '{"city": "Rome"}'


def function(name: str, arguments: Any = OSLO, **others: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **others}


def calling(*calls: Any, **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **others}


def result(content: str, **others: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **others}


def read(*messages: Any, strict: bool = False, repair: bool = False) -> ChatRequest:
    body = {"model": "m", "messages": [USER, *messages]}
    mapper = RequestMapper(SamplingMapper(SamplingDefaults(), 10), strict=strict, repair_history=repair)
    return mapper.to_request(*read_request(body, strict=strict))


def calls_of(request: ChatRequest) -> list[tuple[str, str]]:
    """The names of the calls, each with the text of its result."""
    results = {one.call_id: one.text for one in request.messages if isinstance(one, ToolMessage)}
    calls = [call for one in request.messages if isinstance(one, AssistantMessage) for call in one.calls]
    assert len({call.id for call in calls}) == len(calls) == len(results) and "" not in results
    return [(call.name, results[call.id]) for call in calls]


@pytest.mark.parametrize("id_", [{}, {"id": None}, {"id": ""}], ids=["none", "null", "empty"])
@pytest.mark.parametrize("result_id", [{}, {"tool_call_id": None}, {"tool_call_id": ""}, {"tool_call_id": "made-up"}])
def test_a_call_without_an_id_is_answered_by_the_result_behind_it(id_: Any, result_id: Any) -> None:
    """Ollama's clients and some small agents keep no ids: every later request of such a session was a 400."""
    request = read(calling(function("f", **id_)), result("21", **result_id), USER)
    assert calls_of(request) == [("f", "21")]
    assert [(note.kind, note.param) for note in request.notes] == [("history", "messages[1]")]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([result("1"), result("2"), result("3")], ["1", "2", "3"]),
        ([result("b", name="g"), result("a", name="f"), result("c", name="f")], ["a", "b", "c"]),
        ([result("b", tool_name="g"), result("a", tool_name="f"), result("c")], ["a", "b", "c"]),
        ([result("c", tool_call_id="kept"), result("1"), result("2")], ["1", "2", "c"]),
        ([result("2", name="g"), result("1"), result("3")], ["1", "2", "3"]),
    ],
    ids=["in order", "by name", "by Ollama's name", "one has an id", "one has a name"],
)
def test_results_answer_calls_without_an_id_by_name_or_else_in_order(results: list[Any], expected: list[str]) -> None:
    last = function("f", id="kept") if any("tool_call_id" in one for one in results) else function("f")
    request = read(calling(function("f"), function("g"), last), *results, USER)
    assert calls_of(request) == list(zip("fgf", expected, strict=True))


def test_made_ids_do_not_change_when_the_conversation_goes_on_and_are_nobody_else_s() -> None:
    """A template that prints ids would render another prompt each time, and nothing of it would be cached."""
    first = [calling(function("f"), function("f")), result("1"), result("2")]
    later = [calling(function("f", id="call_1_0")), result("3", tool_call_id="call_1_0")]
    short, long = read(*first), read(*first, *later)
    assert short.messages[1] == read(*first, USER).messages[1]
    assert calls_of(long) == [("f", "1"), ("f", "2"), ("f", "3")]


def test_a_call_without_an_id_and_without_a_result_is_refused_and_repaired() -> None:
    with pytest.raises(RequestRefused, match="did not have response messages: call_1_1") as refused:
        read(calling(function("f"), function("g")), result("1"))
    assert refused.value.error.param == "messages.[1].role"
    repaired = read(calling(function("f"), function("g")), result("1"), repair=True)
    assert [text for _, text in calls_of(repaired)] == [
        "1",
        "(The result of this call is missing from the conversation.)",
    ]


def test_a_result_without_an_id_answers_no_call_that_has_one() -> None:
    with pytest.raises(RequestRefused, match="must have a 'tool_call_id'"):
        read(calling(function("f", id="a")), result("1"))


FLAT = {
    "without `function`": {"id": "c", "name": "f", "arguments": OSLO},
    "with a type": {"id": "c", "type": "function", "name": "f", "arguments": OSLO},
    "of LangChain": {"id": "c", "type": "tool_call", "name": "f", "args": {"city": "Oslo"}},
    "of the Responses API": {"id": "fc", "call_id": "c", "type": "function_call", "name": "f", "arguments": OSLO},
    "of Anthropic": {"id": "c", "type": "tool_use", "name": "f", "input": {"city": "Oslo"}},
    "beside an empty `function`": {"id": "c", "type": "function", "function": None, "name": "f", "arguments": OSLO},
    "under another type": function("f", id="c") | {"type": "tool_call"},
    "without a type": {"id": "c", "function": {"name": "f", "arguments": OSLO}},
}


@pytest.mark.parametrize("call", FLAT.values(), ids=FLAT)
@pytest.mark.parametrize("alone", [False, True])
def test_a_call_in_another_form_is_the_call(call: dict[str, Any], alone: bool) -> None:
    """`Missing required parameter: 'messages[1].tool_calls[0].function'` ended sessions of other frameworks."""
    message = calling(call) | ({"tool_calls": call} if alone else {})
    request = read(message, result("21", tool_call_id="c"), USER)
    (made,) = request.messages[1].calls  # type: ignore[union-attr]
    arguments = json.loads(made.arguments) if isinstance(made.arguments, str) else made.arguments
    assert (made.id, made.name, arguments) == ("c", "f", {"city": "Oslo"})
    is_flat = "name" in call
    assert [(note.kind, note.param) for note in request.notes] == ([("form", "messages[1]")] if is_flat else [])
    if alone or call is not FLAT["without a type"]:
        with pytest.raises(RequestRefused):
            read(message, result("21", tool_call_id="c"), USER, strict=True)


def test_a_flat_call_of_a_custom_tool_keeps_its_text() -> None:
    call = {"call_id": "c", "type": "custom_tool_call", "name": "run", "input": "print(1)"}
    request = read(calling(call), result("1", tool_call_id="c"))
    assert request.messages[1] == AssistantMessage("", None, (PastCall("c", "run", "print(1)", custom=True),))


PARTS = {
    "Anthropic": (
        {"type": "tool_use", "id": "c", "name": "f", "input": {"city": "Oslo"}},
        {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "21"}]},
    ),
    "Anthropic, a string": (
        {"type": "tool_use", "id": "c", "name": "f", "input": {"city": "Oslo"}, "cache_control": {"type": "ephemeral"}},
        {"type": "tool_result", "tool_use_id": "c", "content": "21"},
    ),
    "Anthropic, without ids": (
        {"type": "tool_use", "name": "f", "input": {"city": "Oslo"}},
        {"type": "tool_result", "content": "21"},
    ),
    "the AI SDK": (
        {"type": "tool-call", "toolCallId": "c", "toolName": "f", "input": {"city": "Oslo"}},
        {"type": "tool-result", "toolCallId": "c", "toolName": "f", "output": {"type": "text", "value": "21"}},
    ),
    "the AI SDK of before": (
        {"type": "tool-call", "toolCallId": "c", "toolName": "f", "args": {"city": "Oslo"}},
        {"type": "tool-result", "toolCallId": "c", "toolName": "f", "result": 21},
    ),
    "LangChain": (
        {"type": "tool_call", "id": "c", "name": "f", "args": {"city": "Oslo"}},
        {"type": "tool_result", "tool_call_id": "c", "content": "21"},
    ),
}


@pytest.mark.parametrize(("use", "back"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("role", ["user", "tool"])
def test_calls_and_results_as_parts_are_calls_and_results(use: Any, back: Any, role: str) -> None:
    """Clients that speak to Anthropic through a proxy send its blocks: every such request was a 400."""
    words = {"type": "text", "text": "Let me look."}
    request = read({"role": "assistant", "content": [words, use]}, {"role": role, "content": [back]}, USER)
    reply, answer, _ = request.messages[1:]
    assert isinstance(reply, AssistantMessage) and isinstance(answer, ToolMessage)
    assert reply.text == "Let me look." and reply.calls[0].arguments == {"city": "Oslo"}
    assert (answer.text, answer.call_id) == ("21", reply.calls[0].id)
    assert "form" in {note.kind for note in request.notes}
    with pytest.raises(RequestRefused) as refused:
        read({"role": "assistant", "content": [words, use]}, {"role": role, "content": [back]}, USER, strict=True)
    assert refused.value.error.param == "messages[1].content[1].type"


def test_text_beside_results_follows_them_and_places_are_those_of_the_messages_sent() -> None:
    uses = [{"type": "tool_use", "id": one, "name": "f", "input": {}} for one in "ab"]
    backs = [{"type": "tool_result", "tool_use_id": one, "content": one.upper()} for one in "ba"]
    messages: list[Any] = [
        {"role": "assistant", "content": uses},
        {"role": "user", "content": [{"type": "text", "text": "Well?"}, *backs]},
    ]
    request = read(*messages)
    assert request.messages[2:] == (ToolMessage("A", "a"), ToolMessage("B", "b"), UserMessage("Well?"))
    with pytest.raises(RequestRefused) as refused:
        read(*messages, USER, result("x", tool_call_id="z"))
    assert refused.value.error.param == "messages.[4].role"


def test_a_failed_result_says_so_and_a_call_in_both_forms_is_one() -> None:
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    back = {"type": "tool_result", "tool_use_id": "c", "content": "no such city", "is_error": True}
    request = read(
        {"role": "assistant", "content": [use], "tool_calls": [function("f", "{}", id="c")]},
        {"role": "user", "content": [back]},
    )
    assert calls_of(request) == [("f", "Error: no such city")]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}, "content[0].type"),
        ({"role": "system", "content": [{"type": "tool_result", "tool_use_id": "c"}]}, "content[0].type"),
        ({"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "c"}]}, "content[0].type"),
        (calling({"id": "c", "type": "function"}), "tool_calls[0].function"),
        (calling({"id": "c", "type": "banana"}), "tool_calls[0].type"),
        (calling("f"), "tool_calls[0]"),
    ],
)
def test_what_has_no_plain_sense_is_refused_at_its_place(message: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        read(message)
    assert refused.value.error.param == f"messages[1].{param}"


@pytest.mark.parametrize(
    ("id_", "code"), [({}, "missing_required_parameter"), ({"id": None}, "invalid_type"), ({"id": ""}, "empty_string")]
)
def test_strict_refuses_calls_without_an_id_in_openai_s_words(id_: Any, code: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        read(calling(function("f", **id_)), result("21", tool_call_id=""), strict=True)
    assert (refused.value.error.param, refused.value.error.code) == ("messages[1].tool_calls[0].id", code)


@pytest.mark.parametrize("surface", ["chat", "responses", "messages"])
@pytest.mark.parametrize("value", [None, ""], ids=["null", "empty"])
async def test_calls_without_an_id_are_served_on_every_surface(
    serve: Serve, reply: Reply, surface: str, value: Any
) -> None:
    raw = json.dumps(past(surface, "cold", arguments={"city": "Oslo"}))
    sent = json.loads(raw.replace('"c"', json.dumps(value)))
    async with serve(reply("Hi")) as served:
        prompt = served.text_of((await asked_of(served, surface, **sent)).token_ids)
        notes = (await post(served, surface, **sent)).json()["toolwire"]["notes"]
    assert "Oslo" in prompt and "cold" in prompt
    assert "history" in {note["kind"] for note in notes}
    async with serve(strict=True) as served:
        assert (await post(served, surface, **sent)).status_code == 400


async def test_the_same_conversation_in_any_form_is_the_same_prompt(serve: Serve, reply: Reply) -> None:
    """A client that changes its form in mid-session must still find its prefix in the cache."""
    plain = past("chat", "cold", arguments={"city": "Oslo"})["messages"]
    call = {"name": "get_weather", "arguments": OSLO}
    forms = [
        [USER, calling(call), result("cold")],
        past("messages", "cold", arguments={"city": "Oslo"})["messages"],
        [USER, calling(function("get_weather")), result("cold", tool_call_id="x")],
    ]
    async with serve(reply("Hi")) as served:
        prompts = [(await asked_of(served, "chat", messages=form)).token_ids for form in (plain, *forms)]
    assert prompts.count(prompts[0]) == len(prompts)


@pytest.mark.parametrize(
    "call", [function("get_weather", id="c"), {"id": "c", "name": "get_weather", "arguments": OSLO}]
)
async def test_messages_takes_calls_and_results_of_chat(serve: Serve, reply: Reply, call: Any) -> None:
    """The calls were dropped in silence, and their results refused."""
    own = past("messages", "cold", arguments={"city": "Oslo"})["messages"]
    of_chat = [USER, calling(call), result("cold", tool_call_id="c")]
    words = [USER, calling(call, content="Let me look."), result("cold", tool_call_id="c")]
    async with serve(reply("Hi")) as served:
        expected = (await asked_of(served, "messages", messages=own)).token_ids
        assert (await asked_of(served, "messages", messages=of_chat)).token_ids == expected
        notes = (await post(served, "messages", messages=of_chat)).json()["toolwire"]["notes"]
        prompt = served.text_of((await asked_of(served, "messages", messages=words)).token_ids)
    assert [(note["kind"], note["param"]) for note in notes] == [("form", "messages[1]")]
    assert "Let me look." in prompt and "Oslo" in prompt and "cold" in prompt
    async with serve(strict=True) as served:
        assert (await post(served, "messages", messages=of_chat)).status_code == 400
