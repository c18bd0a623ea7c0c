"""Convert tagged text, such as `<parameter=n>5</parameter>`, to JSON according to the tool's schema."""

import json
from collections.abc import Mapping
from typing import Any

from server.dialects.parsing.json_stream import JsonText
from server.dialects.schema.compiled import compiled, whole_schema
from server.dialects.schema.references import definitions_of, resolved
from server.dialects.schema.validate import fits

MAX_STEPS = 32  # from reference to reference


class Types:
    """The types of one tool's parameters."""

    def __init__(self, parameters: Mapping[str, Any] | None) -> None:
        tool = compiled(whole_schema(parameters))
        self._variants = tool.variants
        self._shared = definitions_of(tool.schema)
        self.names = frozenset(name for one in self._variants for name in one["properties"])
        self.required = frozenset.intersection(*(frozenset(one.get("required", ())) for one in self._variants))

    def of(self, name: str) -> Any:
        """Return the schema of one parameter, with the definitions it may refer to."""
        declared = [one["properties"][name] for one in self._variants if name in one["properties"]]
        found = declared or [one.get("additionalProperties", {}) for one in self._variants]
        distinct = [schema for i, schema in enumerate(found) if schema is not False and schema not in found[:i]]
        schema = distinct[0] if len(distinct) == 1 else {"anyOf": distinct} if distinct else {}
        return {**self._shared, **schema} if isinstance(schema, Mapping) else {}

    def is_text(self, name: str) -> bool:
        """Whether every value of this parameter is a string, so that its text can be streamed."""
        return only_strings(self.of(name))

    def is_json(self, name: str) -> bool:
        """Whether no value of this parameter is a string, so that its text is JSON."""
        return without_strings(self.of(name))


def without_strings(schema: Any) -> bool:
    """Whether no string satisfies this schema, judging by its outermost types."""
    for _ in range(MAX_STEPS):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        schema = resolved(schema)
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    return (
        isinstance(kinds, str | list) and bool(kinds) and "string" not in ([kinds] if isinstance(kinds, str) else kinds)
    )


def only_strings(schema: Any) -> bool:
    """Whether nothing but strings satisfies this schema, judging by its outermost keywords."""
    for _ in range(MAX_STEPS):
        if not isinstance(schema, Mapping):
            return False
        if "$ref" not in schema:
            break
        schema = resolved(schema)
    if "const" in schema:
        return isinstance(schema["const"], str)
    if "enum" in schema:
        return all(isinstance(value, str) for value in schema["enum"])
    if "type" in schema:
        return schema["type"] in ("string", ["string"])
    shared = definitions_of(schema)
    branches = [branch for branch in schema.get("anyOf") or schema.get("oneOf") or () if branch is not False]
    return bool(branches) and all(
        isinstance(branch, Mapping) and only_strings({**shared, **branch}) for branch in branches
    )


def as_json(text: str, schema: Any) -> tuple[str, bool]:
    """Return the JSON text of a value, and whether it was repaired.

    JSON that fits the schema is used as it is; everything else is a string. Only strings are written without quotes
    in these formats.
    """
    if only_strings(schema):
        return quoted_json(text), False
    stripped = text.strip()
    value = JsonText()
    out, end = value.feed(stripped, last=True)
    found: Any = None
    is_json = value.done and end == len(stripped) and not stripped.startswith(("'", '"'))
    if is_json:
        try:
            found = json.loads(out)
        except ValueError:
            is_json = False
    if is_json and fits(found, schema):
        return out, value.repaired
    if is_json and not fits(text, schema) and not isinstance(found, str):
        return out, value.repaired
    quoted = _quoted_value(stripped, schema)
    return quoted if quoted is not None else (quoted_json(text), False)


def _quoted_value(text: str, schema: Any) -> tuple[str, bool] | None:
    """Return a string written with quotes where only its content satisfies the schema."""
    if not (len(text) > 1 and text[0] == text[-1] == '"') or fits(text, schema):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return (text, True) if isinstance(value, str) and fits(value, schema) else None


def quoted_json(text: str) -> str:
    """Return a JSON string of this text, not escaped to ASCII."""
    return json.dumps(text, ensure_ascii=False)
