"""Constraints as llguidance Lark source: what is the same for every format.

    auto                    start: (opened rest)* TEXT?             free text, but what opens a call is a call
    auto, one call          start: opened rest | TEXT?
    required                start: opener rest (separator opener rest)*
    none                    start: TEXT, without any opener
    an answer format        start: answer, or calls as well in auto

An opener is one token where the vocabulary has it, and may also be spelled out of smaller ones: both open a call, so
whatever the grammar admits is read as a valid call. Text may hold anything else.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.dialects.custom import check_format
from server.dialects.holdable import holdable
from server.dialects.protocol import Tool, Wanted
from server.dialects.schema_forms import COMPACT
from server.dialects.validity import whole_schema
from server.messages import Constraint

MAX_CALLS = 64  # of one forced reply


def callable_tools(wanted: Wanted) -> list[Tool]:
    """The tools that `tool_choice` leaves."""
    if wanted.choice.mode == "none":
        return []
    allowed = wanted.choice.allowed
    return [tool for tool in wanted.tools if allowed is None or tool.name in allowed]


def quoted(text: str) -> str:
    """A Lark string literal."""
    return json.dumps(text, ensure_ascii=False)


def marker(wanted: Wanted, text: str) -> str:
    """A marker as its token, or spelled out where the vocabulary has none."""
    token_id = wanted.marker_ids.get(text)
    return quoted(text) if token_id is None else f"<[{token_id}]>"


def pattern_of(text: str) -> str:
    """A string inside a Lark regular expression."""
    return re.escape(text).replace("/", r"\/").replace("\n", r"\n")


def json_piece(schema: Any, strict: bool, param: str) -> str:
    """A grammar piece for compact JSON of this schema."""
    held = holdable(schema, strict, param)
    if not isinstance(held, Mapping):
        held = {} if held else {"not": {}}
    return "%json " + json.dumps({**held, "x-guidance": {**COMPACT, "lenient": not strict}}, ensure_ascii=False)


def arguments_piece(wanted: Wanted, tool: Tool) -> str:
    """A grammar piece for a function's arguments as JSON."""
    place = next(i for i, other in enumerate(wanted.tools) if other.name == tool.name)
    return json_piece(whole_schema(tool), tool.strict, f"tools[{place}].function.parameters")


def input_piece(tool: Tool) -> str:
    """A grammar piece for a custom tool's free text as a JSON object; not for one with a Lark grammar."""
    text: dict[str, Any] = {"type": "string"}
    if tool.format is not None:
        text["pattern"] = f"^(?:{tool.format.definition})$"
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}
    return "%json " + json.dumps({**schema, "x-guidance": COMPACT}, ensure_ascii=False)


def raw_piece(tool: Tool) -> str:
    """A grammar piece for the text of a custom tool with a Lark grammar, as it stands."""
    assert tool.format is not None
    return "%lark {\n" + tool.format.definition + "\n}"


def constraint(
    wanted: Wanted, *, opener: str, rest: str, separator: str, rules: Sequence[str], forbidden: Sequence[str] = ()
) -> Constraint | None:
    """The grammar of a reply: `rest` is the rule for a call behind its `opener`. None if everything is allowed.

    `forbidden` are further openers that a text without calls must not hold.
    """
    check_format(wanted)
    calls = bool(callable_tools(wanted))
    if not calls and wanted.answer is None and not wanted.tools:
        return None
    lines = [_start(wanted, calls)]
    if calls:
        lines += [
            f"first: {marker(wanted, opener)} {rest}",
            f"further: {separator} {marker(wanted, opener)} {rest}",
            *rules,
        ]
    if calls and wanted.choice.mode == "auto" and wanted.answer is None:
        lines += _free_text(wanted, opener, rest)
    if not calls and wanted.answer is None:
        shut_out = "|".join(pattern_of(word) for word in (opener, *forbidden))
        lines.append(f"text: NO_CALL\nNO_CALL: /(?s:.*)/ & ~/(?s:.*)({shut_out})(?s:.*)/")
    if wanted.answer is not None:
        schema = wanted.answer.schema if wanted.answer.schema is not None else {"type": "object"}
        lines.append("answer: " + json_piece(schema, wanted.answer.strict, "response_format"))
    return Constraint(kind="lark", source="\n".join(lines) + "\n")


def _start(wanted: Wanted, calls: bool) -> str:
    several = "first" if not wanted.choice.parallel else f"first further{{0,{MAX_CALLS - 1}}}"
    if not calls:
        return "start: answer" if wanted.answer is not None else "start: text"
    if wanted.choice.mode == "required":
        return f"start: {several}"
    if wanted.answer is not None:
        return f"start: answer | {several}"
    return "start: open_call* TEXT?" if wanted.choice.parallel else "start: open_call | TEXT?"


def _free_text(wanted: Wanted, opener: str, rest: str) -> list[str]:
    by_token = [f"TEXT? {marker(wanted, opener)}"] if opener in wanted.marker_ids else []
    return [
        f"open_call: opened {rest}",
        f"opened: {' | '.join([*by_token, 'spelled'])}",
        f"spelled[lazy]: /(?s:.*){pattern_of(opener)}/",
        "TEXT: /(?s:.+)/",
    ]
