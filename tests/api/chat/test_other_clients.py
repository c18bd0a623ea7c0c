"""Requests as other clients, proxies and servers write them: taken in the sense that they plainly have."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from server.api.chat.schemas import read_request
from server.api.chat.to_request import RequestMapper
from server.api.sampling import SamplingMapper
from server.chat_request import AssistantMessage, ChatRequest, ToolMessage
from server.checkpoint.checkpoint import Checkpoint, SamplingDefaults
from server.prompt.builder import PromptBuilder
from server.settings import ApiSettings, Settings
from tests.api.conftest import WEATHER, Serve
from tests.backends.scripted import Script
from tests.families import SOME_FAMILIES, family_checkpoint

Reply = Callable[..., Script]
USER = {"role": "user", "content": "Hi"}
CALL_ID = "functions.{}:0"
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def read(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [USER], **fields}
    return RequestMapper(SamplingMapper(SamplingDefaults(), 1000)).to_request(*read_request(body, strict=False))


def calling(name: Any, arguments: Any = "{}") -> list[dict[str, Any]]:
    call = {"id": CALL_ID.format(name or ""), "type": "function", "function": {"name": name, "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "ok"}
    return [USER, {"role": "assistant", "tool_calls": [call]}, result]


@pytest.fixture(scope="module", params=SOME_FAMILIES)
def family(request: pytest.FixtureRequest) -> Checkpoint:
    return Checkpoint.open(family_checkpoint(request.param))


def prompt_of(checkpoint: Checkpoint, request: ChatRequest) -> str:
    (generate,) = PromptBuilder(checkpoint, Settings()).prepare(request).generates
    return str(checkpoint.tokenizer.decode(generate.token_ids, skip_special_tokens=False))


@pytest.mark.parametrize("name", ["functions.bash:3", "read file", "", None, "a/b", "日本", "x" * 300, "<tool>"])
def test_a_name_in_the_history_that_is_none_is_shown_to_the_model(family: Checkpoint, name: Any) -> None:
    """A model that once wrote such a name was refused for ever after."""
    request = read(messages=calling(name), tools=[WEATHER])
    assert isinstance(request.messages[1], AssistantMessage)
    assert request.messages[1].calls[0].name == (name or "")
    shown = (name or "ok").removeprefix("functions.").removesuffix(":3")  # Kimi's own form is renumbered
    assert shown in prompt_of(family, request)


@pytest.mark.parametrize("content", [[], None, "", [{"type": "text", "text": ""}]], ids=str)
def test_an_empty_result_is_a_result(family: Checkpoint, content: Any) -> None:
    """A tool that returns nothing gives MCP's clients a result of no parts."""
    messages = calling("get_weather")
    messages[-1]["content"] = content
    request = read(messages=messages)
    assert request.messages[2] == ToolMessage("", "functions.get_weather:0")
    prompt_of(family, request)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (["a", "b"], "ab"),
        ({"type": "text", "text": "a"}, "a"),
        ([{"text": "a"}], "a"),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b", "annotations": []}], "ab"),
    ],
    ids=str,
)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_text_in_another_form_is_the_text(role: str, content: Any, text: str) -> None:
    if role == "tool":
        messages = calling("f")
        messages[-1]["content"] = content
    else:
        messages = [{"role": role, "content": content}, USER]
    place = 2 if role == "tool" else 0
    assert read(messages=messages).messages[place].text == text


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "Yes"}]},
        {"content": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "Yes"}]},
        {"content": [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Yes"}]},
        {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}, "Yes"]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, "Yes"]},
        {"content": "Yes", "reasoning_content": "Hm."},
        {"content": "Yes", "reasoning": "Hm."},
        {"content": "Yes", "thinking": "Hm."},
        {"content": "Yes", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}], "reasoning": None},
        {"content": "Yes", "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}]},
    ],
    ids=str,
)
def test_a_thought_in_any_form_is_the_thought(message: dict[str, Any]) -> None:
    """Proxies that speak for other vendors send thoughts back in those vendors' forms."""
    request = read(messages=[USER, {"role": "assistant", **message}, USER])
    assert request.messages[1] == AssistantMessage("Yes", "Hm.")


def test_a_thought_is_shown_where_the_template_takes_one(checkpoint: Checkpoint) -> None:
    messages = calling("get_weather")
    messages[1]["content"] = [{"type": "thinking", "thinking": "I need the weather."}]
    assert "I need the weather." in prompt_of(checkpoint, read(messages=messages, tools=[WEATHER]))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_minus_one_is_no_limit_but_the_window(checkpoint: Checkpoint, field: str) -> None:
    prepared = PromptBuilder(checkpoint, Settings()).prepare(read(**{field: -1}))
    (generate,) = prepared.generates
    assert generate.sampling.max_tokens == checkpoint.max_model_len - prepared.prompt_tokens


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, True),
        ({"reasoning": {"exclude": True}}, None),
        ({"think": "high"}, True),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, False),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
    ids=str,
)
def test_a_thinking_switch_may_be_on_or_silent(fields: dict[str, Any], thinks: bool | None) -> None:
    """Read as off, it took a model's thoughts from a client that had asked for them."""
    assert read(**fields).thinking is thinks


def test_fields_that_say_nothing_beside_others_are_taken() -> None:
    assert read(logprobs=False, top_logprobs=0).sampling.num_logprobs is None
    assert read(top_logprobs=0).sampling.num_logprobs is None
    assert read(max_tokens=7, max_completion_tokens=7).max_tokens == 7
    assert len(read(stop=["a", "b", "c", "d", "e"]).stop) == 5
    read(metadata={"k": 7, **{str(i): None for i in range(20)}}, store=True)


@pytest.mark.parametrize("name", ["catalog.get-entity", "github/search", "mcp:files.read"])
async def test_names_as_mcp_allows_them_are_served_whole_and_streamed(serve: Serve, reply: Reply, name: str) -> None:
    tool = {"type": "function", "function": {"name": name, "parameters": PERSON}}
    call = {"name": name, "arguments": {"name": "Ada"}}
    text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    async with serve(reply(text)) as served:
        whole = (await served.chat(tools=[tool])).json()["choices"][0]["message"]["tool_calls"][0]["function"]
        streamed = (await served.chat(tools=[tool], stream=True)).text
    assert whole == {"name": name, "arguments": '{"name": "Ada"}'}
    assert f'"name":"{name}"' in streamed


async def test_php_s_empty_objects_are_objects(serve: Serve, reply: Reply) -> None:
    """PHP encodes an empty map as `[]`, in schemas and in the arguments of the history."""
    properties = {"a": {"type": "object", "properties": []}}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": []}},
        {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": []}}},
        {"type": "function", "function": {"name": "h", "parameters": {"type": "object", "properties": properties}}},
    ]
    async with serve(reply("Hi")) as served:
        answer = await served.chat(tools=tools, messages=calling("f", []))
    assert answer.status_code == 200, answer.text
    assert [(note["kind"], note["param"]) for note in answer.json()["toolwire"]["notes"]] == [
        ("schema", "tools[0].function.parameters"),
        ("schema", "tools[1].function.parameters.properties"),
        ("schema", "tools[2].function.parameters.properties.a.properties"),
    ]


async def test_a_parameter_that_is_not_known_is_named_in_the_notes(serve: Serve, reply: Reply) -> None:
    async with serve(reply("Hi")) as served:
        answer = (await served.chat(n_predict=5, user="u", top_k=5)).json()
    assert [(note["kind"], note["param"]) for note in answer["toolwire"]["notes"]] == [("ignored", "n_predict")]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_regex": 7}, "guided_regex"),
        ({"guided_regex": "a(?=b)"}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_grammar": "root ::= (("}, "guided_grammar"),
        ({"guided_grammar": "start: missing"}, "guided_grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"$ref": "elsewhere.json"}}, "guided_json"),
        ({"guided_json": PERSON, "response_format": {"type": "json_schema", "schema": {}}}, "guided_json"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"ebnf": "root ::= (("}, "ebnf"),
        ({"thinking": "banana"}, "thinking"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
    ],
    ids=str,
)
async def test_what_cannot_be_promised_is_refused_by_its_field(
    serve: Serve, fields: dict[str, Any], param: str
) -> None:
    async with serve() as served:
        answer = await served.chat(**fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER]}], ids=["thinking", "tools"])
def test_without_a_limit_thoughts_and_calls_have_the_window(checkpoint: Checkpoint, fields: dict[str, Any]) -> None:
    prepared = PromptBuilder(checkpoint, Settings(api=ApiSettings(max_new_tokens=50))).prepare(read(**fields))
    assert prepared.generates[0].sampling.max_tokens == checkpoint.max_model_len - prepared.prompt_tokens
    assert prepared.max_text_tokens == 50


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
async def test_a_plain_answer_ends_at_the_default_limit(serve: Serve, reply: Reply, fields: dict[str, Any]) -> None:
    thought = "<think>\n" + "Hm. " * 60 + "</think>\n\n"
    async with serve(reply(thought + "word " * 100), max_new_tokens=20) as served:
        answer = await served.chat(**fields)
        assert '"finish_reason":"length"' in answer.text
        assert 15 < answer.text.count("word") < 25


def test_a_switch_that_the_model_does_not_have_is_noted() -> None:
    checkpoint = Checkpoint.open(family_checkpoint("qwen1.5"))
    prepared = PromptBuilder(checkpoint, Settings()).prepare(read(reasoning_effort="high"))
    assert [note.kind for note in prepared.notes] == ["thinking"]
    assert PromptBuilder(checkpoint, Settings()).prepare(read(think=False)).notes == ()
