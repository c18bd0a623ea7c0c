"""C26-C42: the forms of messages, and their order."""

from typing import Any

import pytest

from tests.contract.requests import HELLO, MODEL, NO_ARGUMENTS, TWO_CITIES, USER, WEATHER, fault, ok, post, refused
from tests.live import Live


def call(
    call_id: str, name: str = "get_weather", arguments: Any = '{"city": "Paris", "unit": "celsius"}'
) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*ids: str, **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call(one) for one in ids], **others}


def result(call_id: str, content: Any = "21 degrees, sunny") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def prompt_tokens(server: Live, messages: list[dict[str, Any]], **more: Any) -> int:
    response = post(server, {"model": MODEL, "messages": messages, **more}, path="/v1/chat/completions/input_tokens")
    assert response.status_code == 200, response.text
    return int(response.json()["input_tokens"])


def content(server: Live, messages: list[dict[str, Any]]) -> str | None:
    """Sent twice: the second time the prompt is cached for certain, and sums are rounded alike."""
    for _ in range(2):
        reply = ok(server, messages=messages, temperature=0, max_tokens=24)
    text: str | None = reply["choices"][0]["message"]["content"]
    return text


def test_c26_a_bogus_role(live: Live) -> None:
    message = refused(live, "messages[0].role", "invalid_value", messages=[{"role": "bogus", "content": "x"}])
    assert "'system', 'assistant', 'user', 'function', 'tool', and 'developer'" in message


def test_c27_a_developer_is_a_system(live: Live) -> None:
    texts = [content(live, [{"role": role, "content": "Be kind."}, HELLO]) for role in ("developer", "system")]
    assert texts[0] == texts[1]
    counts = [prompt_tokens(live, [{"role": role, "content": "Be kind."}, HELLO]) for role in ("developer", "system")]
    assert counts[0] == counts[1] > prompt_tokens(live, [HELLO])


def test_c28_a_system_message_in_mid_conversation(live: Live) -> None:
    messages = [HELLO, {"role": "assistant", "content": "Hi."}, {"role": "system", "content": "Be brief."}, HELLO]
    ok(live, messages=messages, max_tokens=8)
    assert prompt_tokens(live, messages) > prompt_tokens(live, [messages[0], messages[1], messages[3]])


def test_c29_text_parts_are_the_text(live: Live) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!", "cache_control": {"type": "ephemeral"}}]
    for sent in ([{"type": "text", "text": "Hello!"}], parts):
        messages = [{"role": "user", "content": sent}]
        assert content(live, messages) == content(live, [HELLO])
        assert prompt_tokens(live, messages) == prompt_tokens(live, [HELLO])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}},
    ],
    ids=lambda part: part["type"],
)
def test_c30_a_modality_that_the_model_cannot_read(live: Live, part: dict[str, Any]) -> None:
    error = fault(post(live, messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]))
    assert error["param"] == "messages[0].content[1]"


def test_c31_content_as_a_number(live: Live) -> None:
    message = refused(live, "messages[0].content", "invalid_type", messages=[{"role": "user", "content": 7}])
    assert "expected one of a string or array of objects, but got an integer instead." in message


def test_c32_null_content_with_calls(live: Live) -> None:
    ok(live, messages=[USER, calling("a"), result("a")], tools=[WEATHER], max_tokens=8)


def test_c33_no_content_with_calls(live: Live) -> None:
    message = calling("a")
    del message["content"]
    ok(live, messages=[USER, message, result("a")], tools=[WEATHER], max_tokens=8)
    empty = calling("a", content="")
    assert prompt_tokens(live, [USER, message, result("a")]) == prompt_tokens(live, [USER, empty, result("a")])


def test_c34_a_result_without_a_call(live: Live) -> None:
    error = fault(post(live, messages=[result("a")]))
    assert error["param"] == "messages.[0].role" and error["code"] is None
    assert "must be a response to a preceeding message with 'tool_calls'" in error["message"]


def test_c35_a_result_without_the_calls_id(live: Live) -> None:
    nameless = {"role": "tool", "content": "x"}
    error = fault(post(live, messages=[USER, calling("a"), nameless]))
    assert "tool_call_id" in error["message"] and error["code"] is None
    ok(live, messages=[USER, calling("a"), {**nameless, "id": "a"}], tools=[WEATHER], max_tokens=4)


def test_c36_a_result_of_another_call(live: Live) -> None:
    error = fault(post(live, messages=[USER, calling("a"), result("b")]))
    assert "'tool_call_id' of 'b' not found in 'tool_calls' of previous message" in error["message"]


def test_c37_a_call_without_a_result(live: Live) -> None:
    error = fault(post(live, messages=[TWO_CITIES, calling("a", "b"), result("a")]))
    assert error["message"].endswith("did not have response messages: b") and error["code"] is None


def test_c38_results_in_any_order(live: Live) -> None:
    one = [TWO_CITIES, calling("a", "b"), result("a", "first"), result("b", "second")]
    other = [one[0], one[1], one[3], one[2]]
    assert content(live, one) == content(live, other)
    assert prompt_tokens(live, one) == prompt_tokens(live, other)


def test_c39_a_user_between_call_and_result(live: Live) -> None:
    fault(post(live, messages=[USER, calling("a"), HELLO, result("a")]))


@pytest.mark.parametrize(
    "arguments",
    ["not json", "", "{", '"{\\"city\\": \\"Paris\\"}"', {"city": "Paris"}, None, "[1]", '{"a": 1}}'],
    ids=repr,
)
def test_c40_any_arguments_in_the_history(live: Live, arguments: Any) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [call("a", arguments=arguments)]}
    ok(live, messages=[USER, message, result("a")], tools=[WEATHER], max_tokens=4)


def test_c40_broken_arguments_reach_the_model_as_they_were(live: Live) -> None:
    """Not `{}`: the model must see its own mistake."""

    def count(arguments: str) -> int:
        message = {"role": "assistant", "content": None, "tool_calls": [call("a", arguments=arguments)]}
        return prompt_tokens(live, [USER, message, result("a")], tools=[WEATHER])

    assert count("not json at all, by no means") > count("{}")


def test_c41_a_result_in_parts(live: Live) -> None:
    parts = [{"type": "text", "text": "21 degrees, sunny"}]
    whole = [USER, calling("a"), result("a")]
    in_parts = [USER, calling("a"), result("a", parts)]
    assert prompt_tokens(live, in_parts) == prompt_tokens(live, whole)
    assert content(live, in_parts) == content(live, whole)
    ok(live, messages=in_parts, tools=[WEATHER], max_tokens=4)


@pytest.mark.parametrize("forced", [False, True])
def test_c42_our_own_reply_comes_back_verbatim(live: Live, forced: bool) -> None:
    more: dict[str, Any] = {"tools": [WEATHER, NO_ARGUMENTS]}
    reply = ok(live, max_tokens=64, tool_choice="required" if forced else "none", **more)["choices"][0]["message"]
    assert "refusal" in reply and "annotations" in reply
    results = [result(one["id"]) for one in reply.get("tool_calls", [])]
    again = {**reply, "reasoning_content": "Hm.", "audio": None, "function_call": None, "parsed": None}
    ok(live, messages=[USER, again, *results, HELLO], max_tokens=8, **more)
