"""Constraints as llguidance Lark source: the rules common to all formats.

    auto                    start: (opened rest)* TEXT?             free text, but what opens a call is a call
    auto, one call          start: opened rest | TEXT?
    required                start: opener rest (separator opener rest)*
    none                    start: TEXT, without any opener
    an answer format        start: answer, or calls as well in auto
    must_answer             NON_BLANK for TEXT where no call follows

An opener is one token where the vocabulary has it, and may also be spelled out of smaller ones: both open a call, so
whatever the grammar admits is read as a valid call. Text may hold anything else.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from server.dialects.base import ConstraintSpec, CustomFormat, ResponseFormat, Tool
from server.dialects.grammar.json_grammar import json_value, quoted
from server.dialects.schema.cache import derived
from server.dialects.schema.compiled import check_satisfiable, supported, supported_arguments
from server.dialects.schema.custom import check_format
from server.errors import BadSchema
from server.messages import MAX_SOURCE, Constraint

MAX_CALLS = 64  # of one forced reply
NOT_BLANK = r"/(?s:.*)\S(?s:.*)/"

# Created once, at import: msgspec builds its table of a dataclass at first use, and a second thread that reads the
# incomplete table crashes the process (msgspec 0.22).
_decode_spec = msgspec.json.Decoder(ConstraintSpec).decode


def cached_by_spec(
    build: Callable[[ConstraintSpec], Constraint | None],
) -> Callable[[ConstraintSpec], Constraint | None]:
    """Cache the constraints that `build` returns, by the JSON of their specs."""

    kind = f"grammar of {build.__module__}.{build.__qualname__}"

    def constrain(spec: ConstraintSpec) -> Constraint | None:
        text = msgspec.json.encode(spec)
        return derived(kind, text.decode(), lambda: build(_decode_spec(text)), _num_bytes)

    return constrain


def _num_bytes(constraint: Constraint | None) -> int:
    return 0 if constraint is None else sys.getsizeof(constraint.source)


def bounded(rules: Iterable[str]) -> Iterator[str]:
    """Yield these rules; raise BadSchema as soon as they are longer together than the engine accepts."""
    num_chars = 0
    for rule in rules:
        num_chars += len(rule)
        check_length(num_chars)
        yield rule


def check_length(num_chars: int) -> None:
    """Raise BadSchema where rules of this length are more than the engine accepts."""
    if num_chars > MAX_SOURCE:
        fault = f"The grammar of these tools is longer than {MAX_SOURCE} characters; send fewer or smaller schemas."
        raise BadSchema(fault, param="tools", code="invalid_function_parameters")


def callable_tools(spec: ConstraintSpec) -> list[Tool]:
    """Return the tools that `tool_choice` allows."""
    if spec.choice.mode == "none":
        return []
    allowed = spec.choice.allowed
    return [tool for tool in spec.tools if allowed is None or tool.name in allowed]


def marker(spec: ConstraintSpec, text: str) -> str:
    """Return an expression for a marker: its token, or its text where the vocabulary has none."""
    token_id = spec.marker_ids.get(text)
    return quoted(text) if token_id is None else f"<[{token_id}]>"


def pattern_of(text: str) -> str:
    """Escape a string for a Lark regular expression."""
    return "".join({"\n": r"\n", "/": r"\/"}.get(char) or re.escape(char) for char in text)


def json_calls(spec: ConstraintSpec, around: Callable[[Tool], tuple[str, str]]) -> Iterator[str]:
    """Yield the rule `call`, one call with JSON arguments, and its parts; `around` gives the text around arguments."""
    tools = callable_tools(spec)
    yield one_of_calls(tools)
    for i, tool in enumerate(tools):
        before, after = around(tool)
        if tool.custom:
            yield f"call_{i}: {before} {_raw_or_json_input(tool)} {after}"
        else:
            yield f"call_{i}: {before} arguments_{i} {after}"
            yield f"arguments_{i}: {json_value(supported_arguments(spec, tool), lenient=not tool.strict)}"


def one_of_calls(tools: Sequence[Tool]) -> str:
    """Return the rule `call`: a call of one of these tools, whose rules are numbered."""
    return "call: " + " | ".join(f"call_{i}" for i in range(len(tools)))


def _raw_or_json_input(tool: Tool) -> str:
    """Return an expression for a custom tool's text: raw where it has a Lark grammar, else a JSON object."""
    if tool.format is not None and is_raw(tool):
        return raw_piece(tool.format)
    text: dict[str, Any] = {"type": "string"}
    if tool.format is not None:
        text["pattern"] = f"^(?:{tool.format.definition})$"
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}
    return json_value(schema, lenient=False)


def is_raw(tool: Tool) -> bool:
    """Whether a custom tool's text follows a Lark grammar, which cannot be applied inside a JSON string."""
    return tool.format is not None and tool.format.syntax == "lark"


def raw_piece(format: CustomFormat) -> str:
    """Return an expression for raw text of a Lark grammar."""
    return "%lark {\n" + format.lark + "\n}"


def constraint(
    spec: ConstraintSpec,
    *,
    openers: Mapping[str, str],
    separator: str | None,
    rules: Iterable[str],
    line_start: bool = False,
) -> Constraint | None:
    """Return the grammar of a reply; None if everything is allowed.

    `openers` maps each string that opens a call to the expression after it; forced calls begin with the first.
    `separator` is the text between calls, None if one opener encloses all of them. With `line_start`, openers count
    only at the beginning of a line.
    """
    check_format(spec)
    calls = bool(callable_tools(spec))
    if not calls and spec.answer is None and not spec.tools:
        return Constraint(f"start: NON_BLANK\nNON_BLANK: {NOT_BLANK}\n") if spec.must_answer else None
    lines = [_start(spec, calls, separator is not None)]
    if calls:
        opener, rest = next(iter(openers.items()))
        lines.append(f"first: {marker(spec, opener)} {rest}")
        if separator is not None:
            lines.append(f"further: {separator} {marker(spec, opener)} {rest}")
        lines += bounded(rules)
        if spec.choice.mode == "auto" and spec.answer is None:
            lines += _lines_of_text(openers) if line_start else _free_text(spec, openers)
            lines += [f"NON_BLANK: TEXT & {NOT_BLANK}"] if spec.must_answer else []
    elif spec.answer is None:
        shut_out = "|".join(pattern_of(word) for word in openers)
        before = r"((?s:.*)\n)?" if line_start else "(?s:.*)"
        anything = NOT_BLANK if spec.must_answer else "/(?s:.*)/"
        lines.append(f"text: NO_CALL\nNO_CALL: {anything} & ~/{before}({shut_out})(?s:.*)/")
    if spec.answer is not None:
        lines.append(_answer_rule(spec.answer))
    return Constraint("\n".join(lines) + "\n")


def _start(spec: ConstraintSpec, calls: bool, repeats: bool) -> str:
    several = f"first further{{0,{MAX_CALLS - 1}}}" if spec.choice.parallel and repeats else "first"
    lead = '("\\n\\n")? ' if spec.after_thinking else ""
    if not calls:
        return f"start: {lead}answer" if spec.answer is not None else "start: text"
    if spec.choice.mode == "required":
        return f"start: {lead}{several}"
    if spec.answer is not None:
        return f"start: {lead}(answer | {several})"
    if spec.must_answer:
        return "start: open_call+ TEXT? | NON_BLANK" if spec.choice.parallel else "start: open_call | NON_BLANK"
    return "start: open_call* TEXT?" if spec.choice.parallel else "start: open_call | TEXT?"


def _free_text(spec: ConstraintSpec, openers: Mapping[str, str]) -> Iterator[str]:
    opened = []
    for i, (opener, rest) in enumerate(openers.items()):
        if opener in spec.marker_ids:
            opened.append(f"TEXT? {marker(spec, opener)} {rest}")
        opened.append(f"spelled_{i} {rest}")
        yield f"spelled_{i}[lazy]: /(?s:.*){pattern_of(opener)}/"
    yield f"open_call: {' | '.join(opened)}"
    yield "TEXT: /(?s:.+)/"


def _lines_of_text(openers: Mapping[str, str]) -> Iterator[str]:
    """Yield rules of free text where openers count at the beginning of a line, the first line included."""
    words = "|".join(pattern_of(word) for word in openers)
    yield f"open_call: {' | '.join(f'opened_{i} {rest}' for i, rest in enumerate(openers.values()))}"
    for i, word in enumerate(openers):
        yield f"opened_{i}: {quoted(word)} | spelled_{i}"
        yield f"SPELLED_{i}: TEXT_BEFORE /\\n{pattern_of(word)}/"
        yield f"spelled_{i}[lazy]: SPELLED_{i}"
    yield f"TEXT_BEFORE: /(?s:.*)/ & ~/({words})(?s:.*)/"
    yield f"TEXT: /(?s:.+)/ & ~/({words})(?s:.*)/"


def _answer_rule(answer: ResponseFormat) -> str:
    if answer.format is not None:
        return f"answer: {raw_piece(answer.format)}"
    schema = answer.schema if answer.schema is not None else {"type": "object"}
    check_satisfiable(schema, f"Invalid schema for {answer.param}", answer.param, "invalid_json_schema")
    return f"answer: {json_value(supported(schema, answer.strict, answer.param), lenient=not answer.strict)}"
