"""Reduce a JSON Schema to the subset llguidance can enforce."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server.dialects.schema.engine import grammar_fault
from server.dialects.schema.normalize import COMPACT, constrained
from server.dialects.schema.references import Path, map_subschemas
from server.dialects.schema.repair import SchemaNote
from server.dialects.schema.satisfiable import SatisfiablePart, context, satisfiable
from server.dialects.schema.validator import with_name_patterns

MAX_PATTERN_LENGTH = 2000  # characters
ANY_OBJECT = {"type": "object"}
STRING_RULES = ("pattern", "format", "minLength", "maxLength", "patternProperties")
COMBINATIONS = ("allOf", "oneOf", "anyOf", "minProperties", "maxProperties", "minimum", "maximum", "multipleOf")


@dataclass(frozen=True, slots=True)
class SupportedPart:
    """JSON of the part of a schema that a grammar enforces; `fault`: under `strict`, why it is not all of it."""

    text: str
    fault: str = ""
    notes: tuple[SchemaNote, ...] = ()

    @property
    def schema(self) -> Any:
        """The schema, the caller's own."""
        return json.loads(self.text)


def find_supported(found: SatisfiablePart, schema: Any, strict: bool) -> SupportedPart:
    """Return what the grammar enforces of a normalised schema, of which some value satisfies the part `found`.

    The rest is checked when the call is complete. Under `strict`, all of it must be enforced.
    """
    if found.schema is False and strict:
        return SupportedPart("", f"no value satisfies {context(found.fault)}")
    if found.schema is False:
        found = satisfiable(schema, forgiving=True)
    kept = ANY_OBJECT if found.schema is False else constrained(found.schema)
    fault = compile_fault(kept, lenient=not strict)
    if strict or not fault:
        return SupportedPart(json.dumps(kept, ensure_ascii=False), fault)
    notes: list[SchemaNote] = []
    # Ordered by loss, the least first; the first result that compiles is used.
    for relax in (_without_bad_patterns, _without(STRING_RULES), _without(COMBINATIONS)):
        kept = _rewritten(kept, (), relax, notes)
        fault = compile_fault(kept, lenient=True)
        if not fault:
            return SupportedPart(json.dumps(kept, ensure_ascii=False), "", tuple(notes))
    lost = SchemaNote((), f"only that it is an object is enforced while it is written: {_reason(fault)}")
    return SupportedPart(json.dumps(ANY_OBJECT), "", (*notes, lost))


def compile_fault(schema: Any, lenient: bool) -> str:
    """Return why the grammar engine does not support this schema, or ""."""
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": {**COMPACT, "lenient": lenient}}
    return grammar_fault(schema)


Relaxation = Callable[[dict[str, Any], Path, list[SchemaNote]], dict[str, Any]]


def _without_bad_patterns(node: dict[str, Any], path: Path, notes: list[SchemaNote]) -> dict[str, Any]:
    def reads(pattern: str) -> bool:
        fault = f"it is longer than {MAX_PATTERN_LENGTH} characters" if len(pattern) > MAX_PATTERN_LENGTH else ""
        fault = fault or compile_fault({"type": "string", "pattern": pattern}, lenient=True)
        if fault:
            shown = json.dumps(pattern, ensure_ascii=False)[:80]
            notes.append(SchemaNote(path, f"the pattern {shown} is not enforced while it is written: {_reason(fault)}"))
        return not fault

    if "pattern" in node and not reads(str(node["pattern"])):
        del node["pattern"]
    return with_name_patterns(node, reads) if "patternProperties" in node else node


def _without(keywords: tuple[str, ...]) -> Relaxation:
    def relax(node: dict[str, Any], path: Path, notes: list[SchemaNote]) -> dict[str, Any]:
        lost = [key for key in keywords if key in node]
        if lost:
            shown = ", ".join(f"'{key}'" for key in lost)
            notes.append(SchemaNote(path, f"{shown} are not enforced while it is written: the schema is too complex"))
        return {key: value for key, value in node.items() if key not in lost}

    return relax


def _reason(fault: str) -> str:
    return fault.rpartition("error: ")[2][:200]


def _rewritten(schema: Any, path: Path, relax: Relaxation, notes: list[SchemaNote]) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    node = map_subschemas(schema, lambda steps, inner: _rewritten(inner, (*path, *steps), relax, notes))
    return relax(node, path, notes)
