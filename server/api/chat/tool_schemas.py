"""Schemas of tools and `tool_choice`."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from server.api.chat.fields import Part, name_of, tag_by, tagged
from server.api.chat.validation_errors import missing, not_supported_value, wrong_type

LONGEST_NAME = 128  # names that carry a server's prefix pass OpenAI's 64; `--strict` holds to 64
MOST_TOOLS = 128
ToolName = Annotated[str, AfterValidator(name_of(LONGEST_NAME))]


class SentPart(Part):
    """An object of a request that also keeps what the client sent, unknown keys and key order included."""

    _sent: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        part = validate(value)
        if isinstance(value, dict):
            part._sent = value
        return part

    @property
    def sent(self) -> dict[str, Any]:
        """The object as it was sent."""
        return self._sent


class Function(SentPart):
    """A function that the model may call; without `parameters` it takes no arguments."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(SentPart):
    """A tool whose arguments are JSON."""

    type: Literal["function"]
    function: Function


class Grammar(Part):
    """A grammar that a custom tool's text follows."""

    syntax: Literal["lark", "regex"]
    definition: str


class TextFormat(Part):
    """Free text."""

    type: Literal["text"]


class GrammarFormat(Part):
    """Text of a grammar."""

    type: Literal["grammar"]
    grammar: Grammar


CustomInputFormat = Annotated[
    Annotated[TextFormat, Tag("~text")] | Annotated[GrammarFormat, Tag("~grammar")],
    Discriminator(tag_by("type")),
    tagged("type", ("text", "grammar")),
]


class Custom(Part):
    """A tool that takes free text."""

    name: ToolName
    description: str | None = None
    format: CustomInputFormat | None = None


class CustomTool(SentPart):
    """A tool whose input is text, free or of a grammar."""

    type: Literal["custom"]
    custom: Custom


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("~function")] | Annotated[CustomTool, Tag("~custom")],
    Discriminator(tag_by("type")),
    tagged("type", ("function", "custom")),
]


class ToolChoice(Part):
    """The value of `tool_choice` in one form: `names` None is every tool."""

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None
    named: bool = False  # one tool, by name


def _read_choice(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise not_supported_value(value, ("none", "auto", "required"))
        return ToolChoice(mode=value)  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise wrong_type("one of a string or object", value)
    kind = value.get("type")
    if kind == "allowed_tools":
        return _read_allowed(value.get("allowed_tools"))
    if kind not in ("function", "custom"):
        if "function" not in value:
            raise missing(".function")
        raise not_supported_value(kind, ("function", "custom", "allowed_tools"), ".type")
    return ToolChoice(mode="required", names=(_name_in(value, kind, ""),), named=True)


def _read_allowed(value: Any) -> ToolChoice:
    at = ".allowed_tools"
    if not isinstance(value, dict):
        raise missing(at) if value is None else wrong_type("an object", value, at)
    mode, tools = value.get("mode"), value.get("tools")
    if mode not in ("auto", "required"):
        raise missing(f"{at}.mode") if mode is None else not_supported_value(mode, ("auto", "required"), f"{at}.mode")
    if not isinstance(tools, list):
        raise missing(f"{at}.tools") if tools is None else wrong_type("an array of objects", tools, f"{at}.tools")
    names = []
    for position, tool in enumerate(tools):
        where = f"{at}.tools[{position}]"
        if not isinstance(tool, dict):
            raise wrong_type("an object", tool, where)
        kind = tool.get("type", "function")
        if kind not in ("function", "custom"):
            raise not_supported_value(kind, ("function", "custom"), f"{where}.type")
        names.append(_name_in(tool, kind, where))
    return ToolChoice(mode=mode, names=tuple(names))


def _name_in(value: dict[str, Any], kind: str, at: str) -> str:
    holder = value.get(kind)
    if holder is None:
        raise missing(f"{at}.{kind}")
    if not isinstance(holder, dict):
        raise wrong_type("an object", holder, f"{at}.{kind}")
    name = holder.get("name")
    if name is None:
        raise missing(f"{at}.{kind}.name")
    if not isinstance(name, str):
        raise wrong_type("a string", name, f"{at}.{kind}.name")
    return name


_NAMED = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
_ONE_TOOL = {
    "type": "object",
    "properties": {"type": {"enum": ["function", "custom"]}, "function": _NAMED, "custom": _NAMED},
    "required": ["type"],
}
_SOME_TOOLS = {
    "type": "object",
    "properties": {
        "type": {"const": "allowed_tools"},
        "allowed_tools": {
            "type": "object",
            "properties": {"mode": {"enum": ["auto", "required"]}, "tools": {"type": "array", "items": _ONE_TOOL}},
            "required": ["mode", "tools"],
        },
    },
    "required": ["type", "allowed_tools"],
}
ChoiceField = Annotated[
    ToolChoice,
    BeforeValidator(_read_choice),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, _ONE_TOOL, _SOME_TOOLS]}),
]


def _read_legacy_choice(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("none", "auto"):
            raise not_supported_value(value, ("none", "auto"))
        return ToolChoice(mode=value)  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise wrong_type("one of a string or object", value)
    name = value.get("name")
    if name is None:
        raise missing(".name")
    if not isinstance(name, str):
        raise wrong_type("a string", name, ".name")
    return ToolChoice(mode="required", names=(name,), named=True)


LegacyChoiceField = Annotated[
    ToolChoice,
    BeforeValidator(_read_legacy_choice),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto"]}, _NAMED]}),
]
