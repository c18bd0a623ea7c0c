"""Requests of Messages: the same prompt as Chat Completions makes of the same conversation, and refusals."""

from collections.abc import Callable
from typing import Any

import pytest

from server.checkpoint.checkpoint import Checkpoint
from tests.api.conftest import WEATHER, Serve, Served
from tests.api.messages.test_reply import TOOL, send
from tests.backends.scripted import Script

LOOK = {"type": "thinking", "thinking": "Look.", "signature": "x"}
BILLING = "x-anthropic-billing-header: cc_version=1.2; cch={};"
CHAT_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER["function"]["parameters"]}}


def use(call_id: str, city: str = "Paris") -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "get_weather", "input": {"city": city}}


def result(call_id: str, content: Any = "21", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **fields}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": {"type": "ephemeral", "ttl": "1h"}}


def called(call_id: str, city: str = "Paris") -> dict[str, Any]:
    arguments = f'{{"city": "{city}"}}'
    return {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


async def prompt_of(served: Served, **fields: Any) -> list[int]:
    """The prompt that the engine is given."""
    response = await send(served, **fields)
    assert response.status_code == 200, response.text
    return served.backend.asked[-1].token_ids


SAME: dict[str, tuple[dict[str, Any], list[Any], dict[str, Any]]] = {
    "text": ({"messages": [user("Hi")]}, [user("Hi")], {}),
    "blocks are joined as they stand": ({"messages": [user([text("A"), text("B")])]}, [user("AB")], {}),
    "system blocks": (
        {"system": [text("Be brief."), text("Be kind.")], "messages": [user("Hi")]},
        [{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be kind."}, user("Hi")],
        {},
    ),
    "tools, thoughts, calls and results": (
        {
            "tools": [{**TOOL, "cache_control": {"type": "ephemeral"}, "defer_loading": True}],
            "messages": [
                user("Weather?"),
                assistant([LOOK, text("So:"), use("a"), use("b", "Rome")]),
                user([result("b", [text("2"), text("0")]), result("a"), text("And now?")]),
            ],
        },
        [
            user("Weather?"),
            {"role": "assistant", "content": "So:", "reasoning_content": "Look.",
             "tool_calls": [called("a"), called("b", "Rome")]},
            {"role": "tool", "tool_call_id": "a", "content": "21"},
            {"role": "tool", "tool_call_id": "b", "content": "20"},
            user("And now?"),
        ],
        {"tools": [CHAT_TOOL]},
    ),
    "thinking switched off": (
        {"messages": [user("Hi")], "thinking": {"type": "disabled"}},
        [user("Hi")],
        {"reasoning_effort": "none"},
    ),
    "a reply to be continued": (
        {"messages": [user("Hi"), assistant("The answer is")]},
        [user("Hi"), assistant("The answer is")],
        {"continue_final_message": True},
    ),
    "system messages in the middle": (
        {"messages": [user("Hi"), {"role": "system", "content": [text("Be brief.")]}, assistant("Yes"), user("So?")]},
        [user("Hi"), {"role": "system", "content": "Be brief."}, assistant("Yes"), user("So?")],
        {},
    ),
    "a reply sent one block a message": (
        {"tools": [TOOL], "messages": [user("Hi"), assistant([use("a")]), assistant([use("b")]),
                                       user([result("a")]), user([result("b")])]},
        [user("Hi"), {"role": "assistant", "content": None, "tool_calls": [called("a"), called("b")]},
         {"role": "tool", "tool_call_id": "a", "content": "21"},
         {"role": "tool", "tool_call_id": "b", "content": "21"}],
        {"tools": [CHAT_TOOL]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
async def test_the_prompt_is_the_one_of_chat(serve: Serve, reply: Callable[..., Script], name: str) -> None:
    """Byte for byte: the prefix cache holds over turns and surfaces."""
    fields, messages, options = SAME[name]
    async with serve(reply("Hello")) as served:
        prompt = await prompt_of(served, **fields)
        response = await served.chat(messages=messages, **options)
        assert response.status_code == 200, response.text
        assert prompt == served.backend.asked[-1].token_ids


@pytest.mark.parametrize("display", ["summarized", "omitted"])
async def test_a_reply_sent_back_makes_the_prompt_of_chat(
    serve: Serve, reply: Callable[..., Script], display: str
) -> None:
    """Thoughts come back in the text or, where it was left out, in the signature alone."""
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    options = {"tools": [TOOL], "thinking": {"type": "enabled", "budget_tokens": 2000, "display": display}}
    async with serve(reply(f"<think>\nHéllo, I think.\n</think>\n\nLet me see.\n{call}")) as served:
        content = (await send(served, **options)).json()["content"]
        assert (content[0]["thinking"] == "") == (display == "omitted")
        call_id = content[-1]["id"]
        prompt = await prompt_of(served, messages=[user("Hi"), assistant(content), user([result(call_id)])], **options)
        chat = (await served.chat(tools=[CHAT_TOOL])).json()["choices"][0]["message"]
        answer = {"role": "tool", "tool_call_id": chat["tool_calls"][0]["id"], "content": "21"}
        await served.chat(messages=[user("Hi"), chat, answer], tools=[CHAT_TOOL], reasoning_effort="high")
        assert prompt == served.backend.asked[-1].token_ids


async def test_the_line_for_accounts_leaves_the_prompt_alone(serve: Serve, reply: Callable[..., Script]) -> None:
    """It is new in each request, and would end the cached prefix at the first token."""
    async with serve(reply("Hello")) as served:
        prompts = [
            await prompt_of(served, system=[text(BILLING.format(turn)), text("Be brief.")]) for turn in ("0a", "1b")
        ]
        prompts.append(await prompt_of(served, system=BILLING.format("2c") + "\nBe brief."))
        prompts.append(await prompt_of(served, system="Be brief."))
    assert prompts[0] == prompts[1] == prompts[2] == prompts[3]


async def test_blocks_of_text_are_read_and_others_left_out_with_a_note(
    serve: Serve, reply: Callable[..., Script], checkpoint: Checkpoint
) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "A b"}
    document = {"type": "document", "title": "Notes", "source": source}
    parts = {"type": "document", "source": {"type": "content", "content": [text("C d")]}}
    found = {"type": "search_result", "title": "T", "source": "s", "content": [text("E f")]}
    blocks = [text("See:"), document, parts, found, {"type": "mystery", "x": 1}]
    before = assistant([{"type": "redacted_thinking", "data": "z"}, text("g")])
    async with serve(reply("Hello")) as served:
        response = await send(served, messages=[user(blocks), before, user("h")])
        ids = served.backend.asked[-1].token_ids
    prompt = checkpoint.tokenizer.decode(ids, skip_special_tokens=False)
    assert "See:\nNotes\nA b\nC d\nT\ns\nE f" in prompt
    notes = response.json()["toolwire"]["notes"]
    assert [note["param"] for note in notes] == ["messages[0].content[4]", "messages[1].content[0]"]


async def test_tools_of_anthropics_servers_are_left_out_with_a_note(serve: Serve, reply: Callable[..., Script]) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    async with serve(reply("Hello")) as served:
        response = await send(served, tools=[search, TOOL])
        alone = await prompt_of(served, tools=[TOOL])
        assert served.backend.asked[0].token_ids == alone
        refused = await send(served, tools=[search, TOOL], tool_choice={"type": "tool", "name": "web_search"})
        nameless = await send(served, tools=[TOOL], tool_choice={"type": "tool"})
    assert "Missing required parameter: 'tool_choice.name'" in nameless.json()["error"]["message"]
    assert response.json()["toolwire"]["notes"][0]["param"] == "tools[0]"
    assert refused.status_code == 400 and "web_search" in refused.json()["error"]["message"]


async def test_a_failed_call_says_so(serve: Serve, reply: Callable[..., Script]) -> None:
    async def with_result(content: str, **fields: Any) -> list[int]:
        messages = [user("Hi"), assistant([use("a")]), user([result("a", content, **fields)])]
        return await prompt_of(served, tools=[TOOL], messages=messages)

    async with serve(reply("Hello")) as served:
        assert await with_result("no such city", is_error=True) == await with_result("Error: no such city")
        assert await with_result("An error: no", is_error=True) == await with_result("An error: no")


REFUSED = {
    "image": ([user([{"type": "image", "source": {"type": "url", "url": "x"}}])], "not blocks of type 'image'"),
    "image in a result": (
        [user("Hi"), assistant([use("a")]), user([result("a", [{"type": "image", "source": {}}])])],
        "'messages[2].content[0].content[0]'",
    ),
    "pdf": ([user([{"type": "document", "source": {"type": "base64", "data": ""}}])], "not documents of type 'base64'"),
    "call without result": ([user("Hi"), assistant([use("a")]), user("So?")], "blocks immediately after: a"),
    "result without call": ([user([result("a")])], "unexpected `tool_use_id` found in `tool_result` blocks: a"),
    "two results": ([user("Hi"), assistant([use("a")]), user([result("a"), result("a")])], "must have a single result"),
    "a damaged signature": (
        [user("Hi"), assistant([{"type": "thinking", "thinking": "", "signature": "toolwire-1.!"}]), user("So?")],
        "send it back as it was received",
    ),
    "no messages": ([], "messages"),
    "unknown role": ([{"role": "narrator", "content": "x"}], "messages[0].role"),
    "a number for text": ([user([{"type": "text", "text": 3}])], "messages[0].content[0].text"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_refusals(serve: Serve, name: str) -> None:
    messages, words = REFUSED[name]
    async with serve() as served:
        response = await send(served, messages=messages, tools=[TOOL])
    body = response.json()
    assert response.status_code == 400 and body["error"]["type"] == "invalid_request_error"
    assert words in body["error"]["message"], body


async def test_unknown_fields_are_ignored_at_every_level(serve: Serve, reply: Callable[..., Script]) -> None:
    odd: dict[str, Any] = {
        "context_management": {"edits": []},
        "mcp_servers": [],
        "betas": ["x"],
        "container": None,
        "x": {"y": 1},
    }
    block = {**text("Hi"), "citations": None, "later": {"a": [1]}}
    tool = {**TOOL, "eager_input_streaming": True, "input_examples": [{}], "allowed_callers": ["direct"]}
    async with serve(reply("Hello")) as served:
        with_odd = await prompt_of(
            served, messages=[{**user([block]), "id": 3}], tools=[tool], metadata={"user_id": "u"}, service_tier="auto",
            output_config={"effort": "xhigh", "task_budget": {}}, **odd,
        )  # fmt: skip
        assert with_odd == await prompt_of(served, tools=[TOOL])


async def test_the_answer_is_held_to_a_schema(serve: Serve, reply: Callable[..., Script]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    format_ = {"type": "json_schema", "schema": schema}
    async with serve(reply("Hello")) as served:
        await send(served, output_config={"format": format_})
        await send(served, output_format=format_)
        constraints = [one.constraint for one in served.backend.asked]
    assert constraints[0] is not None and constraints[0] == constraints[1]


@pytest.mark.parametrize(
    ("choice", "parallel"), [("auto", True), ("any", True), ("tool", True), ("none", True), ("any", False)]
)
async def test_tool_choice(serve: Serve, reply: Callable[..., Script], choice: str, parallel: bool) -> None:
    sent: dict[str, Any] = {"type": choice, **({"name": "get_weather"} if choice == "tool" else {})}
    sent |= {} if parallel else {"disable_parallel_tool_use": True}
    named = {"type": "function", "function": {"name": "get_weather"}}
    chat: Any = {"any": "required", "tool": named}.get(choice, choice)
    async with serve(reply("Hello")) as served:
        await send(served, tools=[TOOL], tool_choice=sent)
        await served.chat(tools=[CHAT_TOOL], tool_choice=chat, parallel_tool_calls=parallel)
        ours, theirs = served.backend.asked
    assert ours.constraint == theirs.constraint and ours.token_ids == theirs.token_ids
