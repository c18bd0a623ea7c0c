"""Traversal of the subschemas of a schema, and resolution of `$ref`."""

from collections.abc import Callable, Iterator, Mapping
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

Path = tuple[str | int, ...]


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the direct subschemas, each with its path: a keyword, and a name or an index where it has several."""
    for key, value in schema.items():
        if key in MAP_OF_SCHEMAS and isinstance(value, Mapping):
            yield from (((key, name), inner) for name, inner in value.items())
        elif (key in SCHEMA_LIST or key == "items") and isinstance(value, list):  # `items`: a tuple in older drafts
            yield from (((key, i), inner) for i, inner in enumerate(value))
        elif key in ONE_SCHEMA and value is not None:
            yield (key,), value


def map_subschemas(schema: Mapping[str, Any], convert: Callable[[Path, Any], Any]) -> dict[str, Any]:
    """Copy a schema, with each direct subschema replaced by `convert(path, subschema)`."""
    new = dict(schema)
    for path, inner in subschemas(schema):
        key = str(path[0])
        if len(path) == 1:
            new[key] = convert(path, inner)
        else:
            if new[key] is schema[key]:
                new[key] = dict(schema[key]) if isinstance(schema[key], Mapping) else list(schema[key])
            new[key][path[1]] = convert(path, inner)
    return new


def walk(schema: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield a schema and all its subschemas, outermost first, each with its path."""
    yield path, schema
    if isinstance(schema, Mapping):
        for below, inner in subschemas(schema):
            yield from walk(inner, (*path, *below))


def with_definitions(schema: Any) -> Any:
    """Rewrite a schema so that every `$ref` into it points to a definition.

    Generators of schemas write `#/properties/home` where a type comes twice, and `#` for trees. Such a part moves to
    `$defs`, once, and is replaced by a `$ref`. Dangling references are left as they are.
    """
    places = {pointer(path): node for path, node in walk(schema) if isinstance(node, Mapping)}
    pointed = (_target(node) for node in places.values())
    moved = [at for at in dict.fromkeys(pointed) if at in places and not _is_definition(at)]
    if not moved:
        return schema
    free = (name for i in count() if (name := f"part_{i}") not in _definitions(schema))
    names = dict(zip(moved, free, strict=False))
    definitions: dict[str, Any] = {}
    whole = _rewritten(schema, (), names, definitions)
    if "#" in names:  # the root becomes a definition; the others stay beside it
        body = definitions[names["#"]]
        definitions[names["#"]] = {key: value for key, value in body.items() if key not in DEFINITIONS}
        whole = {**whole, **definitions_of(body)}
    return {**whole, "$defs": {**_definitions(whole), **definitions}}


def definitions_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `$defs` and `definitions` of a schema."""
    return {key: schema[key] for key in DEFINITIONS if key in schema}


def with_reached_definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the definitions beside a schema that it does not refer to, directly or through others."""
    shared = definitions_of(schema)
    reached: dict[str, Any] = {}
    unread: list[Any] = [{key: value for key, value in schema.items() if key not in shared}]
    kept = dict(unread[0])
    while unread:
        for _, node in walk(unread.pop()):
            reference = node.get("$ref") if isinstance(node, Mapping) else None
            if isinstance(reference, str) and reference not in reached:
                reached[reference] = resolve(reference, shared)
                unread.append(reached[reference])
    for key in shared:
        named = {name: node for name, node in shared[key].items() if pointer((key, name)) in reached}
        if named:
            kept[key] = named
    return kept


def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Resolve `$ref` among the definitions beside it; `{}` if it is not there."""
    shared = definitions_of(schema)
    node = resolve(str(schema["$ref"]), shared)
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    return {**shared, **node, **beside} if isinstance(node, Mapping) else {}


def resolve(reference: str, definitions: Mapping[str, Any]) -> Any:
    """Return the definition that a `$ref` such as `#/$defs/name` points to; None if it is not there."""
    node: Any = definitions
    for step in reference.removeprefix("#/").split("/"):
        node = node.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
    return node


def pointer(path: Path) -> str:
    """Return the JSON pointer of a path."""
    return "#" + "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)


def _target(node: Mapping[str, Any]) -> str:
    reference = node.get("$ref")
    return unquote(reference) if isinstance(reference, str) else ""


def _definitions(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("$defs")
    return found if isinstance(found, Mapping) else {}


def _is_definition(at: str) -> bool:
    _, _, path = at.partition("#/")
    key, _, name = path.partition("/")
    return key in DEFINITIONS and "/" not in name


def _rewritten(node: Any, path: Path, names: Mapping[str, str], definitions: dict[str, Any]) -> Any:
    if not isinstance(node, Mapping):
        return node
    new = map_subschemas(node, lambda below, inner: _rewritten(inner, (*path, *below), names, definitions))
    if (target := _target(node)) in names:
        new["$ref"] = f"#/$defs/{names[target]}"
    if (at := pointer(path)) not in names:
        return new
    definitions[names[at]] = new
    return {"$ref": f"#/$defs/{names[at]}"}
