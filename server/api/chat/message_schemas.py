"""Schemas of the messages of a chat request. Rules between messages (ids, order) are in `conversation.py`."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from server.api.body import kind_of
from server.api.chat.content import OTHER_MODALITIES, as_json, plain_parts, plain_result
from server.api.chat.fields import Part, is_strict, name_of, tag_by, tagged
from server.api.chat.validation_errors import fault, missing, wrong_type

ROLES = ("system", "assistant", "user", "function", "tool", "developer")
# As OpenAI lists them, whose list leaves out the role of a message that answers a call.
NAMED_ROLES = "'system', 'assistant', 'user', 'function', 'tool', and 'developer'"
LONGEST_NAME = 128
MAX_ITEMS = 2048  # parts or calls of one message: validated in one go, in which no other thread runs


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


def _parts(*kinds: str, json_too: bool = False) -> Callable[[Any, ValidationInfo], Any]:
    """A check of the parts' kinds. This server reads text: any other modality is refused, not skipped.

    Unless the server is strict a part may stand alone or be a bare string, and with `json_too` data is its JSON.
    """

    def check(content: Any, info: ValidationInfo) -> Any:
        if content is None or isinstance(content, str):
            return content
        if is_strict(info):
            return _checked_parts(content, tuple(kind for kind in kinds if kind != "thinking"))
        parts = plain_result(content) if json_too else plain_parts(content, thoughts="thinking" in kinds)
        return parts if isinstance(parts, str) or parts == [] else _checked_parts(parts, kinds)

    return check


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
AnyContent = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[
        list[
            Annotated[
                Annotated[TextPart, Tag("~text")]
                | Annotated[RefusalPart, Tag("~refusal")]
                | Annotated[ThoughtPart, Tag("~thinking")],
                Discriminator(tag_by("type")),
            ]
        ],
        Field(max_length=MAX_ITEMS),
        Tag("~parts"),
    ],
    Discriminator(lambda content: "~text" if isinstance(content, str) else "~parts"),
]
OfText = Annotated[TextContent | None, BeforeValidator(_parts("text"))]
OfResult = Annotated[TextContent | None, BeforeValidator(_parts("text", json_too=True))]
OfAnything = Annotated[AnyContent | None, BeforeValidator(_parts("text", "refusal", "thinking"))]


class ChatSystemMessage(Part):
    """Instructions; `developer` is the newer name of `system`, and both may come late."""

    role: Literal["system", "developer"]
    content: OfText = None
    name: str | None = None


class ChatUserMessage(Part):
    """What the user says."""

    role: Literal["user"]
    content: OfText = None
    name: str | None = None


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


def _openai_name(name: str, info: ValidationInfo) -> str:
    return name_of(LONGEST_NAME)(name, info) if is_strict(info) else name


PastName = Annotated[str, BeforeValidator(_past_name), AfterValidator(_openai_name)]


PastId = Annotated[str, BeforeValidator(_past_id)]
PastArguments = Annotated[str | dict[str, Any] | None, BeforeValidator(_past_arguments)]


def with_name(value: Any, info: ValidationInfo) -> Any:
    """A call in the history; one without a name has an empty one."""
    return value if is_strict(info) or not isinstance(value, dict) else {"name": "", **value}


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

    id: PastId
    type: Literal["function"] = "function"
    function: PastFunction


class PastCustomCall(Part):
    """An earlier call of a custom tool."""

    id: PastId
    type: Literal["custom"]
    custom: CalledCustom


def _call_kind(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, dict) and (value.get("type") is None or (value["type"] == "" and not is_strict(info))):
        value = {**value, "type": "function"}
    return value


AnyPastCall = Annotated[
    Annotated[PastFunctionCall, Tag("~function")] | Annotated[PastCustomCall, Tag("~custom")],
    Discriminator(tag_by("type")),
    tagged("type", ("function", "custom")),
    BeforeValidator(_call_kind),
]


class ChatAssistantMessage(Part):
    """An earlier reply, as it was received or as the client made it up; `tool_calls: []` is none."""

    role: Literal["assistant"]
    content: OfAnything = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = Field(None, description="Extension. Other servers' name of `reasoning_content`.")
    thinking: Any = Field(None, description="Extension. Other servers' name of `reasoning_content`.")
    reasoning_details: Any = Field(None, description="Extension. Proxies' form of `reasoning_content`, in parts.")
    thinking_blocks: Any = Field(None, description="Extension. Proxies' form of `reasoning_content`, in parts.")
    tool_calls: Annotated[list[AnyPastCall], Field(max_length=MAX_ITEMS)] | None = None
    function_call: PastFunction | None = None


class ChatToolMessage(Part):
    """The result of a call. `id` is read where `tool_call_id` is missing."""

    role: Literal["tool"]
    content: OfResult = None
    tool_call_id: PastId | None = None
    id: PastId | None = None
    name: str | None = None


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
