"""Chat requests through the real routes: whole and streamed, admission, faults in mid-stream, disconnects."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.errors import EngineDied, NoMemory, QueueFull, RequestFailed, Starting
from server.messages import Delta, Generate
from tests.api.conftest import CALL, MODEL, WEATHER, Serve, Served, events_of
from tests.backends.scripted import Script

Reply = Callable[..., Script]


def chunks_of(reply: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(event) for event in events_of(reply.text)]


async def test_a_text_reply_has_exactly_openais_fields(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hello 🏔!")) as served:
        whole = (await served.chat()).json()
    ChatCompletion.model_validate(whole, strict=True)
    assert set(whole) == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello 🏔!", "refusal": None, "annotations": []}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert whole["model"] == MODEL and whole["id"].startswith("chatcmpl-")


async def test_a_call_is_returned_whole(serve: Serve, reply: Reply) -> None:
    async with serve(reply(CALL)) as served:
        whole = (await served.chat(tools=[WEATHER])).json()
    ChatCompletion.model_validate(whole, strict=True)
    message = whole["choices"][0]["message"]
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert set(call) == {"id", "type", "function"}
    assert call["id"].startswith("call_") and len(call["id"]) == 29 and call["id"][5:].isalnum()
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert whole["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_stream_of_a_call_holds_one_thing_a_chunk(serve: Serve, reply: Reply) -> None:
    async with serve(reply(f"Let me see.\n{CALL}\n{CALL.replace('Paris', 'Rome')}")) as served:
        answer = await served.chat(tools=[WEATHER], stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = chunks_of(answer)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] > 0
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {} and chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert all(len(delta) == 1 for delta in deltas[1:-1])
    headers = [piece for piece in pieces if "id" in piece]
    assert [set(piece) for piece in headers] == [{"index", "id", "type", "function"}] * 2
    assert [piece["function"] for piece in headers] == [{"name": "get_weather", "arguments": ""}] * 2
    assert [piece["index"] for piece in headers] == [0, 1]
    later = [piece for piece in pieces if "id" not in piece]
    assert all(set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in later)
    assert [piece["index"] for piece in pieces] == sorted(piece["index"] for piece in pieces)


@pytest.mark.parametrize("text", ["Hello!", f"Text.{CALL}", f"{CALL}\n{CALL}", "", "<tool_call>\n{oops"])
@pytest.mark.parametrize("step", [1, 3, 1000])
async def test_the_stream_adds_up_to_the_whole(serve: Serve, reply: Reply, text: str, step: int) -> None:
    async with serve(reply(text, step=step)) as served:
        whole = (await served.chat(tools=[WEATHER], logprobs=False)).json()["choices"][0]
        chunks = chunks_of(await served.chat(tools=[WEATHER], stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    content = "".join(delta.get("content", "") for delta in deltas)
    assert content == (whole["message"]["content"] or "")
    arguments: dict[int, str] = {}
    for delta in deltas:
        for piece in delta.get("tool_calls", []):
            arguments[piece["index"]] = arguments.get(piece["index"], "") + piece["function"]["arguments"]
    wholes = [call["function"]["arguments"] for call in whole["message"].get("tool_calls", [])]
    assert list(arguments.values()) == wholes
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


async def test_role_chunks_of_all_choices_come_first_and_in_order(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hello")) as served:
        chunks = chunks_of(await served.chat(stream=True, n=3))
        assert len(served.backend.asked) == 3 and not served.backend.running
    assert [chunk["choices"][0]["index"] for chunk in chunks[:3]] == [0, 1, 2]
    assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in chunks[:3])
    assert not any("role" in chunk["choices"][0]["delta"] for chunk in chunks[3:])
    assert sorted(c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]) == [0, 1, 2]


async def test_choices_count_the_prompt_once(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hello")) as served:
        one = (await served.chat()).json()["usage"]
        two = (await served.chat(n=2)).json()["usage"]
    assert two["prompt_tokens"] == one["prompt_tokens"]
    assert two["completion_tokens"] == 2 * one["completion_tokens"]


FAULTS = [
    (QueueFull("full", retry_after_s=3), 429, "rate_limit_exceeded"),
    (NoMemory("no memory"), 503, "no_memory"),
    (Starting("weights", 0.5), 503, "model_loading"),
    (RequestFailed("broken"), 500, "request_failed"),
    (EngineDied("gone"), 500, "engine_died"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code"), FAULTS, ids=lambda value: type(value).__name__)
async def test_a_refusal_before_the_first_byte_is_a_status(
    serve: Serve, error: Exception, status: int, code: str, stream: bool
) -> None:
    async with serve([error]) as served:
        answer = await served.chat(stream=stream)
    assert answer.status_code == status
    fault = answer.json()["error"]
    assert set(fault) == {"message", "type", "param", "code"} and fault["code"] == code
    assert answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert answer.headers.get("x-should-retry") != "true"


async def test_one_refused_choice_refuses_all_and_frees_the_others(serve: Serve, reply: Reply) -> None:
    """With n, the 200 of a stream may be chosen only when every choice is in."""
    seen: list[Generate] = []

    def write(request: Generate) -> Script:
        seen.append(request)
        return [QueueFull("full")] if len(seen) == 3 else reply("Hello")

    async with serve(write) as served:
        answer = await served.chat(n=4, stream=True)
        assert answer.status_code == 429
        assert not served.backend.running


async def test_a_fault_in_mid_stream_is_an_event_and_then_done(serve: Serve, reply: Reply) -> None:
    script = [*reply("Hello there", "length")[:2], EngineDied("the engine ended")]
    async with serve(script) as served:
        answer = await served.chat(stream=True)
        assert answer.status_code == 200
        *chunks, last = chunks_of(answer)
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert last == {
            "error": {"message": "the engine ended", "type": "server_error", "param": None, "code": "engine_died"}
        }


async def test_an_unforeseen_fault_is_a_500_in_the_envelope(serve: Serve) -> None:
    def write(_: Generate) -> Script:
        raise ZeroDivisionError

    async with serve(write) as served:
        answer = await served.chat()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-should-retry"] == "false" and answer.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_the_request(serve: Serve, stream: bool) -> None:
    async with serve([Delta(""), 30.0], request_timeout_s=0.05) as served:
        answer = await served.chat(stream=stream)
        assert not served.backend.running
    code = (chunks_of(answer)[-1] if stream else answer.json())["error"]["code"]
    assert code == "request_timeout"
    assert answer.status_code == (200 if stream else 504)


async def test_a_client_may_shorten_its_deadline(serve: Serve) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    async with serve([Delta(""), 30.0]) as served:
        answer = await served.http.post("/v1/chat/completions", json=body, headers={"x-request-timeout": "0.05"})
        assert answer.status_code == 504
        answer = await served.http.post("/v1/chat/completions", json=body, headers={"x-request-timeout": "soon"})
        assert answer.status_code == 400


async def hang_up(served: Served, body: dict[str, Any], after: Callable[[], bool]) -> None:
    """One request by bare ASGI, whose client leaves once `after()` is true."""
    sent = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if sent:
            return sent.pop()
        while not after():  # noqa: ASYNC110 - the double has no event to wait for
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
        "http_version": "1.1",
    }
    await asyncio.wait_for(served.app(scope, receive, send), 5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("when", ["queued", "writing"])
async def test_a_client_that_leaves_ends_its_sequences(serve: Serve, stream: bool, n: int, when: str) -> None:
    """Queued or writing, streamed or not: nothing goes on computing for nobody."""
    script: Script = [30.0, Delta("")] if when == "queued" else [Delta(""), Delta("", [72]), 30.0]
    async with serve(script) as served:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": stream, "n": n}
        await hang_up(served, body, lambda: len(served.backend.running) == n)
        assert not served.backend.running
        assert len(served.backend.aborted) == n


async def test_a_stop_string_frees_its_sequence_at_once(serve: Serve, ids_of: Callable[[str], list[int]]) -> None:
    script = [Delta(""), *(Delta("", [i]) for i in ids_of("one STOP two")), 30.0]
    async with serve(script) as served:
        answer = await asyncio.wait_for(served.chat(stop="STOP"), 5)
        assert answer.json()["choices"][0]["message"]["content"] == "one "
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        assert served.backend.aborted and not served.backend.running


async def test_a_silent_stream_sends_comments(serve: Serve, reply: Reply) -> None:
    script = [Delta(""), 0.35, *reply("Hi")[1:]]
    async with serve(script, ping_interval_s=0.1) as served:
        answer = await served.chat(stream=True)
    assert ": ping\n\n" in answer.text
    assert "\r" not in answer.text


async def test_thoughts_stand_apart(serve: Serve, reply: Reply) -> None:
    async with serve(reply("<think>\nHm.\n</think>\n\nHello")) as served:
        whole = (await served.chat()).json()
        chunks = chunks_of(await served.chat(stream=True))
    assert whole["choices"][0]["message"]["reasoning_content"] == "Hm."
    assert whole["choices"][0]["message"]["content"] == "Hello"
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    thoughts = [c["choices"][0]["delta"].get("reasoning_content", "") for c in chunks]
    assert "".join(thoughts) == "Hm."
    assert all("reasoning" not in c["choices"][0]["delta"] for c in chunks), "both spellings would be read twice"


async def test_a_legacy_function_call(serve: Serve, reply: Reply) -> None:
    async with serve(reply(CALL)) as served:
        whole = (await served.chat(functions=[WEATHER["function"]])).json()["choices"][0]
        chunks = chunks_of(await served.chat(functions=[WEATHER["function"]], stream=True))
    assert whole["finish_reason"] == "function_call"
    assert json.loads(whole["message"]["function_call"]["arguments"]) == {"city": "Paris"}
    assert "tool_calls" not in whole["message"]
    assert chunks[1]["choices"][0]["delta"] == {"function_call": {"name": "get_weather", "arguments": ""}}


async def test_a_repaired_call_is_said_to_be(serve: Serve, reply: Reply) -> None:
    broken = CALL.replace('"arguments"', '"parameters"')
    async with serve(reply(broken)) as served:
        whole = (await served.chat(tools=[WEATHER])).json()
        chunks = chunks_of(await served.chat(tools=[WEATHER], stream=True))
    (note,) = whole["toolwire"]["calls"]
    assert note["flags"] == ["repaired"] and "parameters" in note["raw"]
    assert chunks[-1]["toolwire"] == whole["toolwire"]
    ChatCompletionChunk.model_validate(chunks[-1])


async def test_service_tier_is_echoed_where_it_was_asked_for(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi")) as served:
        assert (await served.chat(service_tier="flex")).json()["service_tier"] == "default"
        assert "service_tier" not in (await served.chat()).json()
