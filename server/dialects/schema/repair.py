"""Put right what schemas of clients get wrong: dangling `$ref`s, `required` in other forms, bounds beyond 64 bits.

Each change that loses something has a note. A strict tool is refused instead, and any with `--strict`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from urllib.parse import unquote

from server.dialects.schema.patterns import ends_open, most_repeats, translated
from server.dialects.schema.references import DEFINITIONS, Path, map_subschemas, pointer, walk

LARGEST_BOUND = 9 * 10**18  # the grammar engine computes bounds in 64 bits
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
MAX_REPEATS = 4096  # of a part of a pattern: counting that far is slow in the lexer, and ends a reply beyond
MAX_NAMESAKES = 16  # definitions of one name among which the nearest is looked for
DYNAMIC = ("$dynamicRef", "$recursiveRef")
ANCHORS = ("$anchor", "$dynamicAnchor")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


@dataclass(frozen=True, slots=True)
class SchemaNote:
    """What is not enforced, and the path of the subschema."""

    path: Path
    text: str


def repaired(schema: Any) -> tuple[Any, tuple[SchemaNote, ...]]:
    """Return a schema whose references can be followed and whose patterns both engines read, and what was lost."""
    repair = _Repair(schema)
    return repair.visit(schema, ()), tuple(repair.notes)


class _Repair:
    """One pass over a schema."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._names = dict(_named_places(schema))
        self._definitions = _definitions_by_name(schema)
        self.notes: list[SchemaNote] = []

    def visit(self, node: Any, path: Path) -> Any:
        """Return the subschema with everything below it put right."""
        if not isinstance(node, Mapping):
            return node
        new = map_subschemas(node, lambda steps, inner: self.visit(inner, (*path, *steps)))
        for older in DYNAMIC:  # without other schemas around this one they point where `$ref` does
            if isinstance(target := new.pop(older, None), str):
                new.setdefault("$ref", target)
        if isinstance(new.get("$ref"), str):
            self._point(new, path)
        if isinstance(pattern := node.get("pattern"), str):
            new["pattern"] = translated(pattern)
            if fault := _pattern_fault(pattern):
                del new["pattern"]
                shown = json.dumps(pattern, ensure_ascii=False)[:80]
                self._note(path, f"the pattern {shown} is not enforced: {fault}")
        if isinstance(node.get("patternProperties"), Mapping):
            new["patternProperties"] = {translated(name): inner for name, inner in new["patternProperties"].items()}
        _list_required(node, new)
        self._declare(new, path)
        self._bound(new, path)
        return new

    def _note(self, path: Path, text: str) -> None:
        self.notes.append(SchemaNote(path, text))

    def _point(self, node: dict[str, Any], path: Path) -> None:
        """Write the reference as a pointer into the schema, or drop it."""
        reference = node["$ref"]
        pointed = self._names.get(unquote(reference), reference)
        if not _exists(self._schema, unquote(pointed)):
            pointed = self._definition(unquote(pointed), path) or pointed
        if _exists(self._schema, unquote(pointed)):
            node["$ref"] = pointed
        else:
            del node["$ref"]
            self._note(path, f"'$ref' '{reference[:80]}' does not point into this schema: any value is taken here")

    def _definition(self, reference: str, path: Path) -> str | None:
        """Return a pointer to the definition of this name that stands under the other keyword, or not at the root.

        Of several that with the most steps in common with `path`; None where that leaves more than one.
        """
        name = reference.rpartition("/")[2].replace("~1", "/").replace("~0", "~")
        places = self._definitions.get(name, [])
        if not 0 < len(places) <= MAX_NAMESAKES:
            return None
        shared = [_num_shared_steps(at, path) for at in places]
        nearest = [at for num_steps, at in zip(shared, places, strict=True) if num_steps == max(shared)]
        return pointer(nearest[0]) if len(nearest) == 1 else None

    def _declare(self, node: dict[str, Any], path: Path) -> None:
        """Declare members that are required and not declared: of an object with `properties`, any value."""
        required, properties = node.get("required"), node.get("properties")
        others = node.get("additionalProperties")
        if not isinstance(required, list) or not isinstance(properties, Mapping) or not (others is None or not others):
            return
        names = [name for name in required if isinstance(name, str) and name not in properties]
        if not names or "patternProperties" in node:
            return
        node["properties"] = {**properties, **{name: {} for name in names}}
        if others is not None:
            shown = ", ".join(f"'{name[:40]}'" for name in names[:5])
            self._note(path, f"'required' names {shown}, which 'properties' does not declare: any value is taken")

    def _bound(self, node: dict[str, Any], path: Path) -> None:
        """Drop bounds beyond 64 bits. Integers that are written have fewer digits: only what they exclude is noted."""
        for key in (*BOUNDS, *COUNTS):
            value = node.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) <= LARGEST_BOUND:
                continue
            del node[key]
            is_upper = key.lower().removeprefix("exclusive").startswith("max")
            implied = node.get("type") == "integer" or key in COUNTS
            if not implied or is_upper != (value > 0) or key == "multipleOf":
                self._note(path, f"'{key}' {value:g} is beyond 64 bits and not enforced")


def _pattern_fault(pattern: str) -> str:
    """Why the grammar engine is not given this pattern, or ""."""
    if ends_open(pattern):  # what stands behind it in the grammar would be escaped
        return "it ends in a backslash that escapes nothing"
    num_repeats = most_repeats(pattern)
    return f"it repeats a part {num_repeats} times" if num_repeats > MAX_REPEATS else ""


def _num_shared_steps(one: Path, other: Path) -> int:
    return sum(1 for _ in takewhile(lambda steps: steps[0] == steps[1], zip(one, other, strict=False)))


def _list_required(sent: Mapping[str, Any], node: dict[str, Any]) -> None:
    """Write `required` as a list of names, each once; before draft 4 each member said `required: true` of itself."""
    required = sent.get("required")
    names = required if isinstance(required, list) else [required]
    listed = [name for name in names if isinstance(name, str)]
    properties = sent.get("properties")
    if isinstance(properties, Mapping):
        listed += [name for name, one in properties.items() if isinstance(one, Mapping) and one.get("required") is True]
    node.pop("required", None)
    if listed or required == []:
        node["required"] = list(dict.fromkeys(listed))


def _definitions_by_name(schema: Any) -> dict[str, list[Path]]:
    """Paths of the definitions of each name, wherever in the schema they stand."""
    found: dict[str, list[Path]] = {}
    for path, node in walk(schema):
        for keyword in DEFINITIONS:
            if isinstance(node, Mapping) and isinstance(node.get(keyword), Mapping):
                for name in node[keyword]:
                    found.setdefault(name, []).append((*path, keyword, name))
    return found


def _named_places(schema: Any) -> Any:
    """Yield `$id`s and anchors with the JSON pointers of their subschemas."""
    root = schema.get("$id", schema.get("id")) if isinstance(schema, Mapping) else None
    base = root.removesuffix("#") if isinstance(root, str) else ""
    for path, node in walk(schema):
        if not isinstance(node, Mapping):
            continue
        own = node.get("$id")
        names = [f"#{node[key]}" for key in ANCHORS if isinstance(node.get(key), str)]
        names += [own, own.removesuffix("#")] if isinstance(own, str) else []
        reference = node.get("$ref")
        if base and isinstance(reference, str) and reference.startswith(f"{base}#"):
            yield unquote(reference), reference.removeprefix(base)
        yield from ((name, pointer(path)) for name in names)


def _exists(schema: Any, reference: str) -> bool:
    """Whether a JSON pointer, as `#/$defs/name`, points to a schema in this one."""
    if not reference.startswith("#/"):
        return reference == "#"
    node = schema
    for step in reference.removeprefix("#/").split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping):
            node = node.get(name)
        else:
            node = node[int(name)] if isinstance(node, list) and name.isdigit() and int(name) < len(node) else None
    return isinstance(node, Mapping | bool)
