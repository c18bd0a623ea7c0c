"""A conversation as clients write it -> the shape that chat templates are written for.

One system message at the head, plain text for content, arguments as objects, results in the order of their calls.
What a template can do by itself it does by itself: `TemplateCapabilities` says what that is, found out by trying.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from server.checkpoint.capabilities import TemplateCapabilities
from server.checkpoint.template import THINK_CLOSE, THINK_OPEN
from server.checkpoint.template_environment import RawArguments

DEEPEST = 64  # levels of arguments; deeper ones are kept as text
LEGACY_ID = "call_legacy_{}"


@dataclass(frozen=True, slots=True)
class NormalizedMessage:
    """One message for the template, and the positions of the client's messages that it stands for."""

    message: dict[str, Any]
    sources: tuple[int, ...]

    @property
    def role(self) -> str:
        """system, user, assistant or tool."""
        return str(self.message["role"])


def normalize_messages(
    messages: Sequence[Mapping[str, Any]], capabilities: TemplateCapabilities
) -> list[NormalizedMessage]:
    """The messages in template shape. Nothing that a message says is lost; unknown keys are."""
    shaped = [_shape_one(message, i, capabilities) for i, message in enumerate(messages)]
    return _gather_system(_order_results(_link_legacy(shaped)), capabilities)


def normalize_tools(definitions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools as they were sent; a custom tool is shown as a function of one text, which is how calls write it."""
    return [_shape_custom(tool["custom"]) if "custom" in tool else dict(tool) for tool in definitions]


def text_of(content: Any) -> str:
    """The text of a message's content: a string, parts (joined as they stand), or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)


def read_arguments(written: Any) -> dict[str, Any] | RawArguments:
    """Arguments of an earlier call: an object, its JSON, that JSON quoted once more, or nothing at all.

    Anything else is kept as the text that it is.
    """
    if written is None:
        return {}
    if isinstance(written, Mapping):
        return dict(written)
    text = str(written)
    if not text.strip():
        return {}
    try:
        value = _read_json(text)
        if isinstance(value, str):
            value = _read_json(value)
    except (ValueError, RecursionError):
        return RawArguments(text)
    return value if isinstance(value, dict) and not _is_deeper(value, DEEPEST) else RawArguments(text)


def _shape_one(message: Mapping[str, Any], position: int, capabilities: TemplateCapabilities) -> NormalizedMessage:
    role = message["role"]
    text = text_of(message.get("content"))
    if role in ("system", "developer"):
        return NormalizedMessage({"role": "system", "content": text}, (position,))
    if role == "assistant":
        return NormalizedMessage(_shape_assistant(message, text, capabilities), (position,))
    named = {"name": message["name"]} if isinstance(message.get("name"), str) else {}
    if role in ("tool", "function"):
        shaped = {"role": "tool", "content": text, "tool_call_id": message.get("tool_call_id") or message.get("id")}
        return NormalizedMessage(_without_none(shaped) | named, (position,))
    return NormalizedMessage({"role": "user", "content": text} | named, (position,))


def _shape_assistant(message: Mapping[str, Any], text: str, capabilities: TemplateCapabilities) -> dict[str, Any]:
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(thought, str) or not thought:
        thought = None
    text = text or str(message.get("refusal") or "")
    if thought is None and capabilities.splits_thoughts:
        thought, text = _split_thought(text)
    calls = [_shape_call(call, capabilities) for call in message.get("tool_calls") or ()]
    if not calls and message.get("function_call"):
        calls = [_shape_call({"function": message["function_call"]}, capabilities)]
    return _without_none(
        {"role": "assistant", "content": text, "reasoning_content": thought, "tool_calls": calls or None}
    )


def _split_thought(text: str) -> tuple[str | None, str]:
    """Thought and answer of a reply that was sent back whole. A tag mentioned further on is text like any other."""
    head = text.lstrip()
    if THINK_CLOSE not in head or not head.startswith(THINK_OPEN):
        return None, text
    thought, answer = head.removeprefix(THINK_OPEN).split(THINK_CLOSE, 1)
    return thought.strip("\n"), answer.lstrip("\n")


def _shape_call(call: Mapping[str, Any], capabilities: TemplateCapabilities) -> dict[str, Any]:
    custom = call.get("custom")
    arguments: dict[str, Any] | RawArguments
    if custom:
        name, arguments = custom["name"], {"input": custom.get("input") or ""}
    else:
        name, arguments = call["function"]["name"], read_arguments(call["function"].get("arguments"))
        if isinstance(arguments, RawArguments) and not capabilities.raw_arguments:
            arguments = {"arguments": str(arguments)}
    function = {"name": name, "arguments": arguments}
    return _without_none({"id": call.get("id"), "type": "function", "function": function})


def _shape_custom(custom: Mapping[str, Any]) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    grammar = (custom.get("format") or {}).get("grammar")
    if grammar:
        text["description"] = f"Text of this {grammar['syntax']} grammar: {grammar['definition']}"
    parameters = {"type": "object", "properties": {"input": text}, "required": ["input"]}
    function = {"name": custom["name"], "description": custom.get("description"), "parameters": parameters}
    return {"type": "function", "function": _without_none(function)}


def _link_legacy(shaped: Iterable[NormalizedMessage]) -> list[NormalizedMessage]:
    """Calls and results of the legacy `function_call`, which has no ids, are given some."""
    linked: list[NormalizedMessage] = []
    latest = LEGACY_ID.format(0)
    for one in shaped:
        message = one.message
        calls = message.get("tool_calls")
        if calls and "id" not in calls[0]:
            latest = LEGACY_ID.format(one.sources[0])
            message = {**message, "tool_calls": [{"id": latest, **calls[0]}]}
        elif message["role"] == "tool" and "tool_call_id" not in message:
            message = {**message, "tool_call_id": latest}
        linked.append(replace(one, message=message))
    return linked


def _order_results(shaped: Sequence[NormalizedMessage]) -> list[NormalizedMessage]:
    """Results in the order of the calls they answer: that is how models have seen them."""
    ordered: list[NormalizedMessage] = []
    order: dict[str, int] = {}
    i = 0
    while i < len(shaped):
        if shaped[i].role != "tool":
            order = {call.get("id"): at for at, call in enumerate(shaped[i].message.get("tool_calls") or ())}
            ordered.append(shaped[i])
            i += 1
            continue
        end = i
        while end < len(shaped) and shaped[end].role == "tool":
            end += 1
        ordered += sorted(shaped[i:end], key=lambda one: order.get(one.message["tool_call_id"], len(order)))
        i = end
    return ordered


def _gather_system(shaped: Sequence[NormalizedMessage], capabilities: TemplateCapabilities) -> list[NormalizedMessage]:
    """One system message at the head, of its leading ones, or of all where the template takes none later."""
    head = 0
    while head < len(shaped) and shaped[head].role == "system":
        head += 1
    late_too = not capabilities.late_system
    gathered = [one for i, one in enumerate(shaped) if one.role == "system" and (i < head or late_too)]
    others = [one for i, one in enumerate(shaped) if one.role != "system" or (i >= head and not late_too)]
    if not gathered:
        return others
    text = "\n\n".join(one.message["content"] for one in gathered if one.message["content"])
    sources = tuple(source for one in gathered for source in one.sources)
    return [NormalizedMessage({"role": "system", "content": text}, sources), *others]


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _read_json(text: str) -> Any:
    """Strictly: what would not come out of `json.dumps` as it went in is refused."""
    return json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=_no_constant, parse_float=_finite)


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(
        _is_deeper(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
