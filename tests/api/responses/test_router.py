"""Responses through the real routes: whole and streamed, every event and body as openai's types have them."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from server.errors import EngineDied, QueueFull
from server.messages import Delta, Generate, TokenLogprob
from tests.api.conftest import CALL, MODEL, WEATHER, Serve, Served
from tests.api.responses.strict_types import ENDS, check_event, check_response, fold_deltas, without
from tests.backends.scripted import Script
from tests.dialects.schema.test_client_grammars import ADD
from tests.dialects.schema.test_client_grammars import PATCH as PATCH_LARK

Reply = Callable[..., Script]
TOOL = {"type": "function", **WEATHER["function"]}
PATCH = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "regex", "definition": "[a-z ]+"}}
PATCH_CALL = '<tool_call>\n{"name": "patch", "arguments": {"input": "some words"}}\n</tool_call>'


async def create(served: Served, **fields: Any) -> httpx.Response:
    return await served.http.post("/v1/responses", json={"model": MODEL, "input": "Hi", **fields})


def events_of(reply: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each checked, their numbers without a gap, the last one an end."""
    events = checked_events(reply)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] in ENDS and all(event["type"] not in ENDS for event in events[:-1])
    return events


def checked_events(reply: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each checked; there may be none."""
    assert reply.status_code == 200 and reply.headers["content-type"] == "text/event-stream; charset=utf-8", reply.text
    events: list[dict[str, Any]] = []
    if not reply.text:
        return events
    assert reply.text.endswith("\n\n") and "[DONE]" not in reply.text
    for frame in reply.text.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        check_event(event)
        events.append(event)
    return events


async def test_text_whole(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hello 🏔!")) as served:
        answer = await create(served, instructions="Be brief.", metadata={"a": "b"})
    whole = answer.json()
    check_response(whole)
    (message,) = whole["output"]
    assert message["content"] == [{"type": "output_text", "text": "Hello 🏔!", "annotations": [], "logprobs": []}]
    assert whole["status"] == message["status"] == "completed" and whole["id"].startswith("resp_")
    assert whole["usage"]["total_tokens"] == whole["usage"]["input_tokens"] + whole["usage"]["output_tokens"]
    assert whole["instructions"] == "Be brief." and whole["metadata"] == {"a": "b"} and whole["model"] == MODEL


async def test_the_order_of_events(serve: Serve, reply: Reply) -> None:
    text = f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}\n{PATCH_CALL}"
    async with serve(reply(text, step=1000)) as served:
        events = events_of(await create(served, stream=True, tools=[TOOL, PATCH], reasoning={"summary": "auto"}))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_summary_part.added", "reasoning_text.delta",
        "reasoning_summary_text.delta", "reasoning_text.done", "content_part.done", "reasoning_summary_text.done",
        "reasoning_summary_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "custom_tool_call"]
    assert items[3]["input"] == "some words" and json.loads(items[2]["arguments"]) == {"city": "Paris"}


PIECES = ("Hello!", "", CALL, PATCH_CALL, "<tool_call>\n{oops", " and\n", '<tool_call>\n{"name": "get_weather"')


@pytest.mark.parametrize("seed", range(12))
async def test_a_random_stream_adds_up_to_the_whole(serve: Serve, reply: Reply, seed: int) -> None:
    chance = random.Random(seed)
    text = chance.choice(["", "<think>\nfirst this\n</think>\n\n"]) + "".join(chance.choices(PIECES, k=4))
    script = reply(text, finish=chance.choice(["stop", "length"]), step=chance.choice([1, 3, 1000]))
    fields = {
        "tools": [TOOL, PATCH],
        "reasoning": chance.choice([{}, {"summary": "detailed"}]),
        "include": chance.choice([[], ["reasoning.encrypted_content"]]),
    }
    async with serve(script) as served:
        whole = (await create(served, **fields)).json()
        events = events_of(await create(served, stream=True, **fields))
        assert not served.backend.running
    check_response(whole)
    last = events[-1]["response"]
    unlike = ("id", "call_id", "status", "encrypted_content")
    assert (
        without(fold_deltas(events), *unlike) == without(last["output"], *unlike) == without(whole["output"], *unlike)
    )
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    same = ("status", "incomplete_details", "usage", "toolwire")
    assert [last.get(key) for key in same] == [whole.get(key) for key in same]


async def test_a_silent_stream_repeats_that_it_is_in_progress(
    serve: Serve, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codex ends a stream that brings no event for five minutes, and comments are none: long prompts never ended."""
    monkeypatch.setattr("server.api.responses.plan.SILENCE_S", 0.02)
    admitted, *rest = reply("Hello", "length")
    async with serve([admitted, 0.2, *rest]) as served:
        events = events_of(await create(served, stream=True))
        assert not served.backend.running
    kinds = [event["type"] for event in events]
    first_item = kinds.index("response.output_item.added")
    assert first_item > 2 and set(kinds[1:first_item]) == {"response.in_progress"}
    assert "response.in_progress" not in kinds[first_item:]
    assert fold_deltas(events) and events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"


async def test_a_client_that_leaves_in_the_silence_ends_its_reply(
    serve: Serve, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.responses.plan.SILENCE_S", 0.02)
    admitted, *rest = reply("Hello")
    started = asyncio.Event()

    def pieces(_: Generate) -> Iterator[Any]:
        yield admitted
        started.set()
        yield from (600.0, *rest)

    async with serve(pieces) as served:
        leaving = asyncio.create_task(create(served, stream=True))
        await started.wait()
        await asyncio.sleep(0.05)
        assert served.backend.running
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert not served.backend.running


async def test_a_limit_makes_it_incomplete(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hello there", "length")) as served:
        whole = (await create(served, max_output_tokens=2)).json()
        last = events_of(await create(served, stream=True))[-1]
    check_response(whole)
    assert whole["status"] == whole["output"][0]["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"} and last["type"] == "response.incomplete"


async def test_a_fault_in_mid_stream_is_the_last_event(serve: Serve, reply: Reply) -> None:
    async with serve([*reply("Hello there", "length")[:2], EngineDied("the engine ended")]) as served:
        last = events_of(await create(served, stream=True))[-1]
        assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
        assert last["response"]["error"] == {"code": "server_error", "message": "the engine ended"}
        assert (await create(served)).json()["error"]["code"] == "engine_died"


async def test_busy_in_mid_stream_says_when_to_try_again(serve: Serve, reply: Reply) -> None:
    """Codex reads the seconds from the message."""
    async with serve([*reply("Hello", "length")[:1], QueueFull("full", retry_after_s=3)]) as served:
        error = events_of(await create(served, stream=True))[-1]["response"]["error"]
    assert error["code"] == "rate_limit_exceeded" and "try again in 3s" in error["message"]


async def test_an_unforeseen_fault_is_an_event(serve: Serve, reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.responses.to_reply.ResponseWriter.close", lambda *_: 1 / 0)
    async with serve(reply("Hello")) as served:
        answer = await create(served, stream=True)
    *_, last = (json.loads(frame.split("data: ")[1]) for frame in answer.text.split("\n\n")[:-1])
    check_event(last)
    assert last["type"] == "error" and last["code"] == "internal_error" and last["sequence_number"] > 2


async def test_a_prompt_too_long_fails_the_stream(serve: Serve, reply: Reply) -> None:
    """Clients compact their conversation on it; a status would end their turn."""
    async with serve(reply("Hello")) as served:
        long = "word " * 40_000
        last = events_of(await create(served, stream=True, input=long))[-1]
        assert last["response"]["error"]["code"] == "context_length_exceeded"
        whole = await create(served, input=long)
        assert whole.status_code == 400 and whole.json()["error"]["code"] == "context_length_exceeded"


async def test_namespaces_come_back_in_calls(serve: Serve, reply: Reply) -> None:
    call = CALL.replace("get_weather", "mcp__sky__get_weather")
    space = {"type": "namespace", "name": "mcp__sky", "description": "Sky", "tools": [TOOL]}
    async with serve(reply(call)) as served:
        whole = (await create(served, tools=[space, {"type": "web_search"}])).json()
        check_response(whole)
        (item,) = whole["output"]
        assert (item["namespace"], item["name"]) == ("mcp__sky", "get_weather")
        assert [note["param"] for note in whole["toolwire"]["notes"]] == ["tools[1]"]
        assert [tool["type"] for tool in whole["tools"]] == ["namespace"]
        choice = {"type": "function", "name": "get_weather", "namespace": "mcp__sky"}
        assert (await create(served, tools=[space], tool_choice=choice)).status_code == 200
        past = [{**item, "status": None}, {"type": "function_call_output", "call_id": item["call_id"], "output": "21"}]
        await create(served, tools=[space], input=past)
        prompt = served.backend.asked[-1].token_ids
        assert "mcp__sky__get_weather" in served.text_of(prompt)


CHOICES: list[tuple[Any, str | None]] = [
    ("none", None), ("auto", None), ("required", None),
    ({"type": "function", "name": "get_weather"}, None),
    ({"type": "custom", "name": "patch"}, None),
    ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}, None),
    ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "patch"}]}, None),
    ({"type": "web_search_preview"}, "tool_choice"), ({"type": "mcp", "server_label": "x"}, "tool_choice"),
    ({"type": "function", "name": "other"}, "tool_choice"), ({"type": "custom", "name": "get_weather"}, "tool_choice"),
    ("always", "tool_choice"), ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.tools"),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "fault"), CHOICES, ids=str)
async def test_tool_choices(serve: Serve, reply: Reply, choice: Any, fault: str | None) -> None:
    async with serve(reply("Hello")) as served:
        answer = await create(served, tools=[TOOL, PATCH, {"type": "mcp", "server_label": "x"}], tool_choice=choice)
    if fault is None:
        check_response(answer.json())
        assert answer.json()["tool_choice"] == choice
    else:
        assert answer.status_code == 400 and answer.json()["error"]["param"] == fault


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": 3}, "input"), ({"input": [3]}, "input[0]"), ({"input": [{"content": "x"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input"),
    ({"input": [{"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"}]}, "input"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0]"),
    ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}]}, "input[0].encrypted_content"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input"),
    ({"input": None}, "input"), ({"prompt": {"id": "pmpt_1"}}, "prompt"), ({"temperature": 3}, "temperature"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"), ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"), ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"store": False, "background": True}, "background"), ({"metadata": 7}, "metadata"),
    ({"metadata": ["a"]}, "metadata"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD, ids=str)
async def test_a_fault_names_its_place(serve: Serve, fields: dict[str, Any], param: str) -> None:
    async with serve() as served:
        answer = await create(served, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and error["type"] == "invalid_request_error", error


async def test_the_schemas_of_all_tools_are_bounded_before_any_is_checked(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was checked and compiled before their sum was counted, those of namespaces too."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a schema was checked")

    monkeypatch.setattr("server.api.responses.tools.check_parameters", refuse)
    properties = {f"p{number}": {"type": "string"} for number in range(2600)}
    tools = [{**TOOL, "name": f"f{i}", "parameters": {"type": "object", "properties": properties}} for i in range(4)]
    space = {"type": "namespace", "name": "n", "tools": tools[2:]}
    async with serve() as served:
        for offered, param in ((tools, "tools[3].parameters"), ([*tools[:2], space], "tools[2].tools[1].parameters")):
            answer = await create(served, tools=offered)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["param"] == param and "10000 subschemas" in error["message"]


async def test_a_sealed_thought_comes_back_and_a_changed_one_does_not(serve: Serve, reply: Reply) -> None:
    async with serve(reply("<think>\nhm\n</think>\n\nHello")) as served:
        fields: dict[str, Any] = {"include": ["reasoning.encrypted_content"], "store": False}
        thought, message = (await create(served, **fields)).json()["output"]
        asks = {"role": "user", "content": "Hi"}
        sealed = {"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]}
        plain = {"type": "reasoning", "summary": [], "content": thought["content"]}
        call = [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]
        call.append({"type": "function_call_output", "call_id": "c", "output": "x"})
        for given in (sealed, plain):
            assert (await create(served, input=[asks, given, message, *call])).status_code == 200
        assert served.backend.asked[-1].token_ids == served.backend.asked[-2].token_ids
        assert "hm" in served.text_of(served.backend.asked[-1].token_ids)
        for place in (5, 30, -3):
            text = sealed["encrypted_content"]
            other = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
            answer = await create(served, input=[asks, {**sealed, "encrypted_content": other}, message])
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_encrypted_content"


async def test_a_schema_constrains_the_text(serve: Serve, reply: Reply) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    format = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    async with serve(reply('{"a":"b"}')) as served:
        whole = (await create(served, text={"format": format, "verbosity": "low"})).json()
        check_response(whole)
        assert served.backend.asked[-1].constraint is not None
        assert whole["text"]["format"]["schema"] == schema


async def test_logprobs_are_included_where_they_are_wanted(serve: Serve) -> None:
    def write(request: Generate) -> Script:
        assert request.sampling.num_logprobs == 1
        scores = [TokenLogprob(one, -0.1, ((one, -0.1),)) for one in (9707, 151645)]
        return [Delta(""), Delta("", [9707], [scores[0]]), Delta("", [151645], [scores[1]], "stop")]

    async with serve(write) as served:
        include = ["message.output_text.logprobs"]
        whole = (await create(served, include=include, top_logprobs=1)).json()
        check_response(whole)
        events_of(await create(served, include=include, top_logprobs=1, stream=True))
    (one,) = whole["output"][0]["content"][0]["logprobs"]
    assert one["token"] == "Hello" and len(one["top_logprobs"]) == 1


async def test_a_patch_streams_by_its_grammar(serve: Serve, reply: Reply) -> None:
    """Raw text of a Lark grammar: every piece is a delta of the input."""
    tool = {
        "type": "custom",
        "name": "patch",
        "format": {"type": "grammar", "syntax": "lark", "definition": PATCH_LARK},
    }
    call = f'<tool_call>\n{{"name": "patch", "arguments": {{}}}}\n<input>\n{ADD}\n</input>\n</tool_call>'
    async with serve(reply(call, step=2)) as served:
        events = events_of(await create(served, stream=True, tools=[tool]))
        assert served.backend.asked[-1].constraint is not None
    deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    (item,) = events[-1]["response"]["output"]
    assert item["type"] == "custom_tool_call" and item["input"] == "".join(deltas) == ADD and len(deltas) > 5
    assert "toolwire" not in events[-1]["response"]
