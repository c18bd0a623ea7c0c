"""Normalize a conversation for chat templates.

One system message first, plain text for content, arguments as objects. What a template can do by itself it does by
itself: `TemplateCapabilities` says what that is.
"""

import json
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import isfinite
from typing import Any

from server.chat_request import AssistantMessage, Message, PastCall, SystemMessage, ToolMessage, UserMessage
from server.checkpoint.capabilities import TemplateCapabilities
from server.checkpoint.template import THINK_CLOSE, THINK_OPEN
from server.checkpoint.template_text import RawArguments
from server.dialects.base import CallId
from server.dialects.schema.normalize import without_nulls

RESULT_OPEN, RESULT_CLOSE = "<tool_response>", "</tool_response>"  # as Qwen's templates write results
DEEPEST = 64  # levels of arguments; deeper ones are kept as text


@dataclass(frozen=True, slots=True)
class NormalizedMessage:
    """One message for the template, and the positions in the request's messages that it stands for, none if added."""

    message: dict[str, Any]
    sources: tuple[int, ...]

    @property
    def role(self) -> str:
        """system, user, assistant or tool."""
        return str(self.message["role"])


def normalize_messages(
    messages: Sequence[Message],
    capabilities: TemplateCapabilities,
    call_id: CallId | None = None,
    tool_names: Collection[str] = (),
) -> list[NormalizedMessage]:
    """The messages in the form that chat templates are written for. Nothing that a message says is lost.

    `call_id` is the dialect's: where it has one, calls and their results get its ids instead of the client's.
    `tool_names` are the names of the request's tools.
    """
    named = messages if call_id is None else _with_call_ids(messages, call_id, tool_names)
    normalized = [
        NormalizedMessage(_normalize(message, capabilities), (position,)) for position, message in enumerate(named)
    ]
    gathered = _gather_system(normalized, capabilities)
    return _with_user(gathered) if capabilities.needs_user else gathered


def normalize_tools(definitions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools as they were sent, without fields and keywords that are null, which templates print as `None`.

    A custom tool is shown as a function of one text, which is how calls write it.
    """
    return [
        _normalize_custom(tool["custom"]) if tool.get("type") == "custom" else _normalize_function(tool)
        for tool in definitions
    ]


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


def _with_call_ids(messages: Sequence[Message], call_id: CallId, tool_names: Collection[str]) -> Iterator[Message]:
    """Calls with the ids of their format, counted over the conversation; results with that of the call they answer.

    Where several calls of one message have the same id, the results answer them in order. A result of no call keeps
    its id.
    """
    numbers = count()
    open_calls: dict[str, deque[str]] = {}
    for message in messages:
        match message:
            case AssistantMessage(calls=calls):
                ids = [call_id(call.name, next(numbers), tool_names) for call in calls]
                open_calls |= {call.id: deque() for call in calls}
                for call, new in zip(calls, ids, strict=True):
                    open_calls[call.id].append(new)
                yield replace(message, calls=tuple(replace(call, id=new) for call, new in zip(calls, ids, strict=True)))
            case ToolMessage(call_id=old) if waiting := open_calls.get(old):
                yield replace(message, call_id=waiting.popleft() if len(waiting) > 1 else waiting[0])
            case _:
                yield message


def _normalize(message: Message, capabilities: TemplateCapabilities) -> dict[str, Any]:
    match message:
        case SystemMessage(text):
            return {"role": "system", "content": text}
        case UserMessage(text, name):
            return _without_none({"role": "user", "content": text, "name": name})
        case AssistantMessage():
            return _normalize_assistant(message, capabilities)
        case ToolMessage(text, call_id, name):
            return _without_none({"role": "tool", "content": text, "tool_call_id": call_id, "name": name})


def _normalize_assistant(message: AssistantMessage, capabilities: TemplateCapabilities) -> dict[str, Any]:
    reasoning, text = message.reasoning, message.text
    if reasoning is None and capabilities.splits_thoughts:
        reasoning, text = _split_thought(text)
    calls = [_normalize_call(call, capabilities) for call in message.calls]
    return _without_none(
        {"role": "assistant", "content": text, "reasoning_content": reasoning, "tool_calls": calls or None}
    )


def _split_thought(text: str) -> tuple[str | None, str]:
    """Thought and answer of a reply that was sent back whole. A tag mentioned further on is text like any other: with
    an empty thought beside it the template does not look for one.
    """
    head = text.lstrip()
    if THINK_CLOSE not in head:
        return None, text
    if not head.startswith(THINK_OPEN):
        return "", text
    thought, answer = head.removeprefix(THINK_OPEN).split(THINK_CLOSE, 1)
    return thought.strip("\n"), answer.lstrip("\n")


def _normalize_call(call: PastCall, capabilities: TemplateCapabilities) -> dict[str, Any]:
    arguments: dict[str, Any] | RawArguments
    if call.custom:
        arguments = {"input": call.arguments or ""}
    else:
        arguments = read_arguments(call.arguments)
        if isinstance(arguments, RawArguments) and not capabilities.raw_arguments:
            arguments = {"arguments": str(arguments)}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _normalize_function(tool: Mapping[str, Any]) -> dict[str, Any]:
    shown = _without_none(tool)
    if isinstance(function := shown.get("function"), Mapping):
        shown["function"] = _without_none(function)
        if "parameters" in shown["function"]:
            shown["function"]["parameters"] = without_nulls(function["parameters"])
    return shown


def _normalize_custom(custom: Mapping[str, Any]) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    grammar = (custom.get("format") or {}).get("grammar")
    if grammar:
        text["description"] = f"Text of this {grammar['syntax']} grammar: {grammar['definition']}"
    parameters = {"type": "object", "properties": {"input": text}, "required": ["input"]}
    function = {"name": custom["name"], "description": custom.get("description"), "parameters": parameters}
    return {"type": "function", "function": _without_none(function)}


def _gather_system(
    normalized: Sequence[NormalizedMessage], capabilities: TemplateCapabilities
) -> list[NormalizedMessage]:
    """One system message at the head, of its leading ones, or where the template takes none later of all before the
    first reply.

    What comes behind a reply stays there, in the text of what surrounds it: agents add reminders turn by turn, and at
    the head each would change the whole prompt.
    """
    end = next((i for i, one in enumerate(normalized) if one.role != "system"), len(normalized))
    if not capabilities.late_system:
        end = next((i for i, one in enumerate(normalized) if one.role == "assistant"), len(normalized))
    gathered = [one for one in normalized[:end] if one.role == "system"]
    others = [one for i, one in enumerate(normalized) if one.role != "system" or i >= end]
    if not capabilities.late_system:
        others = _in_surroundings(others)
    if not gathered:
        return others
    text = "\n\n".join(one.message["content"] for one in gathered if one.message["content"])
    sources = tuple(source for one in gathered for source in one.sources)
    return [NormalizedMessage({"role": "system", "content": text}, sources), *others]


def _in_surroundings(messages: Sequence[NormalizedMessage]) -> list[NormalizedMessage]:
    """System messages as text of the result or user message before them, or else of a user message, the next if any."""
    placed: list[NormalizedMessage] = []
    is_open = False  # the last one is a user message of such text alone
    for one in messages:
        if one.role == "system" and not (placed and placed[-1].role in ("user", "tool")):
            placed.append(NormalizedMessage({**one.message, "role": "user"}, one.sources))
            is_open = True
        elif one.role == "system" or (one.role == "user" and is_open):
            placed[-1] = _joined(placed[-1], one)
            is_open = is_open and one.role == "system"
        else:
            placed.append(one)
            is_open = False
    return placed


def _joined(one: NormalizedMessage, other: NormalizedMessage) -> NormalizedMessage:
    text = "\n\n".join(each.message["content"] for each in (one, other) if each.message["content"])
    return NormalizedMessage({**one.message, "content": text}, one.sources + other.sources)


def _with_user(messages: list[NormalizedMessage]) -> list[NormalizedMessage]:
    """The messages with an empty one of the user where there is none, as in histories that a client has compacted.

    A user message that is a tool's result in the tags of the template is none.
    """
    texts = [one.message["content"].strip() for one in messages if one.role == "user"]
    if not all(text.startswith(RESULT_OPEN) and text.endswith(RESULT_CLOSE) for text in texts):
        return messages
    head = sum(one.role == "system" for one in messages[:1])
    return [*messages[:head], NormalizedMessage({"role": "user", "content": ""}, ()), *messages[head:]]


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
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
        raise ValueError("duplicate key")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
