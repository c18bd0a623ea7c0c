"""Find a short value that satisfies a schema: the minimum length of a forced call."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from server.dialects.base import Tool
from server.dialects.schema.normalize import normalised
from server.dialects.schema.references import resolve
from server.dialects.schema.validate import whole_schema

MAX_DEPTH = 12  # a recursive schema whose shortest value nests deeper is only estimated
FORMATS = {
    "date-time": "2000-01-01T00:00:00Z", "date": "2000-01-01", "time": "00:00:00Z", "duration": "P1D",
    "email": "a@b.co", "hostname": "a.co", "ipv4": "1.1.1.1", "ipv6": "::1",
    "uuid": "00000000-0000-0000-0000-000000000000", "uri": "a:b",
}  # fmt: skip


def shortest_arguments(tool: Tool) -> str:
    """Return the JSON of short arguments for this tool; for a custom tool, an object with a short `input`.

    Strings with a `pattern` are only estimated.
    """
    if tool.custom:
        return json.dumps({"input": "x"})
    return json.dumps(shortest_value(whole_schema(tool)), ensure_ascii=False)


def shortest_members(tool: Tool) -> list[tuple[str, str]]:
    """Return the members of short arguments as text, strings without quotes."""
    value = {"input": "x"} if tool.custom else shortest_value(whole_schema(tool))
    return [(k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in value.items()]


def shortest_value(schema: Any) -> Any:
    """Return a short value of this schema."""
    whole = normalised(schema)
    return _least([whole], whole, 0) if isinstance(whole, Mapping) else {}


def _value(schema: Any, root: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise RecursionError("no value found that nests less deep")
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return min(schema["enum"], key=lambda value: len(json.dumps(value)))
    if "$ref" in schema:
        return _value({**_definition(schema, root), **_without(schema, "$ref")}, root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            beside = _without(schema, key)
            return _least([_merged(beside, branch) for branch in schema[key]], root, depth + 1)
    if schema.get("allOf"):
        merged = _without(schema, "allOf")
        for part in schema["allOf"]:
            named = isinstance(part, Mapping) and "$ref" in part
            merged = _merged(merged, _definition(part, root) if named else part)
        return _value(merged, root, depth + 1)
    return _typed(schema, root, depth)


def _least(schemas: list[Any], root: Any, depth: int) -> Any:
    """Return the shortest value over several schemas; skip those that recurse without end."""
    found = []
    for schema in schemas:
        with suppress(RecursionError):
            found.append(_value(schema, root, depth))
    if not found and depth:
        raise RecursionError("no value found that nests less deep")
    return min(found, key=lambda value: len(json.dumps(value)), default={})


def _typed(schema: Mapping[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        return _least([{**schema, "type": one} for one in kind], root, depth + 1)
    match kind or ("object" if "properties" in schema else "array" if "items" in schema else None):
        case "object":
            return _object(schema, root, depth)
        case "array":
            items = [_value(item, root, depth + 1) for item in schema.get("prefixItems", ())]
            missing = schema.get("minItems", 0) - len(items)
            return items[: max(schema.get("minItems", 0), 0)] + [
                _value(schema.get("items", {}), root, depth + 1) for _ in range(min(missing, 1000))
            ]
        case "string":
            short = FORMATS.get(schema.get("format", ""), "x" * min(max(schema.get("minLength", 1), 1), 100_000))
            return short if schema.get("maxLength", 1) > 0 else ""
        case "integer" | "number":
            return _number(schema)
        case "boolean":
            return True
        case _:
            return None


def _object(schema: Mapping[str, Any], root: Any, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    extra = schema.get("additionalProperties", {})
    return {name: _value(properties.get(name, extra), root, depth + 1) for name in schema.get("required", ())}


def _number(schema: Mapping[str, Any]) -> int | float:
    step = schema.get("multipleOf", 1)
    low = max(schema.get("minimum", 0), schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else 0)
    high = schema.get("maximum", schema.get("exclusiveMaximum", math.inf) - step)
    value = low if low <= high else high
    rest = value % step
    found: int | float = value + (step - rest if rest and value + step - rest <= high else -rest)
    return found


def _definition(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    node = resolve(str(schema["$ref"]), root)
    return node if isinstance(node, Mapping) else {}


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _merged(left: Mapping[str, Any], right: Any) -> dict[str, Any]:
    if not isinstance(right, Mapping):
        return dict(left)
    merged = {**left, **right}
    if "properties" in left and "properties" in right:
        merged["properties"] = {**left["properties"], **right["properties"]}
    if "required" in left and "required" in right:
        merged["required"] = [*left["required"], *right["required"]]
    return merged
