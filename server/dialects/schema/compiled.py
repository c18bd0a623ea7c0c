"""Compiled tools: what is derived from one schema, in one place and one cache."""

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from server.dialects.base import ConstraintSpec, ResponseFormat, Tool
from server.dialects.schema.cache import derived
from server.dialects.schema.normalize import normalised, without_nulls
from server.dialects.schema.patterns import full_match
from server.dialects.schema.references import Path, definitions_of, resolved
from server.dialects.schema.repair import SchemaNote, repaired
from server.dialects.schema.satisfiable import SatisfiablePart, context, satisfiable
from server.dialects.schema.supported import SupportedPart, find_supported
from server.dialects.schema.validator import FAULTS, PATTERN_BYTES, compile_validator
from server.dialects.schema.variants import variants
from server.errors import BadSchema
from server.notes import Note

P = TypeVar("P")
# Bytes of all parts together for each byte of JSON, measured on schemas of 70 KB: the validator takes 19, the Python
# objects of a schema 6, in up to four forms.
BYTES_PER_CHARACTER = 56
MAX_PARTS_DEPTH = 8  # of the alternatives and parts of one argument, as in grammars


@dataclass(frozen=True, slots=True)
class CompiledTool:
    """One tool's schema, or that of a `response_format`, with its parts, each computed at its first use.

    `source` is the schema's JSON. Thread-safe: two threads that need a part at the same time compute it twice.
    """

    source: str
    _parts: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def part(self, key: Any, make: Callable[[], P]) -> P:
        """The part of this key, computed by `make` where it is not there. Raises what `make` raises."""
        if key not in self._parts:
            self._parts[key] = make()
        value: P = self._parts[key]
        return value

    @property
    def schema(self) -> Any:
        """The normalised schema."""
        return self._repaired[0]

    @property
    def repair_notes(self) -> tuple[SchemaNote, ...]:
        """What was put right in the schema; a strict tool is refused for it."""
        return self._repaired[1]

    @property
    def _repaired(self) -> tuple[Any, tuple[SchemaNote, ...]]:
        def make() -> tuple[Any, tuple[SchemaNote, ...]]:
            schema, notes = repaired(without_nulls(json.loads(self.source)))
            return normalised(schema), notes

        return self.part("schema", make)

    @property
    def fault(self) -> tuple[Path, str] | None:
        """Path and text of what makes the schema invalid, a keyword of a wrong type; None where it is valid."""
        return self._validator[1]

    @property
    def validator(self) -> Any:
        """The validator of a schema without a fault."""
        return self._validator[0]

    @property
    def _validator(self) -> tuple[Any, tuple[Path, str] | None]:
        def make() -> tuple[Any, tuple[Path, str] | None]:
            try:
                return compile_validator(self.schema), None
            except FAULTS as error:
                text = str(getattr(error, "message", error)).splitlines()[0][:300] + "."
                return None, (tuple(getattr(error, "instance_path", ())), text)

        return self.part("validator", make)

    @property
    def satisfiable(self) -> SatisfiablePart:
        """The part that some value satisfies."""
        return self.part("satisfiable", lambda: satisfiable(self.schema))

    def supported(self, strict: bool) -> SupportedPart:
        """The part that a grammar enforces."""
        return self.part(("supported", strict), lambda: find_supported(self.satisfiable, self.schema, strict))

    def notes(self, strict: bool) -> tuple[SchemaNote, ...]:
        """What is not enforced."""
        return self.repair_notes + self.supported(strict).notes

    def notes_on_raw_strings(self, strict: bool) -> tuple[SchemaNote, ...]:
        """Which patterns of arguments are not enforced where strings are raw text, not JSON."""
        return self.part(("raw strings", strict), lambda: tuple(_unheld_patterns(self.supported(strict).schema)))

    @property
    def variants(self) -> list[dict[str, Any]]:
        """The normalised schema as plain objects, one for each alternative."""
        return self.part("variants", lambda: variants(self.schema))


def compiled(schema: Any) -> CompiledTool:
    """The compiled form of a schema."""
    source = json.dumps(schema)
    num_patterns = source.count('"pattern')
    num_bytes = BYTES_PER_CHARACTER * len(source) + 2 * PATTERN_BYTES * num_patterns
    return derived("schema", source, lambda: CompiledTool(source), lambda _: num_bytes)


def compiled_tool(tool: Tool) -> CompiledTool:
    """The compiled form of a tool's parameters."""
    return compiled(whole_schema(tool.parameters))


def whole_schema(parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a tool's parameters as the schema of an object, or the schema of no arguments."""
    return {**(parameters or {"properties": {}, "additionalProperties": False}), "type": "object"}


def supported(schema: Any, strict: bool, param: str) -> Any:
    """Return the part of this schema that the grammar enforces; raise BadSchema under `strict` if it is not all."""
    return _enforced(compiled(schema), strict, param, "invalid_json_schema")


def supported_arguments(spec: ConstraintSpec, tool: Tool) -> Any:
    """Return the part of a tool's schema that the grammar enforces; raise BadSchema under `strict` if it is not all.

    Where a call is forced, raise it for an unsatisfiable schema too. Otherwise such a call is flagged.
    """
    code = "invalid_function_parameters"
    if spec.choice.mode == "required":
        check_satisfiable(whole_schema(tool.parameters), f"Invalid schema for function '{tool.name}'", tool.param, code)
    return _enforced(compiled_tool(tool), tool.strict, tool.param, code)


def _enforced(tool: CompiledTool, strict: bool, param: str, code: str) -> Any:
    part = tool.supported(strict)
    if part.fault:
        text = f"The grammar engine cannot hold this schema under strict: {part.fault}"
        raise BadSchema(text, param=param, code=code)
    return part.schema


def check_satisfiable(schema: Any, subject: str, param: str, code: str) -> None:
    """Raise BadSchema, naming the path at fault, if nothing satisfies this schema."""
    found = compiled(schema).satisfiable
    if found.schema is False:
        text = f"{subject}: In context={context(found.fault)}, no value satisfies this."
        raise BadSchema(text, param=param, code=code)


def schema_notes(
    tools: Sequence[Tool], callable_names: Container[str], answer: ResponseFormat | None, raw_strings: bool = False
) -> Iterator[Note]:
    """Yield what a constraint of these tools, of which some may be called, does not enforce of their schemas.

    `raw_strings`: their format writes strings that are arguments as raw text.
    """
    for tool in tools:
        if tool.name in callable_names and not tool.custom:
            found = compiled_tool(tool)
            notes = found.notes_on_raw_strings(tool.strict) if raw_strings else ()
            yield from _placed((*found.notes(tool.strict), *notes), tool.param)
    if answer is not None and answer.schema is not None:
        yield from _placed(compiled(answer.schema).notes(answer.strict), answer.place or answer.param)


def _unheld_patterns(schema: Any) -> Iterator[SchemaNote]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    shared = definitions_of(schema) if isinstance(schema, Mapping) else {}
    for name, inner in properties.items() if isinstance(properties, Mapping) else ():
        patterns = (part["pattern"] for part in _string_parts(inner, shared, MAX_PARTS_DEPTH) if "pattern" in part)
        for pattern in dict.fromkeys(map(str, patterns)):
            if full_match(pattern) is None:
                shown = json.dumps(pattern, ensure_ascii=False)[:80]
                text = f"the pattern {shown} is not enforced while it is written: this tool format cannot hold it"
                yield SchemaNote(("properties", name), text)


def _string_parts(schema: Any, shared: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    """Yield the schema of an argument and its alternatives and parts, which hold the argument itself."""
    if not isinstance(schema, Mapping) or depth == 0:
        return
    if "$ref" in schema:
        yield from _string_parts(resolved({**shared, **schema}), shared, depth - 1)
        return
    yield schema
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key) or ():
            yield from _string_parts(part, shared, depth - 1)


def _placed(notes: tuple[SchemaNote, ...], param: str) -> Iterator[Note]:
    for note in notes:
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in note.path)
        yield Note("schema", f"{param}{steps}", note.text)
