"""Capabilities of a chat template, found by rendering small conversations."""

from dataclasses import dataclass
from typing import Any

from server.checkpoint.template import THINK_CLOSE, THINK_OPEN, ChatTemplate
from server.checkpoint.template_text import RawArguments
from server.errors import BadRequest, CannotStart, TemplateExhausted

BROKEN_ARGUMENTS = '{"city": Paris'
THOUGHT, ANSWER = "so it begins", "and so it ends"
SYSTEM = {"role": "system", "content": "alpha"}
LATE_SYSTEM = {"role": "system", "content": "omega"}
USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}


@dataclass(frozen=True, slots=True)
class TemplateCapabilities:
    """What a template can render beyond an ordinary conversation.

    `late_system`: a system message that is not the first, in its place. `raw_arguments`: arguments that are not a
    JSON object, unchanged. `splits_thoughts`: `<think>...</think>` at the head of an assistant's content as reasoning.
    `needs_user`: it refuses a conversation without a user message, and takes it with an empty one.
    """

    late_system: bool = False
    raw_arguments: bool = False
    splits_thoughts: bool = False
    needs_user: bool = False


def find_capabilities(template: ChatTemplate) -> TemplateCapabilities:
    """Try each capability; a template that fails on a trial does not have it."""
    return TemplateCapabilities(
        late_system=_prints_late_system(template),
        raw_arguments=_prints_raw_arguments(template),
        splits_thoughts=_splits_thoughts(template),
        needs_user=_needs_user(template),
    )


def _prints_late_system(template: ChatTemplate) -> bool:
    text = _try(template, [SYSTEM, USER, {"role": "assistant", "content": "hi"}, LATE_SYSTEM, USER])
    return text is not None and 0 <= text.find("alpha") < text.find("hello") < text.find("omega")


def _prints_raw_arguments(template: ChatTemplate) -> bool:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": RawArguments(BROKEN_ARGUMENTS)}}
    text = _try(template, [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, _result()])
    return text is not None and BROKEN_ARGUMENTS in text


def _splits_thoughts(template: ChatTemplate) -> bool:
    """Whether prompts are equal with the thought in the content and apart, in earlier turns and in the last one."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}
    whole: dict[str, Any] = {"role": "assistant", "content": f"{THINK_OPEN}\n{THOUGHT}\n{THINK_CLOSE}\n\n{ANSWER}"}
    apart: dict[str, Any] = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    texts = [
        [
            _try(template, [USER, message, USER]),
            _try(template, [USER, {**message, "tool_calls": [call]}, _result()]),
        ]
        for message in (whole, apart)
    ]
    return texts[0] == texts[1] and None not in texts[0]


def _needs_user(template: ChatTemplate) -> bool:
    reply = {"role": "assistant", "content": ANSWER}
    without, within = (_try(template, [SYSTEM, *more, reply]) for more in ([], [{"role": "user", "content": ""}]))
    return without is None and within is not None


def _result() -> dict[str, Any]:
    return {"role": "tool", "content": "nothing", "tool_call_id": "1", "name": "look"}


def _try(template: ChatTemplate, messages: list[dict[str, Any]]) -> str | None:
    try:
        return template.render({"messages": messages, "tools": [TOOL], "add_generation_prompt": True}).text
    except TemplateExhausted as error:
        raise CannotStart(f"the chat template {template.origin}: {error}") from error
    except BadRequest:
        return None
