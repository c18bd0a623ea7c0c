"""Plain Python functions as tools: signature and docstring become the definition, a call becomes checked arguments.

def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> dict[str, Any]:
    '''Get the current weather.

    Args:
        city: Name of the city.
    '''

tools = Toolbox.of([get_weather])
client.chat.completions.create(…, tools=tools.definitions)
tools.call("get_weather", '{"city": "Oslo"}')
"""

import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from clients.docstrings import Described, read_docstring


@dataclass(frozen=True, slots=True)
class PythonTool:
    """One function: the definition that a model reads, and what turns a model's arguments into a call."""

    function: Callable[..., Any]
    definition: Mapping[str, Any]
    arguments: TypeAdapter[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Functions by the name that the model calls them by."""

    tools: Mapping[str, PythonTool]

    @classmethod
    def of(cls, functions: Iterable[Callable[..., Any]]) -> "Toolbox":
        """Raises TypeError for a function whose parameters JSON cannot name, or two of one name."""
        tools: dict[str, PythonTool] = {}
        for function in functions:
            if function.__name__ in tools:
                raise TypeError(f"two tools are called {function.__name__}")
            tools[function.__name__] = as_tool(function)
        return cls(tools)

    @property
    def definitions(self) -> list[Any]:
        """The value of `tools` in a request."""
        return [tool.definition for tool in self.tools.values()]

    def call(self, name: str, arguments: str) -> str:
        """The text of the `tool` message. What the model did wrong, and what the function raised, is told in it."""
        tool = self.tools.get(name)
        if tool is None:
            return _fault(f"there is no tool {name}; there are {', '.join(self.tools) or 'none'}")
        try:
            values = tool.arguments.validate_json(arguments or "{}")
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            return _fault(f"the arguments do not fit: {faults}")
        try:
            result = tool.function(**values)
        except Exception as error:  # noqa: BLE001  whatever a tool raises, the model is told and goes on
            return _fault(f"{type(error).__name__}: {error}")
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def as_tool(function: Callable[..., Any]) -> PythonTool:
    """The definition comes from names, annotations, defaults and docstring; raises TypeError for `*args` and such."""
    described = read_docstring(inspect.getdoc(function) or "")
    arguments: TypeAdapter[dict[str, Any]] = TypeAdapter(_arguments_type(function, described))
    schema = _without_titles(arguments.json_schema())
    parameters = {name: schema[name] for name in ("type", "properties", *schema)}  # the order models were trained on
    definition = {"name": function.__name__, "description": described.summary, "parameters": parameters}
    return PythonTool(function, {"type": "function", "function": definition}, arguments)


def functions_in_file(path: Path) -> list[Callable[..., Any]]:
    """The public functions that a Python file defines itself, in their order. Runs the file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [value for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    return [function for function in found if function.__module__ == module.__name__]


def _arguments_type(function: Callable[..., Any], described: Described) -> type:
    """A typed dictionary rather than a model: there, a parameter may have any name (`json`, `copy`, `_x`)."""
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__name__} is asynchronous; give a plain function")
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__}: the parameter {name} cannot be given by name")
        optional = parameter.default is not parameter.empty
        extra = {"default": parameter.default} if optional and _is_json(parameter.default) else None
        about = Field(description=described.parameters.get(name), json_schema_extra=extra)
        kind = Annotated.__class_getitem__((hints.get(name, Any), about))  # type: ignore[attr-defined]
        fields[name] = NotRequired[kind] if optional else kind
    make_record: Any = TypedDict  # made at run time, which no type checker can follow
    record: type = make_record(function.__name__, fields)
    return with_config(ConfigDict(extra="forbid"))(record)


def _is_json(value: object) -> bool:
    return isinstance(value, str | int | float | bool | list | dict) or value is None


def _without_titles(schema: Any) -> Any:
    """pydantic titles every field by its own name, which costs prompt tokens and says nothing."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    literal = ("default", "enum", "const", "examples")
    kept = {name: part for name, part in schema.items() if not (name == "title" and isinstance(part, str))}
    return {name: part if name in literal else _without_titles(part) for name, part in kept.items()}


def _fault(text: str) -> str:
    return json.dumps({"error": re.sub(r"\s+", " ", text)}, ensure_ascii=False)
