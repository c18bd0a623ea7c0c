"""Keywords that contain subschemas, and resolution of `$ref`."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any
from urllib.parse import unquote

MAP_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
SCHEMA_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
ONE_SCHEMA = (
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "additionalItems", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
DEFINITIONS = ("$defs", "definitions")


def with_definitions(schema: Any) -> Any:
    """Rewrite a schema so that every `$ref` into it points to a definition.

    Generators of schemas write `#/properties/home` where a type comes twice, and `#` for trees. Such a part moves to
    `$defs`, once, and is replaced by a `$ref`. Dangling references are left as they are.
    """
    places: dict[str, Mapping[str, Any]] = dict(_places(schema, "#"))
    pointed = (_pointer(node) for node in places.values())
    moved = [at for at in dict.fromkeys(pointed) if at in places and not _is_definition(at)]
    if not moved:
        return schema
    free = (name for i in count() if (name := f"part_{i}") not in _definitions(schema))
    names = dict(zip(moved, free, strict=False))
    definitions: dict[str, Any] = {}
    whole = _rewritten(schema, "#", names, definitions)
    if "#" in names:  # the root becomes a definition; the others stay beside it
        body = definitions[names["#"]]
        definitions[names["#"]] = {key: value for key, value in body.items() if key not in DEFINITIONS}
        whole = {**whole, **{key: body[key] for key in DEFINITIONS if key in body}}
    return {**whole, "$defs": {**_definitions(whole), **definitions}}


def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Resolve `$ref` among the definitions beside it; `{}` if it is not there."""
    shared = {key: schema[key] for key in DEFINITIONS if key in schema}
    node: Any = shared
    for step in str(schema["$ref"]).removeprefix("#/").split("/"):
        node = node.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    return {**shared, **node, **beside} if isinstance(node, Mapping) else {}


def escaped(name: str) -> str:
    """Escape a key as a step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _places(node: Any, at: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every subschema that is an object, with its JSON pointer."""
    if isinstance(node, Mapping):
        yield at, node
        for key, value in node.items():
            for below, inner in _below(key, value, f"{at}/{key}"):
                yield from _places(inner, below)


def _below(key: str, value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if key in MAP_OF_SCHEMAS and isinstance(value, Mapping):
        yield from ((f"{at}/{escaped(name)}", inner) for name, inner in value.items())
    elif (key in SCHEMA_LIST or key == "items") and isinstance(value, list):
        yield from ((f"{at}/{i}", inner) for i, inner in enumerate(value))
    elif key in ONE_SCHEMA:
        yield at, value


def _pointer(node: Mapping[str, Any]) -> str:
    reference = node.get("$ref")
    return unquote(reference) if isinstance(reference, str) else ""


def _definitions(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("$defs")
    return found if isinstance(found, Mapping) else {}


def _is_definition(at: str) -> bool:
    _, _, path = at.partition("#/")
    key, _, name = path.partition("/")
    return key in DEFINITIONS and "/" not in name


def _rewritten(node: Any, at: str, names: Mapping[str, str], definitions: dict[str, Any]) -> Any:
    if not isinstance(node, Mapping):
        return node
    new: dict[str, Any] = {}
    for key, value in node.items():
        below = [_rewritten(inner, place, names, definitions) for place, inner in _below(key, value, f"{at}/{key}")]
        if isinstance(value, list) and below:
            new[key] = below
        elif key in MAP_OF_SCHEMAS and below:
            new[key] = dict(zip(value, below, strict=True))
        else:
            new[key] = below[0] if below else value
    if (pointed := _pointer(node)) in names:
        new["$ref"] = f"#/$defs/{names[pointed]}"
    if at not in names:
        return new
    definitions[names[at]] = new
    return {"$ref": f"#/$defs/{names[at]}"}
