"""Compiled validators of normalised schemas, by jsonschema_rs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs

from server.dialects.schema.references import map_subschemas

# Of one regular expression: bytes of its automaton and of its cache, and steps of one match.
PATTERN_BYTES, BACKTRACK_LIMIT = 64 << 10, 5_000
PATTERN_OPTIONS = jsonschema_rs.FancyRegexOptions(
    size_limit=PATTERN_BYTES, dfa_size_limit=PATTERN_BYTES, backtrack_limit=BACKTRACK_LIMIT
)
FAULTS = (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError)


def compile_validator(schema: Any) -> Any:
    """Compile a validator. Patterns that it does not read, or that are larger than PATTERN_BYTES, are not validated.

    Raises one of FAULTS.
    """
    options: dict[str, Any] = {"pattern_options": PATTERN_OPTIONS, "retriever": _refuse_to_fetch}
    try:
        return jsonschema_rs.Draft202012Validator(schema, **options)
    except jsonschema_rs.ValidationError:
        return jsonschema_rs.Draft202012Validator(_without_bad_patterns(schema), **options)


def is_valid(validator: Any, value: Any) -> bool:
    """Whether the value satisfies the validator's schema."""
    try:
        return bool(validator.is_valid(value))
    except ValueError:  # a number too large for the validator
        return False


def satisfying(values: Sequence[Any], schema: Any) -> list[Any]:
    """Return the values that satisfy a normalised schema; all where it is no schema."""
    if not schema or not values:
        return list(values)
    validator = compile_validator(schema)
    return [value for value in values if is_valid(validator, value)]


def _without_bad_patterns(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    node = map_subschemas(schema, lambda _, inner: _without_bad_patterns(inner))
    if isinstance(node.get("pattern"), str) and not _reads(node["pattern"]):
        del node["pattern"]
    if isinstance(node.get("patternProperties"), Mapping):
        return with_name_patterns(node, _reads)
    return node


def with_name_patterns(node: dict[str, Any], reads: Any) -> dict[str, Any]:
    """Drop the `patternProperties` whose names `reads` refuses; then further names may be theirs."""
    kept = {pattern: inner for pattern, inner in node["patternProperties"].items() if reads(pattern)}
    if len(kept) == len(node["patternProperties"]):
        return node
    return {key: value for key, value in node.items() if key != "additionalProperties"} | {"patternProperties": kept}


def _reads(pattern: str) -> bool:
    try:
        jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=PATTERN_OPTIONS)
    except jsonschema_rs.ValidationError:
        return False
    return True


def _refuse_to_fetch(uri: str) -> Any:
    # A schema comes from a client: following its addresses would let it reach into the server's network.
    raise ValueError(f"references outside the schema are not followed: {uri}")
