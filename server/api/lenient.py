"""Leniency that surfaces share: nested and unknown keys, and PHP's empty arrays in schemas."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from server.api.body import bad
from server.notes import Note

CONSTRAINTS = frozenset(
    (
        "guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding",
        "structured_outputs", "structural_tag", "response_format", "json_schema", "regex", "grammar", "ebnf", "nvext",
        "guided_ebnf", "guided_json_schema", "response_schema", "responseSchema", "output_schema", "allowed_token_ids",
    )
)  # fmt: skip
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependentRequired")
SCHEMAS = ("additionalProperties", "items")
MAX_DEPTH = 64  # of the walk for empty arrays; deeper schemas are refused later


def without_extra_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with the keys of a literal `extra_body` beside the others, where the openai SDK would have put them."""
    whole = dict(body)
    while isinstance(extra := whole.get("extra_body"), dict):
        del whole["extra_body"]
        whole = {**extra, **whole}
    return whole


def notes_on_unknown(body: Mapping[str, Any], known: Container[str]) -> tuple[Note, ...]:
    """Notes on the keys that are ignored. Raises RequestRefused as `refuse_constraints` does."""
    refuse_constraints(body, known)
    unknown = [name for name, value in body.items() if name not in known and value is not None]
    return tuple(Note("ignored", name, "This parameter is not known here and was ignored.") for name in unknown)


def refuse_constraints(body: Mapping[str, Any], known: Container[str]) -> None:
    """Raises RequestRefused (400) for unknown keys that constrain replies elsewhere; ignored, they break a promise."""
    for name, value in body.items():
        constrains = name in CONSTRAINTS or (name == "format" and (value == "json" or isinstance(value, dict)))
        if constrains and name not in known and value not in (None, False, "", {}, []):
            text = f"Unsupported parameter: '{name}': this endpoint would not hold the reply to it."
            raise bad(text, name, "unsupported_parameter")


def mend_schema(node: Any, path: str, depth: int = MAX_DEPTH) -> Iterator[Note]:
    """Replace `[]` by `{}` in a schema where it must have an object: PHP writes both alike."""
    if isinstance(node, list):
        for position, item in enumerate(node):
            yield from mend_schema(item, f"{path}[{position}]", depth - 1)
    if not isinstance(node, dict) or depth <= 0:
        return
    for name in (*MAPS, *SCHEMAS):
        if node.get(name) == []:
            node[name] = {}
            yield _emptied(f"{path}.{name}")
    for name in MAPS[:-1]:
        for key, value in node[name].items() if isinstance(node.get(name), dict) else ():
            if value == []:
                node[name][key] = {}
                yield _emptied(f"{path}.{name}.{key}")
    for name, value in node.items():
        if name not in ("enum", "const", "default", "examples"):
            yield from mend_schema(value, f"{path}.{name}", depth - 1)


def mend_tool_schemas(tools: Any, field: str) -> Iterator[Note]:
    """Mend the schemas that tools have in this field."""
    for position, tool in enumerate(tools if isinstance(tools, list) else ()):
        yield from mend_field(tool, field, f"tools[{position}].{field}")


def mend_field(holder: Any, field: str, path: str) -> Iterator[Note]:
    """Mend the schema that an object has in this field, whose path is given; anything else is left alone."""
    if isinstance(holder, dict):
        if holder.get(field) == []:
            holder[field] = {}
            yield _emptied(path)
        yield from mend_schema(holder.get(field), path)


def _emptied(path: str) -> Note:
    return Note("schema", path, "An empty array was read as an empty object.")
