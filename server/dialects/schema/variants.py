"""Expand the schema of an object to a list of plain objects, one for each alternative of a top-level `anyOf`."""

from collections.abc import Mapping, Sequence
from typing import Any

from server.dialects.schema.references import definitions_of, resolved

MAX_VARIANTS = (
    16  # alternatives; a schema with more is constrained as an object with all of their properties, all optional
)

# Keywords whose meaning depends on the keywords beside them.
APART = {
    "additionalProperties", "patternProperties", "unevaluatedProperties", "items", "prefixItems", "unevaluatedItems",
    "contains", "if", "then", "else",
}  # fmt: skip


def variants(schema: Any) -> list[dict[str, Any]]:
    """Return object schemas with only `properties`, `required`, `additionalProperties` and the size of a map."""
    found = _expand(schema, 8) if isinstance(schema, Mapping) else []
    plain = [_plain(one) for one in found]
    return plain if 0 < len(plain) <= MAX_VARIANTS else [_all_optional(plain)]


def _expand(schema: Mapping[str, Any], depth: int) -> list[Mapping[str, Any]]:
    if depth == 0:
        return [schema]
    if "$ref" in schema:
        return _expand(resolved(schema), depth - 1)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            rest = {name: value for name, value in schema.items() if name != key}
            branches = [branch for branch in schema[key] if isinstance(branch, Mapping)]
            return [one for branch in branches for one in _expand(_merged([rest, branch]), depth - 1)]
    if "allOf" in schema:
        rest = {name: value for name, value in schema.items() if name != "allOf"}
        parts = [_reference(part, schema) for part in schema["allOf"] if isinstance(part, Mapping)]
        return _expand(_merged([rest, *parts]), depth - 1)
    return [schema]


def _reference(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    shared = definitions_of(whole)
    return resolved({**shared, **part}) if "$ref" in part else part


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key == "properties":
                held = merged.get(key, {})
                merged[key] = {**held, **{n: _both(held[n], one) if n in held else one for n, one in value.items()}}
            elif key == "required":
                merged[key] = list(dict.fromkeys([*merged.get(key, []), *value]))
            elif key in ("anyOf", "oneOf", "allOf", "$ref"):
                merged[key] = value if key == "$ref" else [*merged.get(key, []), *value]
            else:
                merged[key] = value
    return merged


def _both(one: Any, other: Any) -> Any:
    """Combine two schemas: merged where their keywords are independent, else by `allOf`."""
    if one is True or one == other:
        return other
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return one if other is True else False
    if all(one[key] == other[key] for key in one.keys() & other.keys()) and not {*one, *other} & APART:
        return {**one, **other}
    return {"allOf": [one, other]}


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = dict(schema.get("properties", {}))
    extra = schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        properties.setdefault(name, {} if extra is True else extra)
    kept = ("required", "additionalProperties", "minProperties", "maxProperties", "$defs", "definitions")
    return {**{key: schema[key] for key in kept if key in schema}, "properties": properties}


def _all_optional(plain: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    members: dict[str, list[Any]] = {}
    for name, schema in (item for one in plain for item in one["properties"].items()):
        found = members.setdefault(name, [])
        found += [] if schema in found else [schema]
    properties = {name: found[0] if len(found) == 1 else {"anyOf": found} for name, found in members.items()}
    return {**_merged(plain), "properties": properties, "required": []}
