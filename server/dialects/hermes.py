"""Hermes JSON: Qwen2.5, Qwen3, and Qwen1.5 with the tools template.

    Let me look.
    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>
    <tool_call>
    {"name": "get_time", "arguments": {}}
    </tool_call>

Accepted, and flagged "repaired": `parameters` for `arguments`, arguments as a JSON string, a missing brace, a doubled
opening tag. Accepted without a flag: arguments before the name, no arguments, several objects in one tag, a missing or
doubled closing tag. Without the tag, `<tools>{...}</tools>`, fenced JSON, and tags in another spelling
(`<Tool_Call>`, `[tool_call]`, `<tool_calls>`) are calls if they contain only calls of declared tools whose arguments
satisfy the schema (Qwen2.5-Coder writes them).

A custom tool's free text is `{"name": "run", "arguments": {"input": "..."}}`. Where a Lark grammar constrains it, it
follows unescaped after empty arguments:

    <tool_call>
    {"name": "run", "arguments": {}}
    <input>
    1 + 2
    </input>
    </tool_call>
"""

import json
import re
from collections.abc import Generator
from functools import partial
from typing import Any

from server.dialects.base import ConstraintSpec, Dialect, Tool
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import cached_by_spec, constraint, is_raw, json_calls, marker
from server.dialects.parsing.json_call import RAW_CLOSE, RAW_OPEN, JsonCall
from server.dialects.parsing.odd_tags import PLAIN_CLOSE, PLAIN_OPEN
from server.dialects.parsing.text_buffer import (
    EventSink,
    IncrementalParser,
    Openers,
    ParserCoroutine,
    TextBuffer,
    read_text,
    skip_doubled,
)
from server.dialects.schema.validate import ToolSet
from server.events import Flag
from server.messages import Constraint

OPEN, CLOSE = "<tool_call>", "</tool_call>"
UNTAGGED_CLOSE = {"<tools>": "</tools>", "```json": "```"}
UNTAGGED_HEAD = re.compile(r'\s*\[?\s*\{\s*"name"\s*:\s*"([^"\\\n]{1,256})"')
UNTAGGED_HEAD_PREFIX = re.compile(r'\[?(?:\{(?:"(?:n(?:a(?:m(?:e(?:"(?::(?:"[^"\\\n]{0,256})?)?)?)?)?)?)?)?)?')
MAX_HELD_LENGTH = 64 * 1024  # characters of untagged calls
OPENERS = Openers(OPEN, *UNTAGGED_CLOSE, any_case=PLAIN_OPEN)
ODD_CLOSERS = Openers(CLOSE, any_case=PLAIN_CLOSE)
OPENERS_INSIDE = Openers(OPEN, CLOSE)  # an unfinished tag: its end is markup


def _read_reply(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> ParserCoroutine:
    inside = False
    while True:
        opener = yield from read_text(buffer, sink, OPENERS_INSIDE if inside else OPENERS)
        if not opener:
            return
        if opener == CLOSE:
            buffer.take(len(CLOSE))
            inside = False
        elif opener == OPEN:
            inside = yield from _read_tag(buffer, sink, tool_set)
        else:
            yield from _read_untagged(buffer, sink, tool_set, opener)


def _read_tag(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> Generator[None, None, bool]:
    """Parse the calls of one tag. True if text follows before the closing tag."""
    buffer.record()
    buffer.take(len(OPEN))
    yield from buffer.skip_space()
    calls, doubled = 0, False
    while (yield from buffer.expect(OPEN)):
        buffer.take(len(OPEN))
        yield from buffer.skip_space()
        doubled = True
    while True:
        if (yield from buffer.expect("{")):
            call = JsonCall(buffer, sink, tool_set, CLOSE, (OPEN,))
            if doubled and not calls:
                call.flag("repaired")
            if not (yield from call.read()):
                return False
            calls += 1
            buffer.record()
        space = yield from buffer.skip_space()
        if (yield from buffer.expect(CLOSE)):
            buffer.take(len(CLOSE))
            yield from skip_doubled(buffer, sink, CLOSE)
            return False
        if (yield from buffer.expect("[", ",", "]")):
            buffer.take(1)
            yield from buffer.skip_space()
        elif not (yield from buffer.expect("{")):
            break
    if not calls:
        sink.text(buffer.recorded())
        return False
    sink.hold_whitespace(space)
    return True


def _read_untagged(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, opener: str) -> ParserCoroutine:
    """Parse calls without their tag.

    Users ask for JSON in fences too. So these are calls only if there is nothing but objects that name declared tools
    with arguments that satisfy the schema; anything else is text, and is not held back once that is certain.
    """
    buffer.record()
    buffer.take(len(opener))
    close = Openers(UNTAGGED_CLOSE[opener]) if opener in UNTAGGED_CLOSE else ODD_CLOSERS
    while not (head := UNTAGGED_HEAD.match(buffer.text, buffer.at)):
        if buffer.ended or not UNTAGGED_HEAD_PREFIX.fullmatch(_without_space(buffer.rest)):
            sink.text(buffer.recorded())
            return
        yield
    while tool_set.find(head.group(1)) is not None:
        found = close.search(buffer.text, buffer.at)
        stop = found.start() if found else len(buffer.text) - close.overlap(buffer.rest)
        if stop - buffer.at > MAX_HELD_LENGTH:
            break
        if found and (calls := _untagged_calls(buffer.text[buffer.at : stop], tool_set)):
            buffer.take(found.end() - buffer.at)
            _emit_calls(calls, sink, buffer.recorded())
            return
        if found or buffer.ended:
            break
        yield
    sink.text(buffer.recorded())


def _without_space(text: str) -> str:
    head, quote, name = text.partition(":")
    return "".join(head.split()) + quote + name.lstrip()


def _untagged_calls(text: str, tool_set: ToolSet) -> list[tuple[Tool, str]]:
    """Return every object as a call, or none at all."""
    try:
        found = json.loads(text)
    except ValueError:
        found = _json_lines(text)
    calls: list[tuple[Tool, str]] = []
    for item in found if isinstance(found, list) else [found]:
        tool = tool_set.find(str(item.get("name"))) if isinstance(item, dict) else None
        if tool is None or tool.custom or not set(item) <= {"name", "arguments"}:
            return []
        arguments = json.dumps(item.get("arguments", {}), ensure_ascii=False)
        if tool_set.validate(tool, arguments):
            return []
        calls.append((tool, arguments))
    return calls


def _json_lines(text: str) -> list[Any]:
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return []


def _emit_calls(calls: list[tuple[Tool, str]], sink: EventSink, raw: str) -> None:
    flags: tuple[Flag, ...] = ("repaired",)
    for tool, arguments in calls:
        sink.open(tool.name, custom=False)
        sink.arguments(arguments)
        sink.close(flags, raw)


def constrain(spec: ConstraintSpec) -> Constraint | None:
    """Return the grammar of a reply in this format."""
    rest = f'"\\n" call {marker(spec, CLOSE)}'
    return constraint(spec, openers={OPEN: rest}, separator='"\\n"', rules=json_calls(spec, _around))


def _around(tool: Tool) -> tuple[str, str]:
    head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
    if is_raw(tool):
        return quoted(f"{head}{{}}}}\n{RAW_OPEN}"), quoted(f"{RAW_CLOSE}\n")
    return quoted(head), quoted("}\n")


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return OPEN in template and '"arguments"' in template.replace('\\"', '"') and "<function=" not in template


HERMES = Dialect(
    name="hermes",
    markers=(OPEN, CLOSE),
    halts=(),
    parser=partial(IncrementalParser, _read_reply),
    constrain=cached_by_spec(constrain),
    recognise=recognise,
)
