"""Reduce a JSON Schema to the subset llguidance can enforce."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from server.dialects.base import ConstraintSpec, Tool
from server.dialects.schema.cache import OBJECT_FACTOR, derived
from server.dialects.schema.engine import grammar_fault
from server.dialects.schema.normalize import COMPACT, constrained, normalised
from server.dialects.schema.references import map_subschemas
from server.dialects.schema.satisfiable import SatisfiablePart, context, satisfiable
from server.dialects.schema.validate import whole_schema
from server.errors import BadSchema

MAX_PATTERN_LENGTH = 2000  # characters
ANY_OBJECT = {"type": "object"}


def supported(schema: Any, strict: bool, param: str) -> Any:
    """Return the part of this schema that the grammar enforces. The rest is checked when the call is complete.

    Unsatisfiable parts are excluded. Raises BadSchema under `strict`, where all of it must be enforced.
    """
    held, fault = _supported(json.dumps(schema), strict)
    if fault:
        raise BadSchema(
            f"The grammar engine cannot hold this schema under strict: {fault}",
            param=param,
            code="invalid_json_schema" if param == "response_format" else "invalid_function_parameters",
        )
    return json.loads(held)


def supported_arguments(spec: ConstraintSpec, tool: Tool) -> Any:
    """Return the part of a tool's schema that the grammar enforces; raise BadSchema under strict if it is not all.

    Where a call is forced, raise it for an unsatisfiable schema too. Otherwise such a call is flagged.
    """
    place = next(i for i, other in enumerate(spec.tools) if other.name == tool.name)
    param, schema = f"tools[{place}].function.parameters", whole_schema(tool)
    if spec.choice.mode == "required":
        check_satisfiable(schema, f"Invalid schema for function '{tool.name}'", param, "invalid_function_parameters")
    return supported(schema, tool.strict, param)


def check_satisfiable(schema: Any, subject: str, param: str, code: str) -> None:
    """Raise BadSchema, naming the path at fault, if nothing satisfies this schema."""
    found = _satisfiable(json.dumps(schema))
    if found.schema is False:
        raise BadSchema(
            f"{subject}: In context={context(found.fault)}, no value satisfies this.", param=param, code=code
        )


def _satisfiable(schema: str) -> SatisfiablePart:
    def find() -> SatisfiablePart:
        return satisfiable(normalised(json.loads(schema)))

    return derived("satisfiable", schema, find, lambda _: OBJECT_FACTOR * len(schema))


def _supported(schema: str, strict: bool) -> tuple[str, str]:
    def find() -> tuple[str, str]:
        return _find_supported(schema, strict)

    return derived("supported", schema, find, lambda found: sum(map(sys.getsizeof, found)), flag=strict)


def _find_supported(schema: str, strict: bool) -> tuple[str, str]:
    found = _satisfiable(schema)
    if found.schema is False and strict:
        return "", f"no value satisfies {context(found.fault)}"
    if found.schema is False:
        found = satisfiable(normalised(json.loads(schema)), forgiving=True)
    kept = ANY_OBJECT if found.schema is False else constrained(found.schema)
    fault = compile_fault(kept, lenient=not strict)
    if strict or not fault:
        return json.dumps(kept, ensure_ascii=False), fault
    # Ordered by loss, the least first; the first result that compiles is used.
    for relax in (_without_bad_strings, _without_string_rules, _without_combinations):
        kept = relax(kept)
        if not compile_fault(kept, lenient=True):
            return json.dumps(kept, ensure_ascii=False), ""
    return json.dumps(ANY_OBJECT), ""


def compile_fault(schema: Any, lenient: bool) -> str:
    """Return why the grammar engine does not support this schema, or ""."""
    if isinstance(schema, Mapping):
        schema = {**schema, "x-guidance": {**COMPACT, "lenient": lenient}}
    return grammar_fault(schema)


def _without_bad_strings(schema: Any) -> Any:
    def relax(node: dict[str, Any]) -> None:
        if "pattern" in node and (
            len(str(node["pattern"])) > MAX_PATTERN_LENGTH
            or compile_fault({"type": "string", "pattern": node["pattern"]}, lenient=True)
        ):
            del node["pattern"]

    return _rewritten(schema, relax)


def _without_string_rules(schema: Any) -> Any:
    def relax(node: dict[str, Any]) -> None:
        for key in ("pattern", "format", "minLength", "maxLength", "patternProperties"):
            node.pop(key, None)

    return _rewritten(schema, relax)


def _without_combinations(schema: Any) -> Any:
    def relax(node: dict[str, Any]) -> None:
        for key in ("allOf", "oneOf", "anyOf", "minProperties", "maxProperties", "minimum", "maximum", "multipleOf"):
            node.pop(key, None)

    return _rewritten(schema, relax)


def _rewritten(schema: Any, relax: Callable[[dict[str, Any]], None]) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    node = map_subschemas(schema, lambda _, inner: _rewritten(inner, relax))
    relax(node)
    return node
