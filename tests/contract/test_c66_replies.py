"""C66-C70: whole replies."""

import json
import time

from tests.contract.requests import HELLO, MODEL, NAMED, NO_ARGUMENTS, TWO_CITIES, WEATHER, ok
from tests.live import Live

KEYS = {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}


def test_c66_a_text_reply(live: Live) -> None:
    reply = ok(live, messages=[HELLO], max_tokens=16)
    assert set(reply) == KEYS
    assert reply["id"].startswith("chatcmpl-") and reply["object"] == "chat.completion"
    assert abs(reply["created"] - time.time()) < 30
    assert reply["model"] == MODEL
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 16
    assert {"cached_tokens"} <= set(usage["prompt_tokens_details"])
    assert {"reasoning_tokens"} <= set(usage["completion_tokens_details"])
    (choice,) = reply["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert choice["logprobs"] is None


def test_c67_a_reply_with_calls_and_one_without(live: Live) -> None:
    reply = ok(live, messages=[TWO_CITIES], tools=[WEATHER], tool_choice="required", max_tokens=400)["choices"][0]
    message = reply["message"]
    assert set(message) <= {"role", "content", "refusal", "annotations", "tool_calls", "reasoning_content"}
    assert message["content"] is None or isinstance(message["content"], str)
    for call in message["tool_calls"]:
        assert set(call) == {"id", "type", "function"} and call["type"] == "function"
        assert call["id"].startswith("call_") and len(call["id"]) == 29 and call["id"][5:].isalnum()
        assert set(call["function"]) == {"name", "arguments"}
        assert isinstance(call["function"]["arguments"], str)
        assert isinstance(json.loads(call["function"]["arguments"]), dict)
    plain = ok(live, messages=[HELLO], max_tokens=8)["choices"][0]["message"]
    assert set(plain) <= {"role", "content", "refusal", "annotations", "reasoning_content"}


def test_c67_ids_are_unique_over_a_conversation(live: Live) -> None:
    ids = set()
    for _ in range(5):
        reply = ok(live, tools=[NO_ARGUMENTS], tool_choice="required", parallel_tool_calls=False, max_tokens=64)
        ids.add(reply["choices"][0]["message"]["tool_calls"][0]["id"])
    assert len(ids) == 5


def test_c68_a_limit_is_told(live: Live) -> None:
    reply = ok(live, messages=[HELLO], max_tokens=5, ignore_eos=True)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 5
    for parallel in (True, False):
        inside = ok(live, tools=[WEATHER], tool_choice=NAMED, max_completion_tokens=12, parallel_tool_calls=parallel)
        assert inside["choices"][0]["finish_reason"] == "length"
        assert inside["usage"]["completion_tokens"] == 12


def test_c69_two_choices(live: Live) -> None:
    one = ok(live, messages=[HELLO], max_tokens=8)
    two = ok(live, messages=[HELLO], max_tokens=8, n=2, temperature=1.5, seed=7)
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert two["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    calls = ok(live, tools=[WEATHER], tool_choice="required", n=3, temperature=1, max_tokens=400)
    ids = [call["id"] for choice in calls["choices"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == len(ids) >= 3


def test_c70_logprobs(live: Live) -> None:
    choice = ok(live, messages=[HELLO], logprobs=True, top_logprobs=3, max_tokens=12, temperature=0)["choices"][0]
    assert set(choice["logprobs"]) == {"content", "refusal"}
    content = choice["logprobs"]["content"]
    assert content
    for token in content:
        assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) <= 3
        assert all(set(top) == {"token", "logprob", "bytes"} for top in token["top_logprobs"])
        assert token["top_logprobs"][0]["bytes"] == token["bytes"], "at temperature 0 the likeliest is drawn"
    written = b"".join(bytes(token["bytes"]) for token in content)
    assert written.decode() == choice["message"]["content"]
    bare = ok(live, messages=[HELLO], logprobs=True, max_tokens=2)["choices"][0]["logprobs"]["content"]
    assert all(token["top_logprobs"] == [] for token in bare)


def test_c70_logprobs_of_calls_are_an_extension(live: Live) -> None:
    reply = ok(live, tools=[WEATHER], tool_choice=NAMED, parallel_tool_calls=False, logprobs=True, max_tokens=200)
    assert reply["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    (note,) = reply["toolwire"]["calls"]
    written = b"".join(bytes(token["bytes"]) for token in note["logprobs"]).decode()
    arguments = reply["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert arguments in written
