"""C71-C84: streams, clause by clause; each has crashed a real client."""

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.contract.requests import (
    CHAT,
    HELLO,
    MODEL,
    NAMED,
    NO_ARGUMENTS,
    TWO_CITIES,
    USER,
    WEATHER,
    calls_of,
    chunks_of,
    deltas_of,
    finish_of,
    function,
    ok,
    post,
    stream,
    text_of,
)
from tests.live import Live

CALLING: dict[str, Any] = {"messages": [TWO_CITIES], "tools": [WEATHER], "tool_choice": "required", "max_tokens": 400}
KINDS: dict[str, dict[str, Any]] = {
    "text": {"messages": [HELLO], "max_tokens": 40},
    "calls": CALLING,
    "one call": {**CALLING, "parallel_tool_calls": False},
    "cut off": {**CALLING, "max_tokens": 28},
    "no arguments": {"tools": [NO_ARGUMENTS], "tool_choice": "required", "parallel_tool_calls": False},
    "noise": {"messages": [HELLO], "tools": [WEATHER], "temperature": 1.8, "seed": 11, "max_tokens": 80},
}


def running(server: Live) -> int:
    return int(httpx.get(f"{server.url}/ready").json()["running"])


def test_c71_framing_and_a_prompt_first_event(live: Live) -> None:
    """A reply that is collected and sent at its end has frames too; `chunks_of` checks each of them."""
    body = {"model": MODEL, "messages": [HELLO], "stream": True, "max_tokens": 400, "ignore_eos": True}
    began_s = time.monotonic()
    with httpx.stream("POST", live.url + CHAT, json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: {")
        first_s = time.monotonic() - began_s
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert first_s < (time.monotonic() - began_s) / 2
    stream(live, messages=[HELLO], max_tokens=4)


@pytest.mark.parametrize("kind", KINDS)
def test_c72_every_chunk_belongs_to_the_same_reply(live: Live, kind: str) -> None:
    chunks = stream(live, **KINDS[kind])
    assert len({(one["id"], one["created"], one["model"], one["object"]) for one in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk" and chunks[0]["model"] == MODEL
    roles = [delta for delta in deltas_of(chunks) if "role" in delta]
    assert roles == [{"role": "assistant", "content": ""}]
    assert deltas_of(chunks)[0] == roles[0]


@pytest.mark.parametrize("kind", ["calls", "one call", "no arguments", "cut off"])
def test_c73_the_shape_of_call_deltas(live: Live, kind: str) -> None:
    pieces = [delta["tool_calls"][0] for delta in deltas_of(stream(live, **KINDS[kind])) if "tool_calls" in delta]
    opened: set[int] = set()
    for piece in pieces:
        if piece["index"] not in opened:
            opened.add(piece["index"])
            assert set(piece) == {"index", "id", "type", "function"} and piece["type"] == "function"
            assert set(piece["function"]) == {"name", "arguments"} and piece["function"]["arguments"] == ""
        else:
            assert set(piece) == {"index", "function"}
            assert set(piece["function"]) == {"arguments"} and piece["function"]["arguments"]
    assert opened


@pytest.mark.parametrize("kind", KINDS)
def test_c74_one_thing_a_chunk_calls_in_order(live: Live, kind: str) -> None:
    indices: list[int] = []
    for delta in deltas_of(stream(live, **KINDS[kind])):
        assert "role" in delta or len(delta) <= 1
        if "tool_calls" in delta:
            assert len(delta["tool_calls"]) == 1 and not delta.get("content")
            indices.append(delta["tool_calls"][0]["index"])
    assert indices == sorted(indices)
    assert sorted(set(indices)) == list(range(len(set(indices))))


@pytest.mark.parametrize("kind", KINDS)
def test_c75_the_stream_is_the_whole_reply_in_pieces(live: Live, kind: str) -> None:
    fields = {"temperature": 0, **KINDS[kind]}
    ok(live, **fields)  # from now on the prompt is cached for both
    chunks = stream(live, **fields)
    whole = ok(live, **fields)["choices"][0]
    last = chunks[-1]["choices"][0]
    assert last["delta"] == {} and last["finish_reason"] == finish_of(chunks) == whole["finish_reason"]
    assert text_of(chunks) == (whole["message"]["content"] or "")
    calls = [call["function"] for call in whole["message"].get("tool_calls", [])]
    assert calls_of(chunks) == [(call["name"], call["arguments"]) for call in calls]


def test_c76_usage_last_and_only_where_it_was_asked_for(live: Live) -> None:
    chunks = stream(live, stream_options={"include_usage": True}, **CALLING)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    whole = ok(live, **CALLING)["usage"]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["completion_tokens"]
    assert chunks[-1]["usage"]["prompt_tokens"] == whole["prompt_tokens"]
    assert not any("usage" in chunk for chunk in stream(live, messages=[HELLO], max_tokens=4))


def test_c77_a_call_without_arguments(live: Live) -> None:
    assert calls_of(stream(live, **KINDS["no arguments"])) == [("get_time", "{}")]


def test_c78_arguments_come_as_they_are_written(live: Live) -> None:
    write = function("write", "Write a text", text={"type": "string", "minLength": 150, "maxLength": 200})
    choice = {"type": "function", "function": {"name": "write"}}
    arrivals: list[float] = []
    body = {
        "model": MODEL,
        "messages": [USER],
        "tools": [write],
        "tool_choice": choice,
        "max_tokens": 400,
        "stream": True,
    }
    began_s = time.monotonic()
    with httpx.stream("POST", live.url + CHAT, json=body, timeout=120) as response:
        for line in response.iter_lines():
            if '"arguments"' in line:
                arrivals.append(time.monotonic() - began_s)
    assert len(arrivals) >= 10
    assert arrivals[0] < 0.7 * arrivals[-1], "all at once is no stream"


def check_error_event(lines: list[str]) -> None:
    """The stream ends with an error object, and `[DONE]`."""
    events = [line for line in lines if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "server_error"


def test_c79_a_fault_in_mid_stream(live: Live) -> None:
    """The deadline passes: the stream ends with an error event, and the next request is served."""
    body = {"model": MODEL, "messages": [HELLO], "stream": True, "max_tokens": 6000, "ignore_eos": True}
    with httpx.stream("POST", live.url + CHAT, json=body, headers={"x-request-timeout": "1"}, timeout=60) as response:
        assert response.status_code == 200
        lines = list(response.iter_lines())
    check_error_event(lines)
    assert post(live, messages=[HELLO], max_tokens=1).status_code == 200


@pytest.mark.long  # tests/test_faults.py kills the engine of streams that go on
@pytest.mark.timeout(300)
def test_c79_an_engine_that_is_killed_again_and_again_ends_the_stream(small: Live) -> None:
    body = {"model": MODEL, "messages": [HELLO], "stream": True, "max_tokens": 6000, "ignore_eos": True}
    lines: list[str] = []
    over = threading.Event()

    def kill_every_engine() -> None:
        while not over.wait(0.02):
            for child in psutil.Process(small.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "server.engine" in child.cmdline():
                        child.kill()

    killer = threading.Thread(target=kill_every_engine)
    with httpx.stream("POST", small.url + CHAT, json=body, timeout=60) as response:
        for line in response.iter_lines():
            lines.append(line)
            if len(lines) == 9:
                killer.start()
    over.set()
    killer.join()
    check_error_event(lines)
    deadline_s = time.monotonic() + 200
    while (again := post(small, messages=[HELLO], max_tokens=1)).status_code != 200:
        assert again.status_code in (500, 503) and time.monotonic() < deadline_s
        time.sleep(0.2)


@pytest.mark.parametrize("streamed", [True, False])
def test_c80_a_client_that_leaves_frees_its_place(live: Live, streamed: bool) -> None:
    body = {"model": MODEL, "messages": [HELLO], "stream": streamed, "max_tokens": 6000, "ignore_eos": True}
    before = running(live)
    if streamed:
        with httpx.stream("POST", live.url + CHAT, json=body, timeout=60) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(live.url + CHAT, json=body, timeout=1)
    deadline_s = time.monotonic() + 5  # two seconds, and the heartbeat that reports it
    while running(live) > before:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_c81_sixteen_streams_at_once_do_not_mix(live: Live) -> None:
    """Each must write its own number, and no other's."""

    def ask(number: int) -> tuple[str, set[str]]:
        mark = f"mark{number:03d}"
        tool = function("note", "Take a note", text={"const": mark})
        chunks = stream(live, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
        assert [json.loads(arguments) for _, arguments in calls_of(chunks)] == [{"text": mark}]
        ids = {piece["id"] for delta in deltas_of(chunks) for piece in delta.get("tool_calls", []) if "id" in piece}
        return chunks[0]["id"], ids

    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(ask, range(16)))
    assert len({reply for reply, _ in replies}) == 16
    assert len(set().union(*(ids for _, ids in replies))) == 16


def test_c82_characters_are_never_cut(live: Live) -> None:
    text = "👩‍👩‍👧 東京は晴れ 🇩🇪 Größe 🏔"
    tool = function("note", "Take a note", text={"const": text})
    chunks = stream(live, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=400)
    ((_, arguments),) = calls_of(chunks)
    assert json.loads(arguments) == {"text": text}
    assert not any("\ufffd" in json.dumps(chunk, ensure_ascii=False) for chunk in chunks)
    assert text in arguments, "written as it is, not escaped"


def test_c83_a_stop_string_never_leaks(live: Live) -> None:
    whole = ok(live, messages=[HELLO], temperature=0, max_tokens=40)["choices"][0]["message"]["content"]
    assert len(whole) >= 6
    for start in range(1, min(len(whole) - 3, 12)):
        stop = whole[start : start + 3]
        expected = whole[: whole.index(stop)]
        fields: dict[str, Any] = {
            "messages": [HELLO],
            "temperature": 0,
            "max_tokens": 40,
            "stop": [stop, "never written"],
        }
        chunks = stream(live, **fields)
        assert (text_of(chunks), finish_of(chunks)) == (expected, "stop")
        assert ok(live, **fields)["choices"][0]["message"]["content"] == expected


def test_c84_roles_of_all_choices_first(live: Live) -> None:
    chunks = stream(live, messages=[HELLO], n=2, temperature=1, max_tokens=8)
    assert [chunk["choices"][0]["index"] for chunk in chunks[:2]] == [0, 1]
    assert all(chunk["choices"][0]["delta"] == {"role": "assistant", "content": ""} for chunk in chunks[:2])
    assert not any("role" in chunk["choices"][0]["delta"] for chunk in chunks[2:])
    assert {finish_of(chunks, choice) for choice in (0, 1)} <= {"stop", "length"}


async def test_a_hundred_streams_at_once_are_all_written_to_their_end(live: Live) -> None:
    body = {"model": MODEL, "messages": [HELLO], "stream": True, "max_tokens": 2, "temperature": 0}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=live.url, timeout=120, limits=limits) as http:

        async def one() -> int:
            return len(chunks_of(await http.post(CHAT, json=body)))

        counts = await asyncio.gather(*(one() for _ in range(100)))
        assert min(counts) >= 2
        assert (await http.get("/health")).status_code == 200


def test_named_choice_streams_the_same_name(live: Live) -> None:
    chunks = stream(live, tools=[WEATHER], tool_choice=NAMED, max_tokens=200, parallel_tool_calls=False)
    assert [name for name, _ in calls_of(chunks)] == ["get_weather"]
    assert finish_of(chunks) == "tool_calls"
