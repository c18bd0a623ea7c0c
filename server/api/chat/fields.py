"""Field types of requests. Each states its range in OpenAI's words and in the OpenAPI document."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel as PydanticModel
from pydantic import BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from server.api.chat.validation_errors import fault, missing, not_supported_value, wrong_type

NAME_PATTERN = "[a-zA-Z0-9_.:/-]+"  # with what MCP servers and gateways put into names
OPENAI_NAME_PATTERN = "[a-zA-Z0-9_-]+"
UNLIMITED = 1 << 30  # tokens: what the window leaves


class Part(PydanticModel):
    """An object of a request: types are not converted, unknown keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())


def _read_own_options(value: Any) -> Any:
    if isinstance(value, dict) and (unknown := [name for name in value if name not in ToolwireOptions.model_fields]):
        raise fault("unknown_parameter", "Unknown parameter: '{P}'.", f".{unknown[0]}")
    return value


class ToolwireOptions(Part):
    """Options of this server alone."""

    trace: bool | None = Field(
        None,
        description="The reply says how it came about: in `toolwire.trace`, and in streams in `toolwire.trace_delta`.",
    )


class OwnOptions(Part):
    """Fields of requests that only this server has, on every surface."""

    toolwire: Annotated[ToolwireOptions, BeforeValidator(_read_own_options)] | None = Field(
        None, description="Extension. Options of this server alone."
    )

    @property
    def traces(self) -> bool:
        """Whether the reply is to say how it came about."""
        return self.toolwire is not None and bool(self.toolwire.trace)


@dataclass(frozen=True, slots=True)
class Between:
    """Annotates a number with its range."""

    low: float | None = None
    high: float | None = None

    def check(self, kind: str, value: float) -> float:
        """The value; raises the fault that names the bound it breaks. `kind` is the field's, not the value's."""
        low, high = self.low, self.high
        if low is not None and value < low:
            raise fault(f"{kind}_below_min_value", _range_text(kind, "below minimum", f">= {low:g}", value))
        if high is not None and value > high:
            raise fault(f"{kind}_above_max_value", _range_text(kind, "above maximum", f"<= {high:g}", value))
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """What pydantic asks of an annotation."""
        check = partial(self.check, "integer" if source is int else "decimal")
        number = core_schema.no_info_after_validator_function(check, handler(source))
        return core_schema.with_info_before_validator_function(_whole, number) if source is int else number

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The range in the OpenAPI document."""
        bounds = {"minimum": self.low, "maximum": self.high}
        return handler(schema) | {name: bound for name, bound in bounds.items() if bound is not None}


def _range_text(kind: str, problem: str, range_: str, value: float) -> str:
    shown = int(value) if float(value).is_integer() else value  # 3, as it was sent, not 3.0
    return f"Invalid '{{P}}': {kind} {problem} value. Expected a value {range_}, but got {shown} instead."


def is_strict(info: ValidationInfo) -> bool:
    """Whether the server was started with `--strict`: OpenAI to the letter."""
    return bool(info.context and info.context["strict"])


LARGEST_WHOLE = 2**53  # beyond it a float is no longer one integer


def _whole(value: Any, info: ValidationInfo) -> Any:
    """`100.0`, which languages with one kind of number write, as the integer that it is."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_WHOLE
    return int(value) if is_whole and not is_strict(info) else value


def _read_limit(value: Any, info: ValidationInfo) -> Any:
    return UNLIMITED if value == -1 and not isinstance(value, bool) and not is_strict(info) else value


or_unlimited = BeforeValidator(_read_limit)  # for limits of tokens: -1 is none


def name_of(longest: int) -> Callable[[str, ValidationInfo], str]:
    """A check of the names of tools and schemas."""

    def check(value: str, info: ValidationInfo) -> str:
        if not value:
            text = "Invalid '{P}': empty string. Expected a string with minimum length 1, but got an empty string"
            raise fault("empty_string", f"{text} instead.")
        if len(value) > longest:
            text = f"Invalid '{{P}}': string too long. Expected a string with maximum length {longest}, but got a"
            raise fault("string_above_max_length", f"{text} string with length {len(value)} instead.")
        pattern = OPENAI_NAME_PATTERN if is_strict(info) else NAME_PATTERN
        if not re.fullmatch(pattern, value):
            text = "Invalid '{P}': string does not match pattern. Expected a string that matches the pattern"
            raise fault("invalid_value", f"{text} '^{pattern}$'.")
        return value

    return check


def tagged(name: str, supported: Sequence[str], unsupported: Callable[[str], str] | None = None) -> BeforeValidator:
    """A check that a value is an object whose `name` says which of several shapes it has."""
    return BeforeValidator(lambda value: tag_checked(value, name, supported, unsupported))


def tag_checked(
    value: Any, name: str, supported: Sequence[str], unsupported: Callable[[str], str] | None = None
) -> Any:
    """The value, an object whose `name` is one of `supported`. Raises a fault."""
    if isinstance(value, PydanticModel):
        return value
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    kind = value.get(name)
    if kind is None:
        raise missing(f".{name}")
    if not isinstance(kind, str):
        raise wrong_type("a string", kind, f".{name}")
    if unsupported is not None and (why := unsupported(kind)):
        raise fault("invalid_value", why)
    if kind not in supported:
        raise not_supported_value(kind, supported, f".{name}")
    return value


def tag_by(name: str) -> Callable[[Any], str]:
    """The tag of a union's branch, from an object that `tagged` has checked."""

    def tag(value: Any) -> str:
        kind = value.get(name) if isinstance(value, dict) else getattr(value, name)
        return f"~{kind}"

    return tag
