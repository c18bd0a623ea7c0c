"""Replies with calls through the real routes, whole and streamed: what users of other servers suffer, by its number."""

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from server.api.sse import DONE, EventStream
from server.dialects.grammar.lark import NOT_BLANK
from tests.api.chat.test_router import Reply
from tests.api.conftest import CALL, WEATHER, Serve, Served, events_of
from tests.dialects import over_http

NAMED = {"type": "function", "function": {"name": "get_weather"}}
PARIS = ("get_weather", '{"city": "Paris"}')


async def both(served: Served, **fields: Any) -> over_http.Reply:
    """The reply to a request, which is the same whole and streamed."""
    whole = over_http.whole((await served.chat(**fields)).json())
    answer = await served.chat(**fields, stream=True, stream_options={"include_usage": True})
    assert over_http.joined([json.loads(event) for event in events_of(answer.text)]) == whole
    return whole


@pytest.mark.parametrize("step", [1, 4, 1000])
async def test_case_07_a_call_cut_by_max_tokens_is_flagged_and_ends_with_length(
    serve: Serve, reply: Reply, step: int
) -> None:
    cut = "Let me see.\n" + CALL[: CALL.index("Paris") + 3]
    async with serve(reply(cut, "length", step)) as served:
        found = await both(served, tools=[WEATHER])
    assert (found.finish, found.content, found.flags) == ("length", "Let me see.", ("truncated",))
    assert found.calls == (("get_weather", '{"city": "Par'),)


@pytest.mark.parametrize("fields", [{}, {"parallel_tool_calls": False}])
async def test_case_15_a_call_inside_an_unclosed_think_block_is_a_call(
    serve: Serve, reply: Reply, fields: dict[str, Any]
) -> None:
    async with serve(reply(f"<think>\nI need the weather.\n{CALL}")) as served:
        found = await both(served, tools=[WEATHER], **fields)
    assert (found.thought, found.content, found.calls) == ("I need the weather.", "", (PARIS,))
    assert found.finish == "tool_calls"


async def test_case_17_without_thinking_the_answer_is_content(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Mild.")) as served:
        for off in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
            found = await both(served, tools=[WEATHER], **off)
            assert (found.content, found.thought) == ("Mild.", "")


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_case_19_without_a_call_nobody_is_told_of_one(serve: Serve, reply: Reply, choice: Any) -> None:
    """No grammar lets that happen; an engine at its limit may."""
    async with serve(reply("<think>\nI had better", "length")) as served:
        found = await both(served, tools=[WEATHER], tool_choice=choice)
    assert (found.calls, found.finish) == ((), "length")
    async with serve(reply("No.")) as served:
        assert (await both(served, tools=[WEATHER], tool_choice=choice)).finish == "stop"


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
async def test_case_20_a_call_ends_with_tool_calls_however_it_came_about(
    serve: Serve, reply: Reply, choice: Any
) -> None:
    """Clients' loops go on by that word alone, for a named tool too."""
    async with serve(reply(CALL)) as served:
        found = await both(served, tools=[WEATHER], tool_choice=choice)
    assert (found.calls, found.finish) == ((PARIS,), "tool_calls")


@pytest.mark.parametrize(
    ("fields", "finish"),
    [
        ({"tool_choice": NAMED}, "stop"),
        ({"tool_choice": "required"}, "tool_calls"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}},
            "tool_calls",
        ),
        ({}, "tool_calls"),
    ],
)
async def test_case_20_with_the_option_a_named_call_ends_with_stop_and_no_other_does(
    serve: Serve, reply: Reply, fields: dict[str, Any], finish: str
) -> None:
    async with serve(reply(CALL), named_finish="stop") as served:
        found = await both(served, tools=[WEATHER], **fields)
    assert (found.calls, found.finish) == ((PARIS,), finish)


async def test_case_20_with_the_option_a_custom_tool_and_an_older_function_that_are_named_end_with_stop(
    serve: Serve, reply: Reply
) -> None:
    run = {"type": "custom", "custom": {"name": "run"}}
    text = '<tool_call>\n{"name": "run", "arguments": {"input": "ls"}}\n</tool_call>'
    async with serve(reply(text), named_finish="stop") as served:
        choice = (await served.chat(tools=[run], tool_choice=run)).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["tool_calls"][0]["custom"]["input"]) == ("stop", "ls")
    old = {"functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}}
    for option, finish in (("stop", "stop"), ("tool_calls", "function_call")):
        async with serve(reply(CALL), named_finish=option) as served:
            choice = (await served.chat(**old)).json()["choices"][0]
        assert (choice["finish_reason"], choice["message"]["function_call"]["name"]) == (finish, "get_weather")


async def test_case_20_with_the_option_a_named_call_that_is_cut_off_ends_with_length(
    serve: Serve, reply: Reply
) -> None:
    async with serve(reply(CALL[: CALL.index("Paris")], "length"), named_finish="stop") as served:
        assert (await both(served, tools=[WEATHER], tool_choice=NAMED)).finish == "length"


@pytest.mark.parametrize("text", [CALL, f"Write {CALL} to call.", "<tool_call>"])
async def test_case_23_under_none_text_is_kept_whatever_it_holds(serve: Serve, reply: Reply, text: str) -> None:
    """The grammar lets no opener through; from an engine without one, nothing may be lost."""
    async with serve(reply(text)) as served:
        found = await both(served, tools=[WEATHER], tool_choice="none")
        assert served.backend.asked[0].constraint
    assert (found.content, found.calls, found.finish) == (text, (), "stop")


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
async def test_case_25_an_empty_list_of_tools_is_none(serve: Serve, reply: Reply, fields: dict[str, Any]) -> None:
    async with serve(reply(CALL)) as served:
        found = await both(served, tools=[], **fields)
    assert (found.content, found.calls, found.finish) == (CALL, (), "stop")


@pytest.mark.parametrize("behind", ["", "\n\n", f"\n\n{CALL}", "\n\nMild."])
async def test_case_44_and_47_after_thinking_there_is_an_answer_or_the_thoughts(
    serve: Serve, reply: Reply, behind: str
) -> None:
    """A model that plans a call and ends without it is seen by its thoughts; `required` makes it call."""
    async with serve(reply(f"<think>\nI will call get_weather.\n</think>{behind}")) as served:
        found = await both(served, tools=[WEATHER])
        assert found.thought == "I will call get_weather."
        assert (found.content, found.calls) == (behind.strip() if "Mild" in behind else "", (PARIS,) * (CALL in behind))
        assert found.finish == ("tool_calls" if CALL in behind else "stop")
        await served.chat(tools=[WEATHER], tool_choice="required")
        assert served.backend.asked[-1].constraint


@pytest.mark.parametrize(
    ("thought", "text", "noted"),
    [
        ("I will call get_weather.", "", (["get_weather"], True)),
        ("I will call get_weather.", "\n\n \n", (["get_weather"], True)),
        ("先用get_weather查一下,再用`now`。", "\n\nIt is mild.", (["get_weather", "now"], False)),
        ("Let me look.", "", ([], True)),
        ("Neither get_weather_daily nor my-now nor Now.", "\n\nIt is mild.", None),
        ("I will call get_weather.", f"\n\n{CALL}", None),
    ],
)
async def test_case_44_a_turn_that_ends_without_the_call_that_its_thoughts_name_is_said_to(
    serve: Serve, reply: Reply, thought: str, text: str, noted: tuple[list[str], bool] | None
) -> None:
    """Of a model that often plans a call and then ends, or claims to have made it, nobody but the server can tell."""
    fields = {"tools": [WEATHER, {"type": "function", "function": {"name": "now"}}]}
    async with serve(reply(f"<think>\n{thought}\n</think>{text}")) as served:
        whole = (await served.chat(**fields)).json()
        streamed = events_of((await served.chat(**fields, stream=True)).text)
        counted = (await served.http.get("/metrics")).text
    expected = {"uncalled": [{"choice": 0, "named": noted[0], "blank": noted[1]}]} if noted else None
    assert whole.get("toolwire") == expected
    assert [json.loads(event)["toolwire"] for event in streamed if "toolwire" in json.loads(event)] == (
        [expected] if expected else []
    )
    if noted is not None:
        reply_kind = "blank" if noted[1] else "text"
        assert f'toolwire_missed_tool_calls_total{{dialect="hermes",reply="{reply_kind}"}} 2.0' in counted
    else:
        assert "toolwire_missed_tool_calls_total{" not in counted


@pytest.mark.parametrize(
    ("finish", "fields"),
    [
        ("length", {}),
        ("stop", {"tool_choice": "none"}),
        ("stop", {"tool_choice": "required"}),
        ("stop", {"stop": ["mild"]}),
        ("stop", {"after_result": True}),
    ],
)
async def test_case_44_nothing_is_said_of_turns_that_did_not_end_by_themselves_or_had_no_call_to_make(
    serve: Serve, reply: Reply, finish: str, fields: dict[str, Any]
) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Weather?"}]
    if fields.pop("after_result", False):
        call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
        messages += [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "21"},
        ]
    async with serve(reply("<think>\nget_weather says so.\n</think>\n\nIt is mild.", finish)) as served:
        whole = (await served.chat(tools=[WEATHER], messages=messages, **fields)).json()
    assert "toolwire" not in whole


@pytest.mark.parametrize("server_s", [False, True])
async def test_case_44_on_request_or_by_the_option_every_reply_is_held_to_text_or_a_call(
    serve: Serve, reply: Reply, server_s: bool
) -> None:
    async with serve(reply("Mild."), must_answer=server_s) as served:
        for fields in ({}, {"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"}):
            held = [None, True] if server_s else [True]
            for asked, blank_ends in [*((one, False) for one in held), (False if server_s else None, True)]:
                assert (await served.chat(**fields, must_answer=asked)).status_code == 200
                constraint = served.backend.asked[-1].constraint
                assert blank_ends == (constraint is None or NOT_BLANK not in constraint.source)


async def test_a_forced_call_that_nothing_satisfies_is_refused_by_tool_and_place(serve: Serve, reply: Reply) -> None:
    never = {"type": "integer", "minimum": 5, "maximum": 3}
    function = {"name": "look", "parameters": {"type": "object", "properties": {"n": never}, "required": ["n"]}}
    tools = [WEATHER, {"type": "function", "function": function}]
    async with serve(reply("No.")) as served:
        assert (await served.chat(tools=tools)).status_code == 200
        refused = await served.chat(tools=tools, tool_choice="required")
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "tools[1].function.parameters")
    assert "'look'" in error["message"] and "('properties', 'n')" in error["message"]


async def test_nothing_comes_after_done_however_slowly_it_is_taken() -> None:
    """Beside much other work a ping came after it, and some clients take the last line for `[DONE]`."""

    async def steps() -> AsyncGenerator[list[Any], None]:
        await asyncio.sleep(0.05)
        yield []

    async def release() -> None:
        return

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("nothing arrives")

    sent: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))
        await asyncio.sleep(0.1 if message.get("body") == DONE else 0)

    stream = EventStream(steps(), 0.01, release)
    await asyncio.wait_for(stream({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send), 5)
    told = [piece for piece in sent if piece]
    assert told[-1] == DONE and told[0] == b": ping\n\n"


async def test_d6_what_was_repaired_or_malformed_is_not_lost(serve: Serve, reply: Reply) -> None:
    slip = CALL.replace('"Paris"', '"Pa\nris"')
    async with serve(reply(f"{slip}\n<tool_call>\n{{oops}}\n</tool_call>\n{CALL}")) as served:
        found = await both(served, tools=[WEATHER])
        body = (await served.chat(tools=[WEATHER])).json()
    assert found.calls == (("get_weather", '{"city": "Pa\\nris"}'), PARIS) and found.flags == ("repaired",)
    assert "{oops}" in found.content
    assert '"Pa\nris"' in body["toolwire"]["calls"][0]["raw"]


async def test_d11_the_same_call_without_end_is_ended_and_said_to_be(serve: Serve, reply: Reply) -> None:
    async with serve(reply("\n".join([CALL] * 20), "length")) as served:
        found = await both(served, tools=[WEATHER], tool_choice="required")
        assert not served.backend.running
    assert (found.calls, found.flags, found.finish) == ((PARIS,) * 3, ("repeated",), "tool_calls")
