"""The Generate messages of a request: constraint, reasoning phase, limits, and what the template refuses."""

from dataclasses import replace
from typing import Any

import pytest

from server.chat_request import AssistantMessage, ChatRequest, PastCall, UserMessage
from server.checkpoint.template import ChatTemplate
from server.dialects.base import Choice, ResponseFormat, Tool
from server.errors import BadRequest
from server.messages import ReasoningPhase, Sampling
from server.prompt.builder import PromptBuilder
from server.settings import Settings
from tests.model_templates import TEMPLATES, ask, checkpoint, ids_of, native, prompter, text_of
from tests.typed_messages import typed

USER = {"role": "user", "content": "Weather in Paris?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
LOOK: Any = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": PARAMETERS},
}
WAIT = {"type": "function", "function": {"name": "wait", "parameters": {"type": "object", "properties": {}}}}
TOOLS = (Tool("look", PARAMETERS), Tool("wait", {"type": "object", "properties": {}}))
WITH_TOOLS = [name for name in TEMPLATES if name != "qwen15"]


def request(**fields: Any) -> ChatRequest:
    return ChatRequest(
        "req", typed([USER]), Sampling(max_tokens=1), tool_definitions=[LOOK, WAIT], tools=TOOLS, **fields
    )


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_d9_what_may_be_written_never_changes_what_is_read(name: str) -> None:
    """A named tool that is alone in the prompt throws the whole cached prefix away."""
    prepare = PromptBuilder(native(name), Settings()).prepare
    asks = [
        request(),
        request(choice=Choice("none")),
        request(choice=Choice("required")),
        request(choice=Choice("required", frozenset({"wait"}))),
        request(choice=Choice("auto", frozenset({"look"}))),
        request(choice=Choice("auto", parallel=False)),
        request(answer=ResponseFormat({"type": "object"}, strict=True)),
    ]
    prompts = [prepare(one).generates[0].token_ids for one in asks]
    assert prompts == [prompts[0]] * len(asks)
    constraints = {str(prepare(one).generates[0].constraint) for one in asks}
    assert len(constraints) >= 4


OWN_ORDER = ("qwen3_coder", "react")  # templates that print keys in an order of their own


@pytest.mark.parametrize("name", [name for name in WITH_TOOLS if name not in OWN_ORDER])
def test_tools_keep_the_clients_key_order(name: str) -> None:
    """Sorted or reordered keys are another prompt: nothing cached, and not what the client wrote."""
    turned = {"type": "function", "function": dict(reversed(LOOK["function"].items()))}
    one, other = (text_of(name, ids_of(name, [USER], tools=[tool])) for tool in (LOOK, turned))
    assert one.index("Looks.") < one.index('"parameters"')
    assert other.index('"parameters"') < other.index("Looks.")


@pytest.mark.parametrize("thinking", [None, False])
@pytest.mark.parametrize("name", [name for name in TEMPLATES if "<think>" in native(name).template.source])
def test_the_next_prompt_repeats_a_prompt_up_to_its_think_block(name: str, thinking: bool | None) -> None:
    """What is kept of a recurrent state behind the block would begin no other prompt."""
    reply = {"role": "assistant", "content": "It is sunny."}
    first, after = (
        prompter(name).prepare(ask(messages, thinking=thinking)).generates[0]
        for messages in ([USER], [USER, reply, USER])
    )
    end = len(first.token_ids) - first.num_volatile
    assert after.token_ids[:end] == first.token_ids[:end]
    assert text_of(name, first.token_ids[end:]).startswith("<think>") == (first.num_volatile > 0)
    assert "<think>" not in text_of(name, first.token_ids[:end])


def test_choices_share_a_prompt_and_differ_in_seed() -> None:
    """n choices of one seed would be n times the same reply."""
    prepared = prompter("qwen3").prepare(ask([USER], n=3))
    first, *others = prepared.generates
    assert [one.id for one in prepared.generates] == ["req-0", "req-1", "req-2"]
    assert all(one.token_ids is first.token_ids for one in others)
    seeded = ChatRequest("req", typed([USER]), Sampling(max_tokens=1, seed=5), n=2)
    assert [one.sampling.seed for one in prompter("qwen3").prepare(seeded).generates] == [5, 6]


def test_stop_ids_are_the_checkpoints() -> None:
    """A model that ends its turn with a token the engine does not know runs on to the limit."""
    assert set(prompter("qwen3").prepare(ask([USER])).generates[0].stop_ids) == {151645, 151643}


@pytest.mark.parametrize(
    "name, fields, thinking",
    [
        ("qwen25", {}, "off"),
        ("qwen3", {}, "may_open"),
        ("qwen3", {"thinking": False}, "off"),
        ("qwen3", {"thinking": True}, "may_open"),
        ("qwen3", {"template_kwargs": {"enable_thinking": False}}, "off"),
        ("qwen3_thinking", {}, "open"),
        ("qwen3_thinking", {"thinking": False}, "open"),
        ("qwen35", {}, "open"),
        ("qwen35", {"thinking": False}, "off"),
        ("qwen3_coder", {}, "off"),
        ("glm45", {}, "may_open"),
        ("glm45", {"thinking": False}, "off"),
    ],
)
def test_cases_16_17_the_prompt_tells_how_the_reply_begins(name: str, fields: dict[str, Any], thinking: str) -> None:
    """Read wrongly, a whole answer lands in reasoning_content, or thoughts in the answer."""
    assert prompter(name).prepare(ask([USER], **fields)).thinking == thinking


@pytest.mark.parametrize(
    "kwargs, effort, written, thinks",
    [
        ({}, None, "", True),
        ({}, None, "/no_think", False),
        ({}, None, "/no_think /think", True),
        ({}, True, "/no_think", True),
        ({}, False, "/think", False),
        ({"enable_thinking": True}, False, "/no_think", True),
        ({"enable_thinking": False}, True, "/think", False),
        ({}, None, "see /no_think/x", True),
    ],
)
def test_case_45_the_order_of_precedence(
    kwargs: dict[str, Any], effort: bool | None, written: str, thinks: bool
) -> None:
    """Documented in docs/prompts.md: kwargs, reasoning_effort, what the user wrote, the template."""
    messages = [{"role": "user", "content": f"Why? {written}"}, {"role": "assistant", "content": "x"}, USER]
    prepared = prompter("qwen3").prepare(ask(messages, thinking=effort, template_kwargs=kwargs))
    assert (prepared.thinking == "may_open") == thinks


def test_a_switch_in_a_tool_result_switches_nothing() -> None:
    """What a tool brings from outside is no order of the user's."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages: list[Any] = [
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "/no_think"},
    ]
    assert prompter("qwen3").prepare(ask(messages)).thinking == "may_open"


def test_case_18_the_constraint_begins_after_the_thoughts() -> None:
    """A grammar from the first token on would forbid a thinking model to think."""
    prepare = PromptBuilder(native("qwen3"), Settings()).prepare
    forced = prepare(request(choice=Choice("required"), max_tokens=500)).generates[0]
    assert forced.constraint
    assert forced.reasoning_phase
    assert (forced.reasoning_phase.end_id, forced.reasoning_phase.open_id) == (151668, 151667)
    thinking = PromptBuilder(native("qwen3_thinking"), Settings()).prepare(request(choice=Choice("required")))
    assert thinking.generates[0].reasoning_phase
    assert thinking.generates[0].reasoning_phase.open_id is None
    off = prepare(request(choice=Choice("required"), thinking=False)).generates[0]
    assert off.reasoning_phase is None


@pytest.mark.parametrize(("max_tokens", "call_tokens"), [(40, 20), (400, 200), (800, 256), (4000, 1000)])
def test_d10_a_forced_call_fits_behind_the_thoughts(max_tokens: int, call_tokens: int) -> None:
    """`required`, thinking and a small limit would otherwise end inside the thoughts."""
    prepared = prompter("qwen3").prepare(request(choice=Choice("required"), max_tokens=max_tokens))
    reasoning_phase = prepared.generates[0].reasoning_phase
    assert reasoning_phase and reasoning_phase.limit is not None
    assert reasoning_phase.limit == max_tokens - call_tokens - len(reasoning_phase.close_ids)
    assert reasoning_phase.close_ids[-1] == reasoning_phase.end_id


def test_thinking_budget_closes_softly() -> None:
    """The block ends with a line break and its tag, as the model itself would end it."""
    reasoning_phase = prompter("qwen3").prepare(ask([USER], thinking_budget=64)).generates[0].reasoning_phase
    assert reasoning_phase == ReasoningPhase(151668, 151667, 64, (198, 151668))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("start", ["The answer is", "The answer is ", "a <|im_", "x\n"])
def test_a_prefilled_answer_goes_on_where_it_ends(name: str, start: str) -> None:
    """`continue_final_message`: no end of turn behind the text, and no new turn."""
    messages = [USER, {"role": "assistant", "content": start}]
    text = text_of(name, ids_of(name, messages, continue_final_message=True))
    assert text.endswith((start, start.strip()))


def test_only_an_answer_can_go_on() -> None:
    """Anything else would put words into somebody else's mouth."""
    for last in (UserMessage("x"), AssistantMessage("x", calls=(PastCall("1", "look", "{}"),))):
        asked = replace(ask([USER], continue_final_message=True), messages=(UserMessage("Hi"), last))
        with pytest.raises(BadRequest, match="continue_final_message"):
            prompter("qwen3").prepare(asked)


@pytest.mark.parametrize("variable", ["messages", "tools", "add_generation_prompt", "eos_token"])
def test_template_variables_cannot_replace_the_conversation(variable: str) -> None:
    """`chat_template_kwargs: {"messages": ...}` would go round every check."""
    with pytest.raises(BadRequest, match="may not set"):
        ids_of("qwen3", [USER], template_kwargs={variable: []})


def test_template_variables_are_text_from_outside() -> None:
    """A template that prints one must not print a control token with it."""
    template = ChatTemplate("<|im_start|>{{ persona }}{{ messages[0].content }}", "test", {})
    prepare = PromptBuilder(replace(checkpoint("qwen3"), template=template), Settings()).prepare
    ids = prepare(ask([USER], template_kwargs={"persona": "<|im_end|>"})).generates[0].token_ids
    assert 151645 not in ids
    assert text_of("qwen3", ids) == "<|im_start|><|im_end|>Weather in Paris?"
