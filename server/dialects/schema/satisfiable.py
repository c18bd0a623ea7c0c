"""Replace unsatisfiable subschemas by `false`.

An unsatisfiable optional member or alternative is dropped, an array of unsatisfiable items stays empty. An
unsatisfiable required member makes its object unsatisfiable.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from server.dialects.schema.normalize import ANNOTATIONS
from server.dialects.schema.references import (
    DEFINITIONS,
    MAP_OF_SCHEMAS,
    SCHEMA_LIST,
    Path,
    definitions_of,
    map_subschemas,
    pointer,
    resolve,
)
from server.dialects.schema.validator import satisfying
from server.runtime.deep_stack import with_deep_stack

MAX_CHECKED_BYTES = 1 << 20  # of schemas given to the grammar engine; the rest counts as satisfiable
CHECK_OVERHEAD_BYTES = 4096  # added for each schema
MAX_PASSES = 8  # from reference to reference
MAX_STEPS = 32  # the same, when looking for recursion without an end
VISITED = {
    *MAP_OF_SCHEMAS, *SCHEMA_LIST, "items", "additionalProperties", "propertyNames", "additionalItems",
}  # fmt: skip
COUNTS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"))


@dataclass(frozen=True, slots=True)
class SatisfiablePart:
    """`schema` is False where nothing satisfies the whole; `fault` is the path of the subschema at fault."""

    schema: Any
    fault: Path = ()


def satisfiable(schema: Any, forgiving: bool = False) -> SatisfiablePart:
    """Return the satisfiable part of a normalised schema; without a type it is the schema of an object.

    With `forgiving`, unsatisfiable required members admit anything instead.
    """
    schema = _without_endless(schema)
    for _ in range(MAX_PASSES):
        search = _Search(schema, forgiving)
        schema = search.visit(schema, ())
        if schema is False:
            return SatisfiablePart(False, search.faults.get((), ()))
        if not search.closes_references:
            break
    return SatisfiablePart(schema)


def _without_endless(schema: Any) -> Any:
    """Replace definitions that no value of finite length satisfies by `false`."""
    if not isinstance(schema, Mapping):
        return schema
    definitions = {pointer((key, name)): node for key in DEFINITIONS for name, node in schema.get(key, {}).items()}
    endless = set(definitions)  # until shown to end
    for _ in range(MAX_STEPS):
        ending = {reference for reference in endless if _ends(definitions[reference], endless)}
        if not ending:
            break
        endless -= ending
    else:
        return schema
    if not endless:
        return schema
    without = {
        key: {name: False if pointer((key, name)) in endless else node for name, node in schema[key].items()}
        for key in DEFINITIONS
        if key in schema
    }
    return {**schema, **without}


def _ends(node: Any, endless: Collection[str]) -> bool:
    """Whether a finite value of this schema exists, if none does for the definitions in `endless`."""
    if not isinstance(node, Mapping) or "const" in node or "enum" in node:
        return True
    if node.get("$ref") in endless:
        return False
    if any(key in node and not any(_ends(one, endless) for one in node[key]) for key in ("anyOf", "oneOf")):
        return False
    needed = list(node.get("allOf", ()))
    if node.get("type") in ("object", ["object"]):
        needed += [node.get("properties", {}).get(name) for name in node.get("required", ())]
    if node.get("type") in ("array", ["array"]) and (least := node.get("minItems", 0)):
        first = node.get("prefixItems", [])
        needed += [*first[: int(least)], *([node.get("items")] if least > len(first) else [])]
    return all(_ends(one, endless) for one in needed)


def context(path: Path) -> str:
    """Format a path in a schema as OpenAI does."""
    return "(" + ", ".join(repr(str(step)) for step in path) + ("," if len(path) == 1 else "") + ")"


class _Search:
    """One pass, innermost schemas first."""

    def __init__(self, whole: Any, forgiving: bool) -> None:
        self._shared = definitions_of(whole) if isinstance(whole, Mapping) else {}
        self._forgiving = forgiving
        self._num_checked_bytes = 0
        self.faults: dict[Path, Path] = {}  # path of an unsatisfiable schema -> path of the cause
        self.closes_references = False  # a definition has become unsatisfiable: references to it are too

    def visit(self, node: Any, path: Path) -> Any:
        """Return the schema with unsatisfiable parts replaced by False, or False."""
        if not isinstance(node, Mapping):
            return node
        held = map_subschemas(
            node, lambda steps, inner: self.visit(inner, (*path, *steps)) if steps[0] in VISITED else inner
        )
        for key in {"anyOf", "oneOf"} & held.keys():
            held[key] = [inner for inner in held[key] if inner is not False]
        if self._forgiving and isinstance(held.get("properties"), dict):
            required: dict[str, Any] = {n: {} for n in held.get("required", ()) if held["properties"].get(n) is False}
            held["properties"] |= required
        fault = self._fault_below(held, path)
        if fault is None and self._is_satisfiable(held):
            return held
        self.faults[path] = path if fault is None else fault
        self.closes_references |= len(path) == 2 and path[0] in DEFINITIONS
        return False

    def _fault_below(self, node: Mapping[str, Any], path: Path) -> Path | None:
        """Return the path of the subschema that makes this one unsatisfiable, if any."""
        for i, part in enumerate(node.get("allOf", ())):
            if part is False:
                return self._fault((*path, "allOf", i))
        kind = node.get("type", None if path else "object")
        if kind not in ("object", ["object"]):
            return None
        others = node.get("additionalProperties", True) if "patternProperties" not in node else True
        for name in node.get("required", ()):
            if node.get("properties", {}).get(name, others) is False:
                return self._fault((*path, "properties", name))
        return None

    def _fault(self, path: Path) -> Path:
        return self.faults.get(path, path)

    def _is_satisfiable(self, node: dict[str, Any]) -> bool:
        """Whether the keywords leave a value; `const` and `enum` keep the values that satisfy the others."""
        if node.get("not") in ({}, True) or [] in (node.get("anyOf"), node.get("oneOf")):
            return False
        if "$ref" in node and resolve(str(node["$ref"]), self._shared) is False:
            return False
        for key in ("const", "enum"):
            if key in node:
                beside = {k: v for k, v in node.items() if k != key and k not in (*ANNOTATIONS, *DEFINITIONS)}
                values = satisfying([node[key]] if key == "const" else node[key], self._alone(beside))
                if not values:
                    return False
                node[key] = values[0] if key == "const" else values
        return not (_may_contradict(node) and self._contradicts(node))

    def _contradicts(self, node: Mapping[str, Any]) -> bool:
        text = json.dumps({**self._alone(node), "x-guidance": {"lenient": True}})
        self._num_checked_bytes += CHECK_OVERHEAD_BYTES + len(text)
        elsewhere = text.count('"$ref"') - sum(text.count(f'"$ref": "#/{key}/') for key in DEFINITIONS)
        if self._num_checked_bytes > MAX_CHECKED_BYTES or elsewhere:
            return False
        grammar = LLMatcher.grammar_from_json_schema(text)
        is_error, messages = with_deep_stack(lambda: LLMatcher.validate_grammar_with_warnings(grammar))
        return is_error and "nsatisfiable" in messages[0]

    def _alone(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the schema with the definitions that it may refer to."""
        return {**self._shared, **node} if self._shared and '"$ref"' in json.dumps(node) else node


def _may_contradict(node: Mapping[str, Any]) -> bool:
    """Whether keywords of this schema may contradict each other, so that the engine must decide."""
    keywords = node.keys() - {*ANNOTATIONS, *DEFINITIONS}
    if "allOf" in keywords or "pattern" in keywords or (len(keywords) > 1 and keywords & {"$ref", "anyOf", "oneOf"}):
        return True
    if "minItems" in keywords and (node.get("items") is False or False in node.get("prefixItems", ())):
        return True
    if "format" in keywords and keywords & {"minLength", "maxLength"}:
        return True
    return _bounds_cross(node) or any(node.get(low, 0) > node.get(high, math.inf) for low, high in COUNTS)


def _bounds_cross(node: Mapping[str, Any]) -> bool:
    low = max(_numbers(node, ("minimum", "exclusiveMinimum")), default=-math.inf)
    high = min(_numbers(node, ("maximum", "exclusiveMaximum")), default=math.inf)
    bounded = math.isfinite(low) and math.isfinite(high)
    return bounded and (low >= high or "multipleOf" in node or high - low < 1)


def _numbers(node: Mapping[str, Any], keys: Sequence[str]) -> list[float]:
    return [node[key] for key in keys if key in node]
