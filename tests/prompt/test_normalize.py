"""Every way in which clients write a conversation renders under every template, and nothing said in it is lost."""

import json
from dataclasses import replace
from typing import Any

import pytest

from server.chat_request import AssistantMessage, Message, PastCall, SystemMessage, ToolMessage, UserMessage
from server.checkpoint.capabilities import TemplateCapabilities
from server.checkpoint.template_text import RawArguments
from server.dialects.kimi_k2 import KIMI_K2
from server.prompt.builder import PromptBuilder
from server.prompt.normalize import normalize_messages, normalize_tools, read_arguments
from server.settings import ApiSettings, Settings
from tests.model_templates import SPLITS_THOUGHTS, TEMPLATES, ask, ids_of, native, prompter, text_of

WITH_TOOLS = [name for name in TEMPLATES if name != "qwen15"]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]
USER = {"role": "user", "content": "Weather?"}


def called(arguments: Any, **message: Any) -> list[dict[str, Any]]:
    call = {"id": "functions.look:0", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return [
        USER,
        {"role": "assistant", "tool_calls": [call], **message},
        {"role": "tool", "tool_call_id": "functions.look:0", "content": "Sunny."},
    ]


def prompt(name: str, messages: list[dict[str, Any]]) -> str:
    return text_of(name, ids_of(name, messages, tools=TOOLS))


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize(
    "arguments",
    [
        '{"city": "Paris"}',
        {"city": "Paris"},
        '{"city":"Paris"}',
        '"{\\"city\\": \\"Paris\\"}"',
        ' {"city" : "Paris"}\n',
    ],
    ids=["text", "object", "compact", "quoted twice", "spaced"],
)
def test_case_33_arguments_in_any_form_render_alike(name: str, arguments: Any) -> None:
    """XML templates fail on a string, JSON templates quote it twice."""
    assert prompt(name, called(arguments)) == prompt(name, called('{"city": "Paris"}'))


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("arguments", ["", None, "  ", "{}", {}], ids=["empty", "null", "blank", "braces", "object"])
def test_case_33_no_arguments_in_any_form_render_alike(name: str, arguments: Any) -> None:
    """Agents send "" for a call without parameters."""
    assert prompt(name, called(arguments)) == prompt(name, called("{}"))


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("broken", ['{"city": "Par', "city=Paris", '["Paris"]', "17", '{"a": 1, "a": 2}', '{"n": NaN}'])
def test_case_34_broken_arguments_are_kept_to_the_letter(name: str, broken: str) -> None:
    """Elsewhere the model's own slip becomes {} or a 500, and it never learns what it wrote."""
    assert broken in prompt(name, called(broken))


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("extra", [{"content": None}, {}, {"content": ""}, {"content": None, "function_call": None}])
def test_case_35_absent_content_renders_as_empty(name: str, extra: dict[str, Any]) -> None:
    """Templates concatenate None and fail."""
    assert prompt(name, called("{}", **extra)) == prompt(name, called("{}", content=""))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("calls", [None, []])
def test_case_35_empty_calls_are_no_calls(name: str, calls: Any) -> None:
    """Client libraries send both."""
    plain = [USER, {"role": "assistant", "content": "Sunny."}, USER]
    assert prompt(name, [USER, {**plain[1], "tool_calls": calls}, USER]) == prompt(name, plain)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_case_36_content_beside_calls_is_kept(name: str) -> None:
    """What the model said before it called is part of its plan."""
    text = prompt(name, called('{"city": "Paris"}', content="I shall look."))
    assert text.index("I shall look.") < text.index("Paris") < text.index("Sunny.")


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_case_37_results_stand_in_the_order_of_their_calls(name: str) -> None:
    """Most templates print no ids: order is all that ties a result to its call."""
    ids = ["functions.look:0", "functions.look:1", "functions.look:2"]
    calls = [
        {"id": one, "type": "function", "function": {"name": "look", "arguments": json.dumps({"city": f"city{i}"})}}
        for i, one in enumerate(ids)
    ]
    results = [{"role": "tool", "tool_call_id": one, "content": f"result{i}"} for i, one in enumerate(ids)]
    head: list[Any] = [USER, {"role": "assistant", "content": None, "tool_calls": calls}]
    assert prompt(name, [*head, *reversed(results)]) == prompt(name, [*head, *results])
    parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in results]
    assert prompt(name, [*head, *parts]) == prompt(name, [*head, *results])


@pytest.mark.parametrize("name", TEMPLATES)
def test_parts_are_joined_as_they_stand(name: str) -> None:
    """Templates that take parts print them side by side; so do the others here."""
    parts = [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?", "cache_control": {"type": "x"}}]
    assert prompt(name, [{"role": "user", "content": parts}]) == prompt(name, [USER])


@pytest.mark.parametrize("name", TEMPLATES)
def test_c27_developer_is_system(name: str) -> None:
    """No open template knows the role."""
    developer, system = ([{"role": role, "content": "Be brief."}, USER] for role in ("developer", "system"))
    assert prompt(name, developer) == prompt(name, system)


@pytest.mark.parametrize("name", TEMPLATES)
def test_c28_late_and_several_system_messages_are_all_read(name: str) -> None:
    """Qwen3.5's template refuses a system message that is not the first."""
    messages = [
        {"role": "system", "content": "rule one"},
        {"role": "developer", "content": "rule two"},
        USER,
        {"role": "assistant", "content": "Sunny."},
        {"role": "system", "content": "rule three"},
        USER,
    ]
    text = prompt(name, messages)
    assert "rule one\n\nrule two" in text
    assert text.count("rule three") == 1
    assert text.index("rule three") > text.index("Sunny.")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_reminder_behind_each_result_leaves_the_prompt_before_it_alone(name: str) -> None:
    """Claude Code adds system messages turn by turn; where the template takes none, each changed the prompt's head."""
    opening = [USER, {"role": "system", "content": "rule one"}]
    turns = [
        [{"role": "assistant", "content": f"answer {i}"}, {"role": "user", "content": f"question {i}"}] for i in (1, 2)
    ]
    reminders = [{"role": "system", "content": f"{i}000 tokens left"} for i in (9, 8)]
    first = prompt(name, [*opening, *turns[0], reminders[0]])
    second = prompt(name, [*opening, *turns[0], reminders[0], *turns[1], reminders[1]])
    before = first[: first.index("9000 tokens left")]
    assert "answer 1" in before and second.startswith(before) and "8000 tokens left" in second


def test_reminders_stand_in_the_text_around_them_where_the_template_takes_none() -> None:
    reminder, user, reply = SystemMessage("Hurry."), UserMessage("a"), AssistantMessage("b")
    call = AssistantMessage(calls=(PastCall("1", "look", {}),))
    cases: list[tuple[list[Message], list[str]]] = [
        ([user, call, ToolMessage("c", "1"), reminder], ["a", "", "c\n\nHurry."]),
        ([user, reply, reminder, UserMessage("c")], ["a", "b", "Hurry.\n\nc"]),
        ([user, reply, UserMessage("c"), reminder, UserMessage("d")], ["a", "b", "c\n\nHurry.", "d"]),
        ([user, reply, reminder, reminder], ["a", "b", "Hurry.\n\nHurry."]),
        ([user, reminder, reply], ["Hurry.", "a", "b"]),
    ]
    for history, shown in cases:
        placed = normalize_messages(history, TemplateCapabilities())
        assert [one.message["content"] or "" for one in placed] == shown
        assert sorted(at for one in placed for at in one.sources) == list(range(len(history)))


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_legacy_function_calls_render_as_calls(name: str) -> None:
    """`functions` is deprecated, and still in the histories that old agents keep."""
    legacy: list[Any] = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"city": "Paris"}'}},
        {"role": "function", "name": "look", "content": "Sunny."},
    ]
    text = prompt(name, legacy)
    assert text.index("look") < text.index("Paris") < text.index("Sunny.")
    if name != "kimi_k2":  # which prints ids
        assert text == prompt(name, called('{"city": "Paris"}'))


@pytest.mark.parametrize("name", SPLITS_THOUGHTS)
def test_case_46_a_thought_is_taken_from_wherever_it_stands(name: str) -> None:
    """Clients send it as `reasoning_content`, as `reasoning`, or within the content as other servers gave it."""
    forms: list[dict[str, Any]] = [
        {"content": "I look.", "reasoning_content": "Hmm."},
        {"content": "I look.", "reasoning": "Hmm."},
        {"content": "<think>\nHmm.\n</think>\n\nI look."},
    ]
    texts = [prompt(name, called("{}", **form)) for form in forms]
    assert texts == [texts[0]] * len(texts)
    assert "Hmm." in texts[0]


def test_a_tag_that_is_only_mentioned_stays() -> None:
    """Cutting at any closing tag would throw away the half of an answer that explains it."""
    text = "The tag </think> closes what <think> opens."
    (shaped,) = normalize_messages([AssistantMessage(text)], TemplateCapabilities(splits_thoughts=True))
    assert shaped.message["content"] == text


def test_custom_tools_are_shown_and_remembered_as_functions_of_one_text() -> None:
    """No model was trained on free-text tools; what parsers read is what the history must show."""
    grammar = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[0-9]+"}}
    (shown,) = normalize_tools(
        [{"type": "custom", "custom": {"name": "run", "description": "Runs.", "format": grammar}}]
    )
    assert shown["function"]["name"] == "run"
    assert list(shown["function"]["parameters"]["properties"]) == ["input"]
    assert "[0-9]+" in json.dumps(shown)
    call = PastCall("1", "run", "12", custom=True)
    (message,) = normalize_messages([AssistantMessage(calls=(call,))], TemplateCapabilities())
    assert message.message["tool_calls"][0]["function"] == {"name": "run", "arguments": {"input": "12"}}


def test_arguments_are_read_without_loss() -> None:
    """Numbers, order and unicode come through; what would not is kept as text."""
    assert read_arguments('{"b": 1, "a": "é"}') == {"b": 1, "a": "é"}
    assert list(read_arguments('{"b": 1, "a": 2}')) == ["b", "a"]
    assert isinstance(read_arguments("[" * 100_000), RawArguments)
    assert isinstance(read_arguments('{"a": 1e999}'), RawArguments)


def rounds_of(ids: list[list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """A conversation of rounds of calls, each an id and a name."""
    messages: list[dict[str, Any]] = []
    for number, calls in enumerate(ids):
        made = [{"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}} for id, name in calls]
        messages += [{"role": "user", "content": f"Round {number}."}, {"role": "assistant", "tool_calls": made}]
        messages += [
            {"role": "tool", "tool_call_id": id, "content": f"from {name} in round {number}"} for id, name in calls
        ]
    return [*messages, USER]


@pytest.mark.parametrize(
    "ids",
    [
        [["functions.look:0", "functions.go:1"], ["functions.look:2"]],
        [["call_ab12", "call_cd34"], ["call_ef56"]],
        [["call_0", "call_1"], ["call_0"]],
        [["functions.look:7", "functions.look:0"], ["functions.look:0"]],
        [["0", "1"], ["chatcmpl-tool-2"]],
    ],
    ids=["own", "opaque", "the same in every round", "miscounted", "others"],
)
def test_kimi_calls_are_named_and_counted_over_the_conversation_whatever_ids_the_client_uses(
    ids: list[list[str]],
) -> None:
    """The template shows a call's id and not its name, so with other ids the model saw no name."""
    (a, b), (c,) = ids
    messages = rounds_of([[(a, "look"), (b, "go")], [(c, "look")]])
    builder = PromptBuilder(native("kimi_k2"), Settings(api=ApiSettings()))
    text = text_of("kimi_k2", builder.prepare(ask(messages, tools=TOOLS)).generates[0].token_ids)
    for index, (name, number) in enumerate((("look", 0), ("go", 0), ("look", 1))):
        call_id = f"functions.{name}:{index}"
        assert f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>" in text
        assert f"## Return of {call_id}\nfrom {name} in round {number}<" in text


def test_kimi_numbers_stay_when_old_messages_are_dropped() -> None:
    messages = rounds_of([[(f"call_{i}", "look")] for i in range(9)])
    builder = PromptBuilder(replace(native("kimi_k2"), max_model_len=400), Settings(api=ApiSettings()))
    request = ask(messages, tools=TOOLS, on_overflow="drop-oldest")
    prepared = builder.prepare(request)
    text = text_of("kimi_k2", prepared.generates[0].token_ids)
    assert prepared.dropped_messages and "functions.look:0<" not in text and "functions.look:8<" in text


def test_a_name_that_is_a_kimi_id_is_shown_as_the_name_in_it() -> None:
    assert KIMI_K2.call_id is not None
    names = ("functions.bash:3", "bash", "functions.bash", "")
    assert [KIMI_K2.call_id(name, 4) for name in names] == [
        "functions.bash:4",
        "functions.bash:4",
        "functions.functions.bash:4",
        "functions.:4",
    ]


def test_a_tool_that_is_really_named_like_a_kimi_id_keeps_its_name() -> None:
    """Another tool was named in the prompt."""
    history = [AssistantMessage(calls=(PastCall("a", "functions.x:0", {}), PastCall("b", "x", {})))]
    names = ("functions.x:0", "x")
    shown = normalize_messages(history, TemplateCapabilities(), KIMI_K2.call_id, names)[0].message
    assert [call["id"] for call in shown["tool_calls"]] == ["functions.functions.x:0:0", "functions.x:1"]


def test_results_of_calls_with_one_id_answer_them_in_order() -> None:
    calls = (PastCall("x", "look", {}), PastCall("x", "go", {}))
    history: list[Message] = [
        AssistantMessage(calls=calls),
        ToolMessage("1", "x"),
        ToolMessage("2", "x"),
        ToolMessage("3", "y"),
    ]
    shown = [one.message for one in normalize_messages(history, TemplateCapabilities(), KIMI_K2.call_id)]
    assert [one["tool_call_id"] for one in shown[1:]] == ["functions.look:0", "functions.go:1", "y"]


NULLS: dict[str, Any] = {
    "type": "object",
    "description": None,
    "title": None,
    "properties": {
        "text": {"type": "string", "description": None, "default": None, "enum": ["a", None], "minLength": None},
        "maybe": {"anyOf": [{"type": "string", "title": None}, {"type": "null"}], "default": None},
        "either": {"type": ["string", "null"], "default": None},
        "open": {"nullable": True, "type": "string", "default": None},
        "any": {"description": "anything", "default": None},
        "fixed": {"const": None},
        "list": {"type": "array", "items": {"type": "integer", "default": None}, "default": [None]},
        "default": {"type": "string", "examples": [None], "enum": None},
    },
    "required": None,
}


def test_nulls_in_a_tool_are_left_out_except_where_they_are_values() -> None:
    function = {"name": "look", "description": None, "strict": None, "parameters": NULLS}
    (shown,) = normalize_tools([{"type": "function", "function": function, "cache_control": None}])
    assert shown == {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "enum": ["a", None], "default": None},
                    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                    "either": {"type": ["string", "null"], "default": None},
                    "open": {"nullable": True, "type": "string", "default": None},
                    "any": {"description": "anything", "default": None},
                    "fixed": {"const": None},
                    "list": {"type": "array", "items": {"type": "integer"}, "default": [None]},
                    "default": {"type": "string", "examples": [None]},
                },
            },
        },
    }
    assert list(NULLS) == ["type", "description", "title", "properties", "required"], "the request's own is unchanged"


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_no_prompt_says_none_for_a_null_in_a_tool(name: str) -> None:
    """Qwen3-Coder's template prints every key of a schema."""
    text = {"type": "string", "description": None, "default": None, "title": None}
    schema = {"type": "object", "description": None, "properties": {"at": text}, "required": None}
    nulls = {"name": "look", "description": None, "strict": None, "parameters": schema}
    plain = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
    prompts = [
        text_of(name, ids_of(name, [USER], tools=[{"type": "function", "function": function}]))
        for function in (nulls, plain)
    ]
    assert prompts[0] == prompts[1] and "None" not in prompts[0] and "null" not in prompts[0]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_null_that_is_a_value_is_shown_as_json_writes_it(name: str) -> None:
    """Templates in Qwen3-Coder's form print `None` for it, which no call of the model says and no parser reads."""
    properties = {"a": {"const": None}, "b": {"type": ["string", "null"], "default": None}, "c": {"enum": [None, "x"]}}
    function = {"name": "look", "parameters": {"type": "object", "properties": properties}}
    messages = called({"a": None, "b": [None], "c": {"d": None}})
    shown = text_of(name, ids_of(name, messages, tools=[{"type": "function", "function": function}]))
    assert "None" not in shown and shown.count("null") >= 7
    assert shown == text_of(name, ids_of(name, called('{"a": null, "b": [null], "c": {"d": null}}'), tools=[
        {"type": "function", "function": function}]))  # fmt: skip


COMPACTED: dict[str, list[dict[str, Any]]] = {
    "a summary and a reply": [
        {"role": "system", "content": "Summary."},
        {"role": "assistant", "content": "Going on."},
    ],
    "a call and its result": called("{}")[1:],
    "a system message alone": [{"role": "system", "content": "Summary."}],
    "results as the user's text": [
        {"role": "system", "content": "Summary."},
        {"role": "user", "content": " <tool_response>\nSunny.\n</tool_response>\n"},
    ],
}


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("kind", COMPACTED)
def test_a_conversation_without_a_user_message_is_rendered_with_an_empty_one_where_it_must_have_one(
    name: str, kind: str
) -> None:
    """Qwen3.5's template refuses it: "No user query found in messages."."""
    shown = prompt(name, COMPACTED[kind])
    assert all(text in shown for text in ("Summary.", "Going on.", "Sunny.") if text in str(COMPACTED[kind]))
    assert ("<|im_start|>user\n<|im_end|>" in shown) == (name == "qwen35")
    parts = prompter(name).count(ask(COMPACTED[kind], tools=TOOLS))
    assert sum(part.tokens for part in parts) == len(ids_of(name, COMPACTED[kind], tools=TOOLS))


def test_a_conversation_with_a_user_message_is_given_no_other() -> None:
    assert "<|im_start|>user\n<|im_end|>" not in prompt("qwen35", called("{}"))
