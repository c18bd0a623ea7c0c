"""Hermes JSON: Qwen2.5, Qwen3, and Qwen1.5 with the tools template.

    Let me look.
    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>
    <tool_call>
    {"name": "get_time", "arguments": {}}
    </tool_call>

Accepted, and flagged "repaired": `parameters` for `arguments`, arguments as a JSON string, a missing brace. Accepted
without a flag: arguments before the name, no arguments, several objects in one tag, a missing closing tag. Without
the tag, `<tools>{...}</tools>` and fenced JSON are calls if they contain only calls of declared tools whose arguments
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
from collections.abc import Generator
from functools import partial

from server.dialects import hermes_loose
from server.dialects.base import ConstraintSpec, Dialect, Tool
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import cached_by_spec, callable_tools, constraint, is_raw, json_calls, marker
from server.dialects.parsing.json_call import RAW_CLOSE, RAW_OPEN, JsonCall
from server.dialects.parsing.text_buffer import (
    EventSink,
    IncrementalParser,
    Openers,
    ParserCoroutine,
    TextBuffer,
    read_text,
)
from server.dialects.schema.shortest import shortest_arguments
from server.dialects.schema.validate import ToolSet
from server.messages import Constraint

OPEN, CLOSE = "<tool_call>", "</tool_call>"
OPENERS = Openers(OPEN, *hermes_loose.OPENERS)
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
            yield from hermes_loose.read(buffer, sink, tool_set, opener)


def _read_tag(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> Generator[None, None, bool]:
    """Parse the calls of one tag. True if text follows before the closing tag."""
    buffer.record()
    buffer.take(len(OPEN))
    yield from buffer.skip_space()
    calls = 0
    while True:
        if (yield from buffer.expect("{")):
            opened = yield from JsonCall(buffer, sink, tool_set, CLOSE, (OPEN,)).read()
            if not opened:
                return False
            calls += 1
            buffer.record()
        space = yield from buffer.skip_space()
        if (yield from buffer.expect(CLOSE)):
            buffer.take(len(CLOSE))
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


def constrain(spec: ConstraintSpec) -> Constraint | None:
    """Return the grammar of a reply in this format."""
    rest = f'"\\n" call {marker(spec, CLOSE)}'
    return constraint(spec, openers={OPEN: rest}, separator='"\\n"', rules=json_calls(spec, _around))


def _around(tool: Tool) -> tuple[str, str]:
    head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
    if is_raw(tool):
        return quoted(f"{head}{{}}}}\n{RAW_OPEN}"), quoted(f"{RAW_CLOSE}\n")
    return quoted(head), quoted("}\n")


def shortest(spec: ConstraintSpec) -> str:
    """Return a short valid call of the first tool that may be called."""
    tool = callable_tools(spec)[0]
    return f'{OPEN}\n{{"name": {json.dumps(tool.name)}, "arguments": {shortest_arguments(tool)}}}\n{CLOSE}'


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return OPEN in template and '"arguments"' in template.replace('\\"', '"') and "<function=" not in template


HERMES = Dialect(
    name="hermes",
    markers=(OPEN, CLOSE),
    halts=(),
    parser=partial(IncrementalParser, _read_reply),
    constrain=cached_by_spec(constrain),
    shortest=shortest,
    recognise=recognise,
)
