"""Tools of a request for a response: functions, custom tools, namespaces, and the hosted ones that are left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Discriminator, Tag, ValidationError

from server.api.body import bad
from server.api.chat.fields import Part, name_of, tag_by, tagged
from server.api.chat.to_request import RequestMapper
from server.api.chat.tool_schemas import (
    LONGEST_NAME,
    AnyTool,
    Custom,
    CustomTool,
    Function,
    FunctionTool,
    Grammar,
    GrammarFormat,
    TextFormat,
    ToolName,
)
from server.api.chat.validation_errors import refusal_of
from server.api.responses.to_reply import ShownTool
from server.dialects.base import Choice, Tool
from server.dialects.schema.check import check_parameters, check_sizes
from server.errors import BadSchema
from server.notes import Note

# Neither OpenAI's own programs nor its services can be run here.
HOSTED = (
    "web_search", "tool_search", "image_generation", "file_search", "code_interpreter", "computer", "local_shell",
    "shell", "mcp", "apply_patch", "programmatic_tool_calling",
)  # fmt: skip
P = TypeVar("P", bound=Part)
SEPARATOR = "__"  # between a namespace and a name, in the name that the model sees


class FunctionToolIn(Function):
    """A function tool. `strict` left out: strict where its schema allows it."""

    type: Literal["function"]


class FlatGrammar(Part):
    """Text of a grammar."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


FlatFormat = Annotated[
    Annotated[TextFormat, Tag("~text")] | Annotated[FlatGrammar, Tag("~grammar")],
    Discriminator(tag_by("type")),
    tagged("type", ("text", "grammar")),
]


class CustomToolIn(Part):
    """A custom tool."""

    type: Literal["custom"]
    name: ToolName
    description: str | None = None
    format: FlatFormat | None = None


class NamespaceToolIn(Part):
    """Tools that share a namespace."""

    type: Literal["namespace"]
    name: Annotated[str, AfterValidator(name_of(LONGEST_NAME))]
    description: str = ""
    tools: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """Tools in every form that is needed: for the template, the dialect, the response and its calls."""

    definitions: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Tool] = ()
    echo: Sequence[Mapping[str, Any]] = ()
    names: Mapping[str, ShownTool] = field(default_factory=dict)
    notes: Sequence[Note] = ()


def flat_name(namespace: str | None, name: str) -> str:
    """The name of a tool that the model sees."""
    return f"{namespace}{SEPARATOR}{name}" if namespace else name


class ToolReader:
    """Reads the `tools` of one request."""

    def __init__(self, mapper: RequestMapper) -> None:
        self._mapper = mapper
        self._definitions: list[Mapping[str, Any]] = []
        self._offered: list[AnyTool] = []
        self._paths: list[str] = []
        self._names: dict[str, ShownTool] = {}
        self._notes: list[Note] = []

    def read(self, sent: Sequence[Mapping[str, Any]]) -> OfferedTools:
        """The tools. Raises RequestRefused or BadSchema."""
        check_sizes(_schemas(sent, "tools"))  # of all together, before any of them is checked or compiled
        echo = [self._read(tool, f"tools[{position}]") for position, tool in enumerate(sent)]
        tools = self._mapper.declare(self._offered, self._paths)
        shown = [one for one in echo if one is not None]
        return OfferedTools(self._definitions, tools, shown, self._names, self._notes)

    def _read(self, tool: Mapping[str, Any], path: str, namespace: str = "") -> dict[str, Any] | None:
        """The tool as the response gives it back; None where it is left out."""
        kind = tool.get("type")
        if kind == "function":
            return self._function(tool, path, namespace)
        if kind == "custom":
            return self._custom(tool, path, namespace)
        if kind == "namespace" and not namespace:
            one = self._validated(NamespaceToolIn, tool, path)
            within = [self._read(each, f"{path}.tools[{i}]", one.name) for i, each in enumerate(one.tools)]
            known = [each for each in within if each is not None]
            return {"type": kind, "name": one.name, "description": one.description, "tools": known}
        if kind is None:
            raise bad(f"Missing required parameter: '{path}.type'.", f"{path}.type", "missing_required_parameter")
        self._notes.append(Note("left_out", path, f"tools of type '{str(kind)[:64]}' are not served here."))
        return None

    def _function(self, tool: Mapping[str, Any], path: str, namespace: str) -> dict[str, Any]:
        one = self._validated(FunctionToolIn, tool, path)
        strict = _allows_strict(one) if one.strict is None else one.strict
        name = self._declare_name(namespace, one.name)
        sent = {key: one.sent[key] for key in one.sent if key in ("description", "parameters", "strict")}
        function = {"name": name} | {key: value for key, value in sent.items() if value is not None}
        self._definitions.append({"type": "function", "function": function})
        flat = Function(name=name, description=one.description, parameters=one.parameters, strict=strict)
        self._offered.append(FunctionTool(type="function", function=flat))
        self._paths.append(path)
        return {
            "type": "function",
            "name": one.name,
            "description": one.description,
            "parameters": one.parameters,
            "strict": strict,
        }

    def _custom(self, tool: Mapping[str, Any], path: str, namespace: str) -> dict[str, Any]:
        one = self._validated(CustomToolIn, tool, path)
        name = self._declare_name(namespace, one.name)
        custom: dict[str, Any] = {"name": name}
        if one.description is not None:
            custom["description"] = one.description
        format: GrammarFormat | None = None
        if isinstance(one.format, FlatGrammar):
            grammar = Grammar(syntax=one.format.syntax, definition=one.format.definition)
            format = GrammarFormat(type="grammar", grammar=grammar)
            custom["format"] = format.model_dump()
        self._definitions.append({"type": "custom", "custom": custom})
        declared = Custom(name=name, description=one.description, format=format)
        self._offered.append(CustomTool(type="custom", custom=declared))
        self._paths.append(path)
        shown = one.format.model_dump() if one.format is not None else {"type": "text"}
        return {"type": "custom", "name": one.name, "description": one.description, "format": shown}

    def _validated(self, model: type[P], value: Mapping[str, Any], path: str) -> P:
        try:
            return model.model_validate(value, context={"strict": self._mapper.strict})
        except ValidationError as error:
            raise refusal_of(error, path) from error

    def _declare_name(self, namespace: str, name: str) -> str:
        flat = flat_name(namespace, name)
        if namespace:
            self._names[flat] = ShownTool(namespace, name)
        return flat


def _schemas(tools: Sequence[Any], at: str) -> Iterator[tuple[str, Any]]:
    """The schemas of functions, those in namespaces too, each with its param."""
    for position, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            continue
        path = f"{at}[{position}]"
        if tool.get("type") == "function" and isinstance(tool.get("parameters"), Mapping):
            yield f"{path}.parameters", tool["parameters"]
        elif tool.get("type") == "namespace" and isinstance(tool.get("tools"), list):
            yield from _schemas(tool["tools"], f"{path}.tools")


def read_choice(sent: str | Mapping[str, Any] | None, tools: Sequence[Tool], parallel: bool) -> Choice:
    """The value of `tool_choice`. Raises RequestRefused for a hosted tool and for one that was not offered."""
    if sent is None:
        return Choice("auto" if tools else "none", None, parallel)
    if isinstance(sent, str):
        if sent not in ("none", "auto", "required"):
            text = f"Invalid value: '{sent}'. Supported values are: 'none', 'auto', and 'required'."
            raise bad(text, "tool_choice", "invalid_value")
        if sent == "required" and not tools:
            raise bad("Tool choice 'required' must be specified with 'tools' parameter.", "tool_choice")
        return Choice(sent if tools else "none", None, parallel)  # type: ignore[arg-type]
    if sent.get("type") == "allowed_tools":
        return _read_allowed(sent, tools, parallel)
    return Choice("required", frozenset({_named(sent, tools, "tool_choice")}), parallel)


def _read_allowed(sent: Mapping[str, Any], tools: Sequence[Tool], parallel: bool) -> Choice:
    mode, listed = sent.get("mode", "auto"), sent.get("tools")
    if mode not in ("auto", "required"):
        text = f"Invalid value: '{mode}'. Supported values are: 'auto' and 'required'."
        raise bad(text, "tool_choice.mode", "invalid_value")
    if not isinstance(listed, list) or not listed:
        raise bad("Invalid 'tool_choice.tools': expected an array with at least one tool.", "tool_choice.tools")
    names = frozenset(_named(one, tools, f"tool_choice.tools[{i}]") for i, one in enumerate(listed))
    return Choice(mode, names, parallel)


def _named(sent: Any, tools: Sequence[Tool], at: str) -> str:
    kind = sent.get("type", "function") if isinstance(sent, Mapping) else None
    if kind not in ("function", "custom"):
        text = f"Invalid '{at}': tools of type '{kind}' are not served here; name a function or a custom tool."
        raise bad(text, at, "unsupported_value")
    name = sent.get("name")
    if not isinstance(name, str):
        raise bad(f"Missing required parameter: '{at}.name'.", f"{at}.name", "missing_required_parameter")
    namespace = sent.get("namespace")
    flat = flat_name(namespace if isinstance(namespace, str) else None, name)
    if not any(tool.name == flat and tool.custom == (kind == "custom") for tool in tools):
        raise bad(f"Tool choice '{kind}' '{name}' not found in 'tools' parameter.", at)
    return flat


def _allows_strict(function: Function) -> bool:
    try:
        check_parameters(function.parameters, True, False)
    except BadSchema:
        return False
    return True
