"""Schemas of the messages of a chat request. Rules between messages (ids, order) are in `conversation.py`."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from server.api.body import kind_of
from server.api.chat.content import (
    OTHER_MODALITIES,
    as_json,
    call_or_result,
    is_part,
    is_result,
    plain_parts,
    plain_result,
)
from server.api.chat.fields import Part, is_strict, name_of, tag_by, tag_checked
from server.api.chat.validation_errors import fault, missing, wrong_type

ROLES = ("system", "assistant", "user", "function", "tool", "developer")
# As OpenAI lists them, whose list leaves out the role of a message that answers a call.
NAMED_ROLES = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"
LONGEST_NAME = 128
MAX_ITEMS = 2048  # parts or calls of one message: validated in one go, in which no other thread runs
OTHER_PARTS = ("thinking", "tool_use", "tool_result")  # of other APIs: refused with `--strict`


def _past_name(name: Any, info: ValidationInfo) -> Any:
    """What the model wrote as a name; names that are none are shown to it like any other text."""
    if is_strict(info) or isinstance(name, str):
        return name
    return "" if name is None else as_json(name)


def _past_arguments(arguments: Any, info: ValidationInfo) -> Any:
    """PHP writes an empty object as an empty array; other values are shown as their JSON."""
    if is_strict(info) or arguments is None or isinstance(arguments, str | dict):
        return arguments
    return {} if arguments == [] else as_json(arguments)


def _past_id(value: Any, info: ValidationInfo) -> Any:
    """The id of a call; some programs number them."""
    return str(value) if type(value) is int and not is_strict(info) else value


def _own_id(value: Any, info: ValidationInfo) -> Any:
    """The id of a call, "" where it has none."""
    if value == "" and is_strict(info):
        text = "Invalid '{P}': empty string. Expected a string with minimum length 1, but got an empty string"
        raise fault("empty_string", f"{text} instead.")
    return "" if value is None and not is_strict(info) else _past_id(value, info)


def _openai_name(name: str, info: ValidationInfo) -> str:
    return name_of(LONGEST_NAME)(name, info) if is_strict(info) else name


PastName = Annotated[str, BeforeValidator(_past_name), AfterValidator(_openai_name)]
PastId = Annotated[str, BeforeValidator(_past_id)]
OwnId = Annotated[str, BeforeValidator(_own_id)]
PastArguments = Annotated[str | dict[str, Any] | None, BeforeValidator(_past_arguments)]


def with_name(value: Any, info: ValidationInfo) -> Any:
    """A call in the history; one without a name has an empty one."""
    return value if is_strict(info) or not isinstance(value, dict) else {"name": "", **value}


def with_own(name: str) -> Callable[[Any, ValidationInfo], Any]:
    """A check that a call or its result has this member, which may be missing unless the server is strict."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, dict) and name not in value and is_strict(info):
            raise missing(f".{name}")
        return value

    return check


class TextPart(Part):
    """A piece of text."""

    type: Literal["text"]
    text: str


class RefusalPart(Part):
    """What an earlier reply refused with."""

    type: Literal["refusal"]
    refusal: str


class ThoughtPart(Part):
    """Extension. Reasoning of an earlier reply, as other servers and proxies write it; encrypted parts are empty."""

    type: Literal["thinking", "reasoning", "redacted_thinking"]
    thinking: str


class CallPart(Part):
    """Extension. A call of an earlier reply as a part of its content, as Anthropic writes it."""

    type: Literal["tool_use"]
    id: OwnId = ""
    name: PastName
    input: PastArguments = None

    _named = model_validator(mode="before")(with_name)


def _parts(*kinds: str, json_too: bool = False) -> Callable[[Any, ValidationInfo], Any]:
    """A check of the parts' kinds. This server reads text: any other modality is refused, not skipped.

    Unless the server is strict a part may stand alone or be a bare string, and with `json_too` data is its JSON.
    """

    def check(content: Any, info: ValidationInfo) -> Any:
        if content is None or isinstance(content, str):
            return content
        if is_strict(info):
            return _checked_parts(content, tuple(kind for kind in kinds if kind not in OTHER_PARTS))
        if json_too:
            parts = plain_result(content, _is_part_or_result if "tool_result" in kinds else is_part)
        else:
            parts = plain_parts(content, thoughts="thinking" in kinds)
        if isinstance(parts, list) and not {"tool_use", "tool_result"}.isdisjoint(kinds):
            parts = [call_or_result(part) for part in parts]
        return parts if isinstance(parts, str) or parts == [] else _checked_parts(parts, kinds)

    return check


def _is_part_or_result(item: Any) -> bool:
    """Whether an item of a tool message is a part, or a result as other APIs write it."""
    return is_part(item) or is_result(item)


def _checked_parts(content: Any, kinds: tuple[str, ...]) -> list[Any]:
    if not isinstance(content, list):
        text = f"expected one of a string or array of objects, but got {kind_of(content)} instead."
        raise fault("invalid_type", f"Invalid type for '{{P}}': {text}")
    if content == []:
        text = "empty array. Expected an array with minimum length 1, but got an empty array instead."
        raise fault("empty_array", f"Invalid '{{P}}': {text}")
    for position, part in enumerate(content):
        _check_part(part, f"[{position}]", kinds)
    return content


def _check_part(part: Any, at: str, kinds: tuple[str, ...]) -> None:
    if not isinstance(part, dict):
        raise wrong_type("an object", part, at)
    kind = part.get("type")
    if kind is None:
        raise missing(f"{at}.type")
    if kind in OTHER_MODALITIES:
        raise fault("unsupported_value", f"Invalid '{{P}}': this model reads text, not '{kind}'.", at)
    if kind not in kinds:
        supported = " and ".join(f"'{name}'" for name in kinds)
        raise fault("invalid_value", f"Invalid value: '{kind}'. Supported values are: {supported}.", f"{at}.type")


TextContent = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[TextPart], Field(max_length=MAX_ITEMS), Tag("~parts")],
    Discriminator(lambda content: "~text" if isinstance(content, str) else "~parts"),
]
OfText = Annotated[TextContent | None, BeforeValidator(_parts("text"))]
OfResult = Annotated[TextContent | None, BeforeValidator(_parts("text", json_too=True))]


class ResultPart(Part):
    """Extension. The result of the call `tool_use_id` as a part of a message, as Anthropic writes it."""

    type: Literal["tool_result"]
    tool_use_id: OwnId = ""
    name: str | None = None
    content: OfResult = None
    is_error: bool | None = None


ReplyContent = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[
        list[
            Annotated[
                Annotated[TextPart, Tag("~text")]
                | Annotated[RefusalPart, Tag("~refusal")]
                | Annotated[ThoughtPart, Tag("~thinking")]
                | Annotated[CallPart, Tag("~tool_use")],
                Discriminator(tag_by("type")),
            ]
        ],
        Field(max_length=MAX_ITEMS),
        Tag("~parts"),
    ],
    Discriminator(lambda content: "~text" if isinstance(content, str) else "~parts"),
]
ContentWithResults = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[
        list[
            Annotated[
                Annotated[TextPart, Tag("~text")] | Annotated[ResultPart, Tag("~tool_result")],
                Discriminator(tag_by("type")),
            ]
        ],
        Field(max_length=MAX_ITEMS),
        Tag("~parts"),
    ],
    Discriminator(lambda content: "~text" if isinstance(content, str) else "~parts"),
]
OfUser = Annotated[ContentWithResults | None, BeforeValidator(_parts("text", "tool_result"))]
OfTool = Annotated[ContentWithResults | None, BeforeValidator(_parts("text", "tool_result", json_too=True))]
OfReply = Annotated[ReplyContent | None, BeforeValidator(_parts("text", "refusal", "thinking", "tool_use"))]


class ChatSystemMessage(Part):
    """Instructions; `developer` is the newer name of `system`, and both may come late."""

    role: Literal["system", "developer"]
    content: OfText = None
    name: str | None = None


class ChatUserMessage(Part):
    """What the user says."""

    role: Literal["user"]
    content: OfUser = None
    name: str | None = None


class PastFunction(Part):
    """A call in the history. `arguments` should be a string of JSON; an object or nonsense is taken as it is."""

    name: PastName
    arguments: PastArguments = None

    _named = model_validator(mode="before")(with_name)


class CalledCustom(Part):
    """A call of a custom tool in the history."""

    name: PastName
    input: str

    _named = model_validator(mode="before")(with_name)


class PastFunctionCall(Part):
    """An earlier call of a function tool."""

    id: OwnId = ""
    type: Literal["function"] = "function"
    function: PastFunction

    _identified = model_validator(mode="before")(with_own("id"))


class PastCustomCall(Part):
    """An earlier call of a custom tool."""

    id: OwnId = ""
    type: Literal["custom"]
    custom: CalledCustom

    _identified = model_validator(mode="before")(with_own("id"))


class FlatCall(Part):
    """Extension. An earlier call without an object around its name, as the Responses API and frameworks write it."""

    id: OwnId = ""
    call_id: OwnId = ""
    type: str | None = None
    name: PastName
    arguments: PastArguments = None
    args: PastArguments = None
    input: PastArguments = None


def _call_kind(value: Any, info: ValidationInfo) -> Any:
    """A call under the type of its form, whatever type it has."""
    if not isinstance(value, dict):
        return value
    if is_strict(info):
        return {**value, "type": "function"} if value.get("type") is None else value
    kinds = [kind for kind in ("function", "custom") if isinstance(value.get(kind), dict)]
    if kinds:
        return value if value.get("type") in kinds else {**value, "type": kinds[0]}
    return {**value, "type": value.get("type") or "function"}


def _is_flat(value: Any) -> bool:
    if not isinstance(value, dict):
        return isinstance(value, FlatCall)
    return value.get("name") is not None and not any(isinstance(value.get(one), dict) for one in ("function", "custom"))


def _checked_call(value: Any, info: ValidationInfo) -> Any:
    value = _call_kind(value, info)
    is_flat = _is_flat(value)
    if is_flat and not is_strict(info):
        return value
    value = tag_checked(value, "type", ("function", "custom"))
    if is_flat:
        raise missing(f".{value['type']}")
    return value


AnyPastCall = Annotated[
    Annotated[PastFunctionCall, Tag("~function")]
    | Annotated[PastCustomCall, Tag("~custom")]
    | Annotated[FlatCall, Tag("~flat")],
    Discriminator(lambda call: "~flat" if _is_flat(call) else tag_by("type")(call)),
    BeforeValidator(_checked_call),
]


def _call_list(value: Any, info: ValidationInfo) -> Any:
    """The calls; one that stands alone is a list of one."""
    return [value] if isinstance(value, dict) and not is_strict(info) else value


PastCalls = Annotated[list[AnyPastCall], Field(max_length=MAX_ITEMS), BeforeValidator(_call_list)]


class ChatAssistantMessage(Part):
    """An earlier reply, as it was received or as the client made it up; `tool_calls: []` is none."""

    role: Literal["assistant"]
    content: OfReply = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = Field(None, description="Extension. Other servers' name of `reasoning_content`.")
    thinking: Any = Field(None, description="Extension. Other servers' name of `reasoning_content`.")
    reasoning_details: Any = Field(None, description="Extension. Proxies' form of `reasoning_content`, in parts.")
    thinking_blocks: Any = Field(None, description="Extension. Proxies' form of `reasoning_content`, in parts.")
    tool_calls: PastCalls | None = None
    function_call: PastFunction | None = None


class ChatToolMessage(Part):
    """The result of a call. `id` is read where `tool_call_id` is missing."""

    role: Literal["tool"]
    content: OfTool = None
    tool_call_id: PastId | None = None
    id: PastId | None = None
    name: str | None = None
    tool_name: str | None = Field(None, description="Extension. Ollama's name of `name`.")


class ChatFunctionMessage(Part):
    """The result of a legacy `function_call`."""

    role: Literal["function"]
    content: OfResult = None
    name: str


def _has_role(value: Any) -> Any:
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    role = value.get("role")
    if role is None:
        raise missing(".role")
    if not isinstance(role, str):
        raise wrong_type("a string", role, ".role")
    if role not in ROLES:
        text = f"Invalid value: '{role}'. Supported values are: {NAMED_ROLES}."
        raise fault("invalid_value", text, ".role")
    return value


def _role_tag(value: Any) -> str:
    role = value.get("role") if isinstance(value, dict) else value.role
    return f"~{'system' if role == 'developer' else role}"


AnyMessage = Annotated[
    Annotated[ChatSystemMessage, Tag("~system")]
    | Annotated[ChatUserMessage, Tag("~user")]
    | Annotated[ChatAssistantMessage, Tag("~assistant")]
    | Annotated[ChatToolMessage, Tag("~tool")]
    | Annotated[ChatFunctionMessage, Tag("~function")],
    Discriminator(_role_tag),
    BeforeValidator(_has_role),
]
