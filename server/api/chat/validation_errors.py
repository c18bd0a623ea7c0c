"""Validation errors of pydantic as OpenAI's: code, param path and message. Only the first is sent.

Our own validators raise `fault(code, text)`; `{P}` in a text stands for the path, which is known only here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from server.api.body import bad, kind_of
from server.api.errors import RequestRefused

M = TypeVar("M", bound=BaseModel)
NO_CODE = "no_code"
# Marks the tags of a union's branches, so that `path_of` can leave them out.
TAG = "~"

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal",
    "string_type": "a string",
    "bool_type": "a boolean",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "list_type": "an array",
}


def fault(code: str | None, text: str, at: str = "", **values: Any) -> PydanticCustomError:
    """An error of our own validators; `at` is its path below the validated value, as `.name` or `[0]`."""
    return PydanticCustomError(code or NO_CODE, text, {"at": at, **values})


def wrong_type(expected: str, value: object, at: str = "") -> PydanticCustomError:
    """`Invalid type for 'P': expected an integer, but got a string instead.`"""
    text = f"Invalid type for '{{P}}': expected {expected}, but got {kind_of(value)} instead."
    return fault("invalid_type", text, at)


def missing(at: str) -> PydanticCustomError:
    """`Missing required parameter: 'P'.`"""
    return fault("missing_required_parameter", "Missing required parameter: '{P}'.", at)


def not_supported_value(value: object, supported: Sequence[str], at: str = "") -> PydanticCustomError:
    """`Invalid value: 'x'. Supported values are: 'a', 'b', and 'c'.`"""
    return fault("invalid_value", f"Invalid value: '{value}'. Supported values are: {listed(supported)}.", at)


def listed(values: Sequence[str]) -> str:
    """'a', 'b', and 'c'"""
    quoted = [f"'{value}'" for value in values]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def validated(model: type[M], value: Mapping[str, Any], at: str = "", context: Mapping[str, Any] | None = None) -> M:
    """The object as a model, null read as absent; `at` is its path. Raises RequestRefused (400), the first error."""
    try:
        return model.model_validate({key: one for key, one in value.items() if one is not None}, context=context)
    except ValidationError as error:
        raise refusal_of(error, at) from error


def refusal_of(error: ValidationError, at: str = "") -> RequestRefused:
    """A 400 for the first error, in the order of fields; `at` is the path of the validated value."""
    return _render(error.errors(include_url=False)[0], at)


def path_of(location: Sequence[int | str]) -> str:
    """('messages', 0, 'role') -> messages[0].role"""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(TAG):
            path += f".{part}" if path else part
    return path


def _render(detail: ErrorDetails, at: str) -> RequestRefused:
    path = path_of(detail["loc"])
    path = f"{at}.{path}" if at and path else at or path
    kind, value, values = detail["type"], detail["input"], detail.get("ctx", {})
    if "at" in values:  # from `fault`
        path = (path + values["at"]).removeprefix(".")
        return bad(detail["msg"].replace("{P}", path), path, None if kind == NO_CODE else kind)
    if kind == "missing":
        return bad(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
        return bad(
            f"Invalid type for '{path}': expected {expected}, but got {kind_of(value)} instead.", path, "invalid_type"
        )
    render = _RENDERERS.get(kind)
    if render is None:
        return bad(f"Invalid '{path}': {detail['msg']}.", path, "invalid_value")
    code, text = render(value, values)
    return bad(text.replace("{P}", path), path, code)


def _literal(value: Any, values: Mapping[str, Any]) -> tuple[str, str]:
    if not isinstance(value, str):
        return "invalid_type", f"Invalid type for '{{P}}': expected a string, but got {kind_of(value)} instead."
    supported = re.findall(r"'([^']*)'", str(values["expected"]))
    return "invalid_value", f"Invalid value: '{value}'. Supported values are: {listed(supported)}."


def _too_long(value: Any, values: Mapping[str, Any]) -> tuple[str, str]:
    most, got = values["max_length"], len(value)
    if isinstance(value, dict):
        text = f"Invalid '{{P}}': too many properties. Expected an object with at most {most} properties, but got an"
        return "object_above_max_properties", f"{text} object with {got} properties instead."
    text = f"Invalid '{{P}}': array too long. Expected an array with maximum length {most}, but got an array with"
    return "array_above_max_length", f"{text} length {got} instead."


def _too_short(value: Any, values: Mapping[str, Any]) -> tuple[str, str]:
    text = "Invalid '{P}': empty array. Expected an array with minimum length 1, but got an empty array instead."
    return "empty_array", text


def _string_too_long(value: Any, values: Mapping[str, Any]) -> tuple[str, str]:
    text = f"Invalid '{{P}}': string too long. Expected a string with maximum length {values['max_length']}, but got a"
    return "string_above_max_length", f"{text} string with length {len(value)} instead."


_RENDERERS: Mapping[str, Callable[[Any, Mapping[str, Any]], tuple[str, str]]] = {
    "literal_error": _literal,
    "too_long": _too_long,
    "too_short": _too_short,
    "string_too_long": _string_too_long,
}


def unknown_key(body: Mapping[str, Any], model: type[BaseModel], extension: str) -> str | None:
    """The first key of `body` that the model does not declare, or whose description begins with `extension`."""
    for name in body:
        declared = model.model_fields.get(name)
        if declared is None or (declared.description or "").startswith(extension):
            return name
    return None
