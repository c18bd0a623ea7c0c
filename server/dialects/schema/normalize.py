"""Normalize a JSON Schema to draft 2020-12, and reduce it to what a grammar enforces.

The prompt always shows the client's own schema.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from server.dialects.schema.references import DEFINITIONS, Path, map_subschemas, pointer, subschemas, with_definitions
from server.dialects.schema.repair import COUNTS

SCHEMA_COMBINERS = ("anyOf", "oneOf", "allOf")
COMBINERS = (*SCHEMA_COMBINERS, "$ref")
NAMES_OF_SCHEMAS = ("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary")
ANNOTATIONS = (
    "title", "description", "default", "examples", "example", "$comment", "deprecated", "readOnly", "writeOnly",
    "contentEncoding", "contentMediaType", "contentSchema", "nullable", "discriminator", "externalDocs", "xml",
)  # fmt: skip

PLAIN_WORDS = {
    "type", "const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "pattern", "format",
}  # fmt: skip
BESIDE_A_PART = {*ANNOTATIONS, *DEFINITIONS}

# As Qwen writes JSON, and without white space that a weak model could write without end.
COMPACT: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LARGEST_INTEGER = 10**18 - 1  # bounds the number of digits, unless the schema has bounds
MAX_COUNT = 2**31 - 1  # counts above this are checked afterwards
MAX_COUNTED_LENGTH = 4096  # length bounds above this are checked afterwards: counting that far is slow in the lexer


def normalised(schema: Any) -> Any:
    """Rewrite a schema in draft 2020-12, without `$schema`, `$id` and keywords set to null.

    Every `$ref` points to a definition: other parts that a `$ref` points to become definitions too.
    """
    return _tidied(with_definitions(schema), NAMES_OF_SCHEMAS)


def without_nulls(schema: Any) -> Any:
    """Copy a schema without keywords set to null, at any depth; a subschema that is null admits any value.

    `const` and `default` may be null where the other keywords admit null; values inside `enum` and others stay.
    """
    if not isinstance(schema, Mapping):
        return schema
    set_keys = {key: value for key, value in schema.items() if value is not None}
    if _admits_null(set_keys):
        set_keys = {key: value for key, value in schema.items() if value is not None or key in ("const", "default")}
    return map_subschemas(set_keys, lambda _, inner: {} if inner is None else without_nulls(inner))


def _admits_null(schema: Any) -> bool:
    """Whether null satisfies a schema, judging by its outermost keywords and those of its alternatives."""
    if not isinstance(schema, Mapping):
        return schema is True
    if schema.get("nullable") is True:
        return True
    if "const" in schema:
        return schema["const"] is None
    if isinstance(values := schema.get("enum"), list):
        return None in values
    if isinstance(kinds := schema.get("type"), str | list):
        return "null" in ([kinds] if isinstance(kinds, str) else kinds)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return any(map(_admits_null, schema[key]))
    return not {"$ref", "allOf", "properties", "items"} & schema.keys()


def _tidied(schema: Any, dropped: tuple[str, ...]) -> Any:
    """Definitions below the root are dropped too: whatever is referred to stands at the root."""
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: value for key, value in schema.items() if key == "const" or (value is not None and key not in dropped)}
    return _modernised(map_subschemas(kept, lambda _, inner: _tidied(inner, (*NAMES_OF_SCHEMAS, *DEFINITIONS))))


def _modernised(node: dict[str, Any]) -> dict[str, Any]:
    """Convert keywords of older drafts: tuples in `items`, boolean exclusive bounds, `allOf` of one schema.

    Counts such as `2.0` become integers, as the drafts allow them.
    """
    for count in COUNTS:
        if isinstance(node.get(count), float) and node[count].is_integer():
            node[count] = int(node[count])
    parts = node.get("allOf")
    beside = {key: value for key, value in node.items() if key != "allOf"}
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], Mapping) and beside.keys() <= BESIDE_A_PART:
        node = {**parts[0], **beside}  # older drafts put a description beside a `$ref` so
    elif isinstance(parts, list):
        node = with_plain_parts(beside, parts)
    if isinstance(node.get("items"), list):
        node["prefixItems"] = node.pop("items")
        if "additionalItems" in node:
            node["items"] = node.pop("additionalItems")
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(exclusive), bool) and (node.pop(exclusive)) and bound in node:
            node[exclusive] = node.pop(bound)
    return node


def with_plain_parts(node: dict[str, Any], parts: list[Any]) -> dict[str, Any]:
    """Merge parts of `allOf` that have only scalar keywords, none in conflict, into the keywords beside it."""
    apart = []
    for part in parts:
        plain = isinstance(part, Mapping) and part.keys() <= {*PLAIN_WORDS, *ANNOTATIONS}
        if plain and all(node.get(key, part[key]) == part[key] for key in part.keys() & PLAIN_WORDS):
            node = {**part, **node}
        else:
            apart.append(part)
    return {**node, "allOf": apart} if apart else node


def constrained(schema: Any) -> Any:
    """Return what the grammar enforces of a normalised schema.

    Annotations are dropped. Objects with `properties` take no others, unless the schema says so or combines them with
    other schemas. The number of digits is bounded.
    """
    shared = frozenset(_combined_references(schema))
    return _constrained(schema, shared, (), is_part=False)


def _constrained(node: Any, shared: frozenset[str], path: Path, is_part: bool) -> Any:
    if not isinstance(node, Mapping):
        return node
    combines = any(key in node for key in COMBINERS)
    part_below = combines and ("properties" in node or "allOf" in node or "required" in node)

    def below(steps: Path, inner: Any) -> Any:
        return _constrained(inner, shared, (*path, *steps), steps[0] in SCHEMA_COMBINERS and (part_below or is_part))

    held = map_subschemas({key: value for key, value in node.items() if key not in ANNOTATIONS}, below)
    closes = "properties" in held and not combines and not is_part and pointer(path) not in shared
    if closes and "additionalProperties" not in held and "patternProperties" not in held:
        held["additionalProperties"] = False
    return _bounded(held)


def _bounded(node: dict[str, Any]) -> dict[str, Any]:
    kind = node.get("type")
    if kind == "integer" or (isinstance(kind, list) and "integer" in kind and "number" not in kind):
        node = _with_integer_bounds(node)
    for count in COUNTS:
        most = MAX_COUNTED_LENGTH if count.endswith("Length") else MAX_COUNT
        if isinstance(node.get(count), int) and node[count] > most:
            del node[count]
    return node


def _with_integer_bounds(node: dict[str, Any]) -> dict[str, Any]:
    if any(key in node for key in (*COMBINERS, "enum", "const")):
        return node
    low, high = node.get("minimum", node.get("exclusiveMinimum")), node.get("maximum", node.get("exclusiveMaximum"))
    if low is None and (high is None or high > -LARGEST_INTEGER):
        node["minimum"] = -LARGEST_INTEGER
    if high is None and (low is None or low < LARGEST_INTEGER):
        node["maximum"] = LARGEST_INTEGER
    return node


def _combined_references(node: Any, is_part: bool = False) -> Iterator[str]:
    """Targets of `$ref`s combined with further keywords: closing those objects would exclude the other properties."""
    if not isinstance(node, Mapping):
        return
    beside = set(node) - {*ANNOTATIONS, *DEFINITIONS}
    if "$ref" in node and (is_part or len(beside) > 1):
        yield str(node["$ref"])
    combines = any(key in node for key in SCHEMA_COMBINERS)
    part_below = "allOf" in node or (combines and ("properties" in node or "required" in node))
    for path, inner in subschemas(node):
        yield from _combined_references(inner, path[0] in SCHEMA_COMBINERS and (part_below or is_part))
