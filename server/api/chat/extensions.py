"""Field types of extensions: thinking switches and grammars of answers, as other servers and clients spell them."""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark
from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

from server.api.chat.fields import Between, is_strict
from server.api.chat.validation_errors import fault, not_supported_value, wrong_type
from server.dialects.base import CustomFormat, ResponseFormat
from server.dialects.grammar.json_grammar import quoted
from server.dialects.schema.patterns import translated

UNLIMITED = 1 << 30  # tokens: what the window leaves
MAX_CHOICES = 10_000
OFF = ("none", "disabled", "off", "false", "no")
ON = ("enabled", "adaptive", "auto", "on", "true", "yes", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class ThinkingSwitch:
    """Whether to think, and the most tokens of it; None: not said."""

    on: bool | None = None
    budget: int | None = None


def _read_switch(value: Any) -> Any:
    """`false`, `"disabled"`, `{"type": "disabled"}`, `{"effort": "none"}`, `{"enabled": false, "max_tokens": 5}`."""
    if not isinstance(value, dict):
        return ThinkingSwitch(_switch_in(value, ""))
    switches = [_switch_in(value[name], f".{name}") for name in ("type", "enabled", "effort") if name in value]
    budgets = [value[name] for name in ("budget_tokens", "max_tokens") if value.get(name) is not None]
    for budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise wrong_type("an integer", budget)
    on = False if False in switches else True if True in switches else None
    return ThinkingSwitch(on, next((budget for budget in budgets if budget >= 0), None))


def _switch_in(value: Any, at: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise wrong_type("one of a boolean, string or object", value, at)
    if value not in (*OFF, *ON):
        raise not_supported_value(value, (*OFF, *ON), at)
    return value in ON


def _read_budget(value: Any, info: ValidationInfo) -> Any:
    return None if value == -1 and not is_strict(info) else value


def _read_limit(value: Any, info: ValidationInfo) -> Any:
    return UNLIMITED if value == -1 and not isinstance(value, bool) and not is_strict(info) else value


def _read_schema(value: Any) -> Any:
    """A schema as an object or as its JSON."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise fault("invalid_value", "Invalid '{P}': it must be a JSON Schema, but is no JSON.") from error
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    return value


def _read_choices(value: Any) -> Any:
    if not isinstance(value, list):
        raise wrong_type("an array of strings", value)
    if not 0 < len(value) <= MAX_CHOICES:
        text = f"Invalid '{{P}}': expected from 1 to {MAX_CHOICES} strings, but got {len(value)}."
        raise fault("invalid_value", text)
    for position, choice in enumerate(value):
        if not isinstance(choice, str) or not choice:
            raise wrong_type("a string that is not empty", choice, f"[{position}]")
    return value


def _read_structured(value: Any) -> Any:
    """vLLM's object: one of `json`, `regex`, `choice`, `grammar` and `json_object`."""
    if not isinstance(value, dict):
        raise wrong_type("an object", value)
    readers = {"json": _read_schema, "choice": _read_choices, "regex": _read_text, "grammar": _read_text}
    given = {name: item for name, item in value.items() if item is not None and item is not False}
    for name in given:
        if name not in (*readers, "json_object", *_WITHOUT_EFFECT):
            text = f"Invalid '{{P}}': '{name}' is not supported. Use one of 'json', 'regex', 'choice' and 'grammar'."
            raise fault("unsupported_value", text, f".{name}")
    return {name: readers.get(name, lambda item: item)(item) for name, item in given.items()}


_WITHOUT_EFFECT = ("whitespace_pattern", "disable_fallback", "disable_any_whitespace", "disable_additional_properties")


def _read_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise wrong_type("a string", value)
    return value


_SWITCH = {"anyOf": [{"type": "boolean"}, {"enum": [*OFF, *ON]}, {"type": "object"}]}
_STRUCTURED = {"json": {}, "regex": {"type": "string"}, "choice": {"type": "array"}, "grammar": {"type": "string"}}
SwitchField = Annotated[ThinkingSwitch, BeforeValidator(_read_switch), WithJsonSchema(_SWITCH)]
Budget = Annotated[Annotated[int, Between(0)] | None, BeforeValidator(_read_budget)]
SchemaField = Annotated[dict[str, Any], BeforeValidator(_read_schema)]
ChoicesField = Annotated[list[str], BeforeValidator(_read_choices)]
StructuredField = Annotated[
    dict[str, Any],
    BeforeValidator(_read_structured),
    WithJsonSchema({"type": "object", "properties": _STRUCTURED}),
]
or_unlimited = BeforeValidator(_read_limit)


def answer_of(kind: str, value: Any) -> ResponseFormat:
    """The constraint of one of `json`, `regex`, `choice` and `grammar`. Raises ValueError for a grammar of no form."""
    if kind == "json":
        return ResponseFormat(value, strict=True)
    if kind == "json_object":
        return ResponseFormat()
    return ResponseFormat(format=CustomFormat("lark", _lark_of(kind, value)))


def _lark_of(kind: str, value: Any) -> str:
    if kind == "regex":
        return f"start: /{regex_to_lark(_without_anchors(translated(value)), '')}/"
    if kind == "choice":
        return "start: " + " | ".join(map(quoted, value))
    try:
        return str(any_to_lark(value))
    except GbnfToLarkError as error:
        raise ValueError(str(error)) from error


def _without_anchors(pattern: str) -> str:
    """Lark anchors every regular expression at both ends."""
    pattern = pattern.removeprefix("^")
    if not pattern.endswith("$"):
        return pattern
    num_backslashes = len(pattern[:-1]) - len(pattern[:-1].rstrip("\\"))
    return pattern if num_backslashes % 2 else pattern[:-1]
