"""Replies with calls through the real routes, whole and streamed: what users of other servers suffer, by its number."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from server.api.sse import DONE, EventStream
from tests.api.conftest import CALL, WEATHER, Serve, Served, events_of
from tests.api.test_chat import Reply
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

    async def send(message: dict[str, Any]) -> None:
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
