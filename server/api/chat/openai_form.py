"""Rewrite a body to the form of the schemas, with notes: extensions, other forms of tools, unknown keys."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from server.api.lenient import mend_field, mend_schema, notes_on_unknown, without_extra_body
from server.api.tool_forms import tools_in_chat_form
from server.notes import Note


def in_openai_form(body: Mapping[str, Any], known: Container[str]) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """The body with the keys of a literal `extra_body` beside the others, and notes on keys that are not `known`.

    Raises RequestRefused for unknown keys that constrain the reply elsewhere.
    """
    body = without_extra_body(body)
    notes = [*notes_on_unknown(body, known), *tools_in_chat_form(body)]
    for field in ("tools", "functions"):
        if isinstance(body.get(field), list):
            notes += _mend_tools(body[field], field)
    answer = body.get("response_format")
    if isinstance(answer, dict):
        notes += mend_schema(answer, "response_format")
    return body, tuple(notes)


def _mend_tools(tools: list[Any], field: str) -> Iterator[Note]:
    for position, tool in enumerate(tools):
        path = f"{field}[{position}]"
        if field == "functions":
            yield from mend_field(tool, "parameters", f"{path}.parameters")
        elif isinstance(tool, dict):
            yield from mend_field(tool.get("function"), "parameters", f"{path}.function.parameters")
