"""Replies of Messages: the SDK's types are the letter, a stream folded is the whole."""

import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from server.errors import EngineDied
from server.messages import Delta
from tests.api.conftest import CALL, MODEL, WEATHER, Serve, Served
from tests.api.messages.sdk import EVENT, folded, stream_events, validated, whole, without_ids
from tests.backends.scripted import Script

TOOL = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
THOUGHT = "<think>\nLook it up.\n</think>\n\n"


async def send(served: Served, **fields: Any) -> httpx.Response:
    """A request; what is not given is one user message."""
    body = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return await served.http.post("/v1/messages?beta=true", json=body, headers={"anthropic-version": "2023-06-01"})


def random_reply(rng: random.Random) -> str:
    """Model text: perhaps a thought, texts and calls in any order, perhaps cut off anywhere."""
    parts = [THOUGHT] * rng.choice((0, 1))
    parts += [rng.choice(("Héllo ", "wörld END ", "\n\n", CALL, "\n" + CALL, "🌊")) for _ in range(rng.randrange(5))]
    text = "".join(parts)
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.3 else text


async def test_every_event_and_body_fits_the_sdk_and_the_stream_folded_is_the_whole(
    serve: Serve, reply: Callable[..., Script], is_long: bool
) -> None:
    rng = random.Random(7)
    for _ in range(400 if is_long else 40):
        text, finish = random_reply(rng), rng.choice(("stop", "length"))
        options: dict[str, Any] = {"tools": [TOOL], "stop_sequences": rng.choice(([], ["END"]))}
        options["thinking"] = rng.choice(({"type": "adaptive"}, {"type": "enabled", "display": "omitted"}))
        async with serve(reply(text, finish, rng.randrange(1, 9))) as served:
            body = whole((await send(served, **options)).json())
            events = stream_events((await send(served, stream=True, **options)).text)
        assert without_ids(folded(events)) == without_ids(body), (text, finish)
        assert events[-2].get("toolwire") == body.get("toolwire")
        kinds = [event["type"] for event in events]
        assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
        blocks = [event["index"] for event in events if event["type"] == "content_block_start"]
        assert blocks == list(range(len(body["content"])))


async def test_a_thought_text_and_a_call_are_blocks_in_this_order(serve: Serve, reply: Callable[..., Script]) -> None:
    async with serve(reply(f"{THOUGHT}I see.\n{CALL}")) as served:
        body = (await send(served, tools=[TOOL])).json()
    thought, text, call = body["content"]
    assert (thought["type"], thought["thinking"].strip()) == ("thinking", "Look it up.") and thought["signature"]
    assert (text["type"], text["text"]) == ("text", "I see.")
    assert (call["name"], call["input"], call["id"][:6]) == ("get_weather", {"city": "Paris"}, "toolu_")
    assert (body["stop_reason"], body["role"], body["id"][:4]) == ("tool_use", "assistant", "msg_")


@pytest.mark.parametrize(
    ("text", "finish", "fields", "reason"),
    [
        ("Hello", "stop", {}, "end_turn"),
        ("Hello", "length", {}, "max_tokens"),
        ("Hello", "length", {"max_tokens": 10**6}, "model_context_window_exceeded"),
        ("Hello END", "stop", {"stop_sequences": ["END"]}, "stop_sequence"),
        (CALL, "stop", {"tools": [TOOL]}, "tool_use"),
    ],
)
async def test_every_stop_reason(
    serve: Serve, reply: Callable[..., Script], text: str, finish: str, fields: dict[str, Any], reason: str
) -> None:
    async with serve(reply(text, finish)) as served:
        body = (await send(served, **fields)).json()
    assert body["stop_reason"] == reason
    assert body["stop_sequence"] == ("END" if reason == "stop_sequence" else None)


async def test_usage_counts_cached_tokens_apart(serve: Serve, reply: Callable[..., Script]) -> None:
    async with serve([Delta("", cached=7), *reply("Hello")[1:]]) as served:
        usage = (await send(served)).json()["usage"]
        start = validated(EVENT, stream_events((await send(served, stream=True)).text)[0])
        prompt = len(served.backend.asked[0].token_ids)
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (prompt - 7, 7)
    assert start.message.usage.cache_read_input_tokens == 7 and start.message.usage.input_tokens == prompt - 7


async def test_an_error_in_the_middle_is_the_last_event(serve: Serve, reply: Callable[..., Script]) -> None:
    async with serve([*reply("Hello there", "length")[:2], EngineDied("gone")]) as served:
        response = await send(served, stream=True)
    *_, last = stream_events(response.text)
    assert last["type"] == "error" and last["error"]["type"] == "api_error"
    assert last["request_id"] == response.headers["request-id"]
