"""Python functions as tools: signature and docstring become the definition; arguments are validated before a call.

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, get_type_hints

from docstring_parser import parse
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict


@dataclass(frozen=True, slots=True)
class PythonTool:
    """One function, its definition, and the validator of its arguments."""

    function: Callable[..., Any]
    definition: Mapping[str, Any]
    arguments: TypeAdapter[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Functions by name."""

    tools: Mapping[str, PythonTool]

    @classmethod
    def of(cls, functions: Iterable[Callable[..., Any]]) -> "Toolbox":
        """Make tools of functions; raises TypeError as `as_tool` does, and for two functions of one name."""
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
        """Call a tool and return the text of the `tool` message: the result, or `{"error": …}` for whatever failed."""
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
        except Exception as error:  # noqa: BLE001  whatever a tool raises is its result: the model can go on
            return _fault(f"{type(error).__name__}: {error}")
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def as_tool(function: Callable[..., Any]) -> PythonTool:
    """Derive a definition from names, annotations, defaults and docstring (Google, Sphinx, NumPy or Epydoc style).

    Raises TypeError for a parameter that cannot be given by name, and for an asynchronous function.
    """
    docstring = parse(inspect.getdoc(function) or "")
    about = {parameter.arg_name: _one_line(parameter.description or "") for parameter in docstring.params}
    arguments: TypeAdapter[dict[str, Any]] = TypeAdapter(_arguments_type(function, about))
    schema = _without_titles(arguments.json_schema())
    parameters = {name: schema[name] for name in ("type", "properties", *schema)}  # the order models were trained on
    summary = _one_line(docstring.description or "")
    definition = {"name": function.__name__, "description": summary, "parameters": parameters}
    return PythonTool(function, {"type": "function", "function": definition}, arguments)


def functions_in_file(path: Path) -> list[Callable[..., Any]]:
    """Run a Python file and return the public functions defined in it, in their order.

    Raises ValueError if `path` is not a Python file.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [value for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    return [function for function in found if function.__module__ == module.__name__]


def _arguments_type(function: Callable[..., Any], about: Mapping[str, str]) -> type:
    """Make a TypedDict of the parameters; a pydantic model would not take every name (`json`, `copy`, `_x`)."""
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__name__} is asynchronous; give a plain function")
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__}: the parameter {name} cannot be given by name")
        optional = parameter.default is not parameter.empty
        extra = {"default": parameter.default} if optional and _is_json(parameter.default) else None
        field = Field(description=about.get(name), json_schema_extra=extra)
        kind = Annotated.__class_getitem__((hints.get(name, Any), field))  # type: ignore[attr-defined]
        fields[name] = NotRequired[kind] if optional else kind
    make_record: Any = TypedDict  # made at run time, which no type checker can follow
    record: type = make_record(function.__name__, fields)
    return with_config(ConfigDict(extra="forbid"))(record)


def _is_json(value: object) -> bool:
    return isinstance(value, str | int | float | bool | list | dict) or value is None


def _without_titles(schema: Any) -> Any:
    """Remove the titles that pydantic derives from field names: they cost prompt tokens and say nothing new."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    literal = ("default", "enum", "const", "examples")
    kept = {name: part for name, part in schema.items() if not (name == "title" and isinstance(part, str))}
    return {name: part if name in literal else _without_titles(part) for name, part in kept.items()}


def _fault(text: str) -> str:
    return json.dumps({"error": _one_line(text)}, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
