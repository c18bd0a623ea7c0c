"""Items of a response's input: validated as far as they are read, and kept as they were sent.

Hosted tools' items, and types that do not exist yet, are taken by their text where they have one; without one they are
left out, and a note says so.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema, model_validator
from pydantic.json_schema import SkipJsonSchema

from server.api.body import bad, kind_of
from server.api.chat.content import (
    OTHER_MODALITIES,
    is_part,
    is_thought,
    plain_parts,
    plain_result,
    thought_in,
)
from server.api.chat.fields import Part, is_strict
from server.api.chat.message_schemas import OwnId, PastArguments, PastName
from server.api.chat.validation_errors import fault, missing, not_supported_value, validated, wrong_type
from server.api.errors import RequestRefused
from server.api.responses.reasoning_seal import SUMMARY_PREFIX
from server.api.tool_forms import CALL_IDS, RESULT_IDS, id_in

MOST_ITEMS = 20_000
OTHER_PARTS = (*OTHER_MODALITIES, "computer_screenshot")
KNOWN_PARTS = ("computer_screenshot", "refusal", "summary_text", "reasoning_text")
TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


def _read_content(value: Any, info: ValidationInfo) -> str:
    if is_strict(info):
        return _text_of(value)
    return _text_of("" if value is None else plain_parts(value))


def _read_output(value: Any, info: ValidationInfo) -> str:
    return _text_of(value if is_strict(info) else result_parts(value))


def result_parts(value: Any) -> Any:
    """The output of a call as a string or as parts; data is its JSON, null is none."""
    return "" if value is None else plain_result(value, lambda part: is_part(part) or _kind_in(part) in KNOWN_PARTS)


def _kind_in(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


def _text_of(value: Any) -> str:
    """Text of a string or of parts, joined as they stand. This server reads text: other modalities are refused."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type("one of a string or array of objects", value)
    texts = []
    for position, part in enumerate(value):
        at = f"[{position}]"
        if not isinstance(part, dict):
            raise wrong_type("an object", part, at)
        kind = part.get("type")
        if kind is None:
            raise missing(f"{at}.type")
        if kind in OTHER_PARTS:
            raise fault("unsupported_value", f"Invalid '{{P}}': this model reads text, not '{kind}'.", at)
        if kind not in TEXT_PARTS:
            raise not_supported_value(kind, TEXT_PARTS, f"{at}.type")
        key = "refusal" if kind == "refusal" else "text"
        if not isinstance(part.get(key), str):
            raise missing(f"{at}.{key}") if part.get(key) is None else wrong_type("a string", part[key], f"{at}.{key}")
        texts.append(part[key])
    return "".join(texts)


_TEXTS = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"enum": TEXT_PARTS},
                    "text": {"type": "string"},
                    "refusal": {"type": "string"},
                },
                "required": ["type"],
            },
        },
    ]
}
ContentText = Annotated[str, BeforeValidator(_read_content), WithJsonSchema(_TEXTS)]
OutputText = Annotated[str, BeforeValidator(_read_output), WithJsonSchema(_TEXTS)]


class MessageItemIn(Part):
    """A message, short or in full; `thought` holds those of its parts that are thoughts (extension)."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: ContentText
    thought: Annotated[str, SkipJsonSchema()] = ""

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any, info: ValidationInfo) -> Any:
        content = value.get("content")
        if is_strict(info):
            return value
        if value.get("role") != "assistant" or not isinstance(content, list):
            return {**value, "content": content}
        thoughts = [part for part in content if is_thought(part)]
        texts = [part for part in content if not is_thought(part)]
        return {**value, "content": texts, "thought": thought_in(thoughts)}


class FunctionCallItemIn(Part):
    """An earlier call of a function tool."""

    type: Literal["function_call"]
    call_id: OwnId
    name: PastName
    arguments: PastArguments = None
    namespace: str | None = None
    status: str | None = None


class CustomCallItemIn(Part):
    """An earlier call of a custom tool."""

    type: Literal["custom_tool_call"]
    call_id: OwnId
    name: PastName
    input: str
    namespace: str | None = None
    status: str | None = None


class CallOutputItem(Part):
    """The result of a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: OwnId
    output: OutputText

    @model_validator(mode="before")
    @classmethod
    def _with_output(cls, value: Any, info: ValidationInfo) -> Any:
        return value if is_strict(info) else {"output": "", **value}


class ReasoningPartIn(Part):
    """Text of a thought or of its summary."""

    text: str


def _read_thoughts(value: Any, info: ValidationInfo) -> Any:
    return [{"text": value}] if isinstance(value, str) and not is_strict(info) else value


Thoughts = Annotated[list[ReasoningPartIn] | None, BeforeValidator(_read_thoughts)]


class ReasoningItemIn(Part):
    """An earlier thought."""

    type: Literal["reasoning"]
    content: Thoughts = None
    summary: Thoughts = None
    encrypted_content: str | None = None


class CompactionItemIn(Part):
    """A summary that this server made of earlier items."""

    type: Literal["compaction"]
    encrypted_content: str


class ItemReferenceIn(Part):
    """An item of a kept response, by its id."""

    type: Literal["item_reference"] = "item_reference"
    id: str


KnownItem = (
    MessageItemIn
    | FunctionCallItemIn
    | CustomCallItemIn
    | CallOutputItem
    | ReasoningItemIn
    | ItemReferenceIn
    | CompactionItemIn
)
_MODELS: Mapping[str, type[KnownItem]] = {
    "message": MessageItemIn,
    "function_call": FunctionCallItemIn,
    "custom_tool_call": CustomCallItemIn,
    "function_call_output": CallOutputItem,
    "custom_tool_call_output": CallOutputItem,
    "reasoning": ReasoningItemIn,
    "item_reference": ItemReferenceIn,
}


class OtherItem(Part):
    """An item of a hosted tool or of a type that is not known here; `text` "" is left out."""

    type: Annotated[str, WithJsonSchema({"type": "string", "not": {"enum": [*_MODELS]}})]
    text: Annotated[str, SkipJsonSchema()] = ""


InputItem = KnownItem | OtherItem


def read_items(value: Any, at: str = "input", strict: bool = False) -> list[InputItem]:
    """The items of an array; a string is one message of the user. Raises RequestRefused (400) for the first fault.

    `strict` takes names and contents as OpenAI does alone.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [MessageItemIn(role="user", content=value)]
    if not isinstance(value, list):
        raise _of_type("one of a string or array of objects", value, at)
    if len(value) > MOST_ITEMS:
        text = f"Invalid '{at}': array too long. Expected an array with maximum length {MOST_ITEMS}, but got an array"
        raise bad(f"{text} with length {len(value)} instead.", at, "array_above_max_length")
    return [
        _read_item(one, f"{at}[{position}]", strict)
        for position, item in enumerate(value)
        for one in ([item] if strict else in_responses_form(item))
    ]


def in_responses_form(item: Any) -> list[Any]:
    """A message of Chat Completions with calls, or with a result, as the items that it is."""
    if not isinstance(item, dict) or item.get("type") not in (None, "message"):
        return [item]
    if item.get("role") == "tool":
        call_id = id_in(item, RESULT_IDS)
        return [{"type": "function_call_output", "call_id": call_id, "output": item.get("content")}]
    calls = item.get("tool_calls")
    calls = [calls] if isinstance(calls, dict) else calls
    if (
        item.get("role") != "assistant"
        or not isinstance(calls, list)
        or not all(isinstance(one, dict) for one in calls)
    ):
        return [item]
    items = [{**_called(call), "call_id": id_in(call, CALL_IDS)} for call in calls]
    return [item, *items] if item.get("content") or not items else items


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    inner = call.get("custom", call.get("function"))
    kind = "custom_tool_call" if "custom" in call else "function_call"
    if isinstance(inner, dict):
        return {**inner, "type": kind}
    arguments = next((call[key] for key in ("arguments", "args", "input") if call.get(key) is not None), None)
    return {"name": call.get("name"), "arguments": arguments, "type": kind}


def kind_of_item(value: Mapping[str, Any]) -> Any:
    """The `type` of an item, which messages and references may leave out; None where it is none of those."""
    kind = value.get("type")
    if kind is None and "role" in value:
        return "message"
    return "item_reference" if kind is None and set(value) == {"id"} else kind


def _read_item(value: Any, at: str, strict: bool) -> InputItem:
    if not isinstance(value, dict):
        raise _of_type("an object", value, at)
    kind = kind_of_item(value)
    if kind is None:
        raise bad(f"Missing required parameter: '{at}.type'.", f"{at}.type", "missing_required_parameter")
    if not isinstance(kind, str):
        raise _of_type("a string", kind, f"{at}.type")
    model = _MODELS.get(kind)
    if kind == "compaction" and str(value.get("encrypted_content")).startswith(SUMMARY_PREFIX):
        model = CompactionItemIn  # those of other servers are items of an unknown type
    if model is None:
        return OtherItem(type=kind, text=_text_in(value))
    if not strict:
        value = value | {key: other for key, other in _instead_of(value) if value.get(key) is None}
    return validated(model, value | {"type": kind}, at, {"strict": strict})


def _instead_of(item: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What stands for members of a call or of its result that are missing."""
    yield "name", ""
    yield "call_id", item.get("id") or ""


def _of_type(expected: str, value: Any, at: str) -> RequestRefused:
    text = f"Invalid type for '{at}': expected {expected}, but got {kind_of(value)} instead."
    return bad(text, at, "invalid_type")


def _text_in(item: Mapping[str, Any]) -> str:
    """The text of an item whose type is not known: its content, output or text."""
    for key in ("content", "output", "text", "summary"):
        value = item.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list):
            texts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
            if any(texts):
                return "".join(texts)
    return ""
