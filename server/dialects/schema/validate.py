"""Validation of arguments against a tool's schema."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs

from server.dialects.base import Tool
from server.dialects.schema.cache import VALIDATOR_FACTOR, derived
from server.dialects.schema.custom import satisfies
from server.dialects.schema.engine import grammar_fault
from server.dialects.schema.normalize import normalised
from server.dialects.schema.references import map_subschemas
from server.events import Flag

# Of one regular expression: bytes of its automaton and of its cache, and steps of one match.
PATTERN_BYTES, BACKTRACK_LIMIT = 64 << 10, 5_000
PATTERN_OPTIONS = jsonschema_rs.FancyRegexOptions(
    size_limit=PATTERN_BYTES, dfa_size_limit=PATTERN_BYTES, backtrack_limit=BACKTRACK_LIMIT
)


class ToolSet:
    """The tools that a reply may call, by name."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._validators: dict[str, Any] = {}

    def find(self, name: str) -> Tool | None:
        """Return the tool of this name, None if the request has none."""
        return self._tools.get(name)

    def validate(self, tool: Tool, arguments: str) -> tuple[Flag, ...]:
        """`("invalid",)` where the arguments are no JSON object or do not satisfy the schema or custom grammar."""
        if tool.custom:
            return () if tool.format is None or satisfies(tool.format, arguments) else ("invalid",)
        try:
            value = json.loads(arguments, parse_float=_finite_float)
        except ValueError:
            return ("invalid",)
        return () if isinstance(value, dict) and self._fits(tool, value) else ("invalid",)

    def _fits(self, tool: Tool, value: Any) -> bool:
        if not tool.parameters:
            return True
        if tool.name not in self._validators:
            self._validators[tool.name] = _validator(json.dumps(tool.parameters))
        return _is_valid(self._validators[tool.name], value)


def fits(value: Any, schema: Any) -> bool:
    """Whether a value satisfies a schema that was checked before. `format` is not asserted, as in the drafts."""
    if schema is None or schema is True or schema == {}:
        return True
    return _is_valid(_validator(json.dumps(schema)), value)


def satisfying(values: Sequence[Any], schema: Any) -> list[Any]:
    """Return the values that satisfy a schema that was checked before."""
    if not schema or not values:
        return list(values)
    validator = _validator(json.dumps(schema))
    return [value for value in values if _is_valid(validator, value)]


def _finite_float(text: str) -> float:
    # A grammar bounds no exponent: 1e999 is a JSON number, and satisfies `"type": "number"`.
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


def _is_valid(validator: Any, value: Any) -> bool:
    try:
        return bool(validator.is_valid(value))
    except ValueError:  # a number too large for the validator
        return False


def _validator(schema: str) -> Any:
    num_bytes = VALIDATOR_FACTOR * len(schema) + 2 * PATTERN_BYTES * schema.count('"pattern')
    return derived("validator", schema, lambda: compile_validator(normalised(json.loads(schema))), lambda _: num_bytes)


def compile_validator(schema: Any) -> Any:
    """Compile the validator of a normalised schema. Patterns larger than PATTERN_BYTES are left to the grammar.

    Raises jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError or ValueError.
    """
    options: dict[str, Any] = {"pattern_options": PATTERN_OPTIONS, "retriever": _refuse_to_fetch}
    try:
        return jsonschema_rs.Draft202012Validator(schema, **options)
    except jsonschema_rs.ValidationError:
        return jsonschema_rs.Draft202012Validator(_without_large_patterns(schema), **options)


def _without_large_patterns(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    node = map_subschemas(schema, lambda _, inner: _without_large_patterns(inner))
    if isinstance(node.get("pattern"), str) and _is_large(node["pattern"]):
        del node["pattern"]
    return node


def _is_large(pattern: str) -> bool:
    """Whether the grammar engine, which builds no automaton beforehand, takes what the validator does not."""
    try:
        jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=PATTERN_OPTIONS)
    except jsonschema_rs.ValidationError:
        return not grammar_fault({"type": "string", "pattern": pattern})
    return False


def _refuse_to_fetch(uri: str) -> Any:
    # A schema comes from a client: following its addresses would let it reach into the server's network.
    raise ValueError(f"references outside the schema are not followed: {uri}")


def whole_schema(tool: Tool) -> Mapping[str, Any]:
    """Return the tool's parameters as the schema of an object, or the schema of no arguments."""
    return {**(tool.parameters or {"properties": {}, "additionalProperties": False}), "type": "object"}
