"""The rules between messages: results answer the calls right before them."""

from typing import Any

import pytest

from server.api.chat.schemas import read_request
from server.api.chat.to_request import RequestMapper
from server.api.errors import RequestRefused
from server.api.sampling import SamplingMapper
from server.chat_request import AssistantMessage, PastCall, ToolMessage
from server.checkpoint.checkpoint import SamplingDefaults
from tests.typed_messages import typed

USER = {"role": "user", "content": "Hi"}


def calling(*ids: str, **others: Any) -> dict[str, Any]:
    calls = [{"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for call_id in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls, **others}


def result(call_id: str | None, content: str = "ok", **others: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **others}


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([result("a")], "messages.[0].role", "must be a response to a preceeding message with 'tool_calls'."),
        ([USER, result("a")], "messages.[1].role", "must be a response to a preceeding message"),
        ([USER, calling("a"), USER, result("a")], "messages.[1].role", "did not have response messages: a"),
        ([USER, calling("a", "b"), result("a")], "messages.[1].role", "did not have response messages: b"),
        ([USER, calling("a"), result("b")], "messages.[2].tool_call_id", "'tool_call_id' of 'b' not found"),
        ([USER, calling("a"), result(None)], "messages.[2].tool_call_id", "Missing parameter 'tool_call_id'"),
        ([USER, calling("a")], "messages.[1].role", "did not have response messages: a"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages.[0].role", "must be a response"),
    ],
)
def test_a_result_without_its_call_or_a_call_without_its_result_is_refused(
    messages: list[dict[str, Any]], param: str, words: str
) -> None:
    with pytest.raises(RequestRefused) as refused:
        typed(messages)
    assert refused.value.error.param == param
    assert refused.value.error.code is None
    assert words in refused.value.error.message


def test_results_stand_in_the_order_of_their_calls() -> None:
    """Open models' templates write no ids: out of order, a result would be read as another call's."""
    out = typed([USER, calling("a", "b"), result("b", "second"), result("a", "first"), USER])
    assert out[2:4] == (ToolMessage("first", "a"), ToolMessage("second", "b"))


def test_the_same_id_in_two_turns_belongs_to_the_nearest() -> None:
    out = typed([USER, calling("1"), result("1", "x"), calling("1"), result("1", "y")])
    assert [message.text for message in out if isinstance(message, ToolMessage)] == ["x", "y"]


def test_an_id_is_read_where_the_tool_call_id_is_missing() -> None:
    out = typed([USER, calling("a"), {"role": "tool", "id": "a", "content": "x"}])
    assert out[2] == ToolMessage("x", "a")


def test_null_and_empty_are_left_out() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "x",
        "tool_calls": [],
        "function_call": None,
        "refusal": None,
    }
    assert typed([USER, message, USER])[1] == AssistantMessage("x")
    assert typed([USER, calling("a"), result("a")])[1] == AssistantMessage("", None, (PastCall("a", "f", "{}"),))


def test_legacy_calls_take_todays_form() -> None:
    call = {"name": "f", "arguments": '{"a": 1}'}
    out = typed(
        [
            USER,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "f", "content": "x"},
        ]
    )
    assert out[1] == AssistantMessage("", None, (PastCall("call_1", "f", '{"a": 1}'),))
    assert out[2] == ToolMessage("x", "call_1", "f")


def repair(messages: list[dict[str, Any]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Kind and text of each message, and the places that notes name."""
    body = {"model": "m", "messages": messages}
    mapper = RequestMapper(SamplingMapper(SamplingDefaults(), 10), repair_history=True)
    request = mapper.to_request(*read_request(body, strict=False))
    assert all(note.kind == "history" for note in request.notes)
    kinds = [(type(message).__name__, message.text) for message in request.messages]
    return kinds, [note.param for note in request.notes]


HI, CALLING = ("UserMessage", "Hi"), ("AssistantMessage", "")


def test_repair_says_that_a_result_is_missing() -> None:
    """An agent that was interrupted between a call and its result could never go on."""
    missing = ("ToolMessage", "(The result of this call is missing from the conversation.)")
    assert repair([USER, calling("a"), USER]) == ([HI, CALLING, missing, HI], ["messages[1]"])
    assert repair([USER, calling("a", "b"), result("b")]) == (
        [HI, CALLING, missing, ("ToolMessage", "ok")], ["messages[1]"]
    )  # fmt: skip


def test_repair_shows_a_result_without_its_call_as_text() -> None:
    """Compaction cuts the oldest messages, and may leave a result without its call."""
    orphan = ("UserMessage", "(Result of a call that is missing from the conversation.)\nok")
    assert repair([result("a"), USER]) == ([orphan, HI], ["messages[0]"])
    assert repair([USER, calling("a"), result("a"), result("z")]) == (
        [HI, CALLING, ("ToolMessage", "ok"), orphan], ["messages[3]"]
    )  # fmt: skip


def test_repair_puts_a_late_result_behind_its_call() -> None:
    assert repair([USER, calling("a"), USER, result("a")]) == (
        [HI, CALLING, ("ToolMessage", "ok"), HI], ["messages[3]"]
    )  # fmt: skip


def test_repair_gives_a_result_without_an_id_to_the_first_call_that_lacks_one() -> None:
    kinds, places = repair([USER, calling("a", "b"), result(None, "first"), result(None, "second")])
    assert kinds[2:] == [("ToolMessage", "first"), ("ToolMessage", "second")] and places == []


def test_repair_leaves_a_history_in_order_alone() -> None:
    messages = [USER, calling("a", "b"), result("b"), result("a"), calling("c"), result("c"), USER]
    assert repair(messages)[1] == []
