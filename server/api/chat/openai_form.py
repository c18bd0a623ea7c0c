"""Rewrite a body to the form of the schemas, with notes: nested extensions, PHP's empty objects, unknown keys."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from server.api.body import notes_on_unknown
from server.notes import Note

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependentRequired")
MAX_DEPTH = 64  # of the walk for empty arrays; deeper schemas are refused later


def in_openai_form(body: Mapping[str, Any], known: Container[str]) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """The body with the keys of a literal `extra_body` beside the others, and notes on keys that are not `known`.

    Raises RequestRefused for unknown keys that constrain the reply elsewhere.
    """
    extra = body.get("extra_body")
    if isinstance(extra, dict):
        body = {**extra, **{name: value for name, value in body.items() if name != "extra_body"}}
    notes = [*notes_on_unknown(body, known)]
    body = dict(body)
    for field in ("tools", "functions"):
        if isinstance(body.get(field), list):
            notes += _mend_tools(body[field], field)
    answer = body.get("response_format")
    if isinstance(answer, dict):
        notes += _mend_schema(answer, "response_format", MAX_DEPTH)
    return body, tuple(notes)


def _mend_tools(tools: list[Any], field: str) -> Iterator[Note]:
    """Replace `[]` by `{}` where a schema must have an object: PHP writes both alike."""
    for position, tool in enumerate(tools):
        function = tool.get("function") if field == "tools" and isinstance(tool, dict) else tool
        if isinstance(function, dict):
            path = f"{field}[{position}].function" if field == "tools" else f"{field}[{position}]"
            if function.get("parameters") == []:
                function["parameters"] = {}
                yield _emptied(f"{path}.parameters")
            yield from _mend_schema(function.get("parameters"), f"{path}.parameters", MAX_DEPTH)


def _mend_schema(node: Any, path: str, depth: int) -> Iterator[Note]:
    if isinstance(node, list):
        for position, item in enumerate(node):
            yield from _mend_schema(item, f"{path}[{position}]", depth - 1)
    if not isinstance(node, dict) or depth <= 0:
        return
    for name in MAPS:
        if node.get(name) == []:
            node[name] = {}
            yield _emptied(f"{path}.{name}")
    for name, value in node.items():
        if name not in ("enum", "const", "default", "examples"):
            yield from _mend_schema(value, f"{path}.{name}", depth - 1)


def _emptied(path: str) -> Note:
    return Note("schema", path, "An empty array was read as an empty object.")
