"""Hermes JSON: Qwen2.5, Qwen3, and Qwen1.5 with the tools template.

    Let me look.
    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>
    <tool_call>
    {"name": "get_time", "arguments": {}}
    </tool_call>

Taken as well, and flagged "repaired": `parameters` for `arguments`, arguments as a JSON string, a missing brace. Taken
without a word: arguments before the name, no arguments, several objects in one tag, a missing closing tag. Without
the tag, `<tools>{...}</tools>` and fenced JSON are calls if they are nothing but calls of offered tools whose arguments
satisfy the schema (Qwen2.5-Coder writes them).

A custom tool's free text is `{"name": "run", "arguments": {"input": "..."}}`. Where a Lark grammar constrains it, it
stands unescaped behind empty arguments:

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
from server.dialects.grammar.lark import callable_tools, constraint, is_raw, json_calls, marker, remembering
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


def _read_reply(tape: TextBuffer, out: EventSink, offered: ToolSet) -> ParserCoroutine:
    inside = False
    while True:
        opener = yield from read_text(tape, out, OPENERS_INSIDE if inside else OPENERS)
        if not opener:
            return
        if opener == CLOSE:
            tape.take(len(CLOSE))
            inside = False
        elif opener == OPEN:
            inside = yield from _read_tag(tape, out, offered)
        else:
            yield from hermes_loose.read(tape, out, offered, opener)


def _read_tag(tape: TextBuffer, out: EventSink, offered: ToolSet) -> Generator[None, None, bool]:
    """Read the calls of one tag. True if text follows before the closing tag."""
    tape.record()
    tape.take(len(OPEN))
    yield from tape.skip_space()
    calls = 0
    while True:
        if (yield from tape.expect("{")):
            opened = yield from JsonCall(tape, out, offered, CLOSE, (OPEN,)).read()
            if not opened:
                return False
            calls += 1
            tape.record()
        space = yield from tape.skip_space()
        if (yield from tape.expect(CLOSE)):
            tape.take(len(CLOSE))
            return False
        if (yield from tape.expect("[", ",", "]")):
            tape.take(1)
            yield from tape.skip_space()
        elif not (yield from tape.expect("{")):
            break
    if not calls:
        out.text(tape.recorded())
        return False
    out.hold(space)
    return True


def constrain(wanted: ConstraintSpec) -> Constraint | None:
    """The grammar of a reply in this format."""
    rest = f'"\\n" call {marker(wanted, CLOSE)}'
    return constraint(wanted, openers={OPEN: rest}, separator='"\\n"', rules=json_calls(wanted, _around))


def _around(tool: Tool) -> tuple[str, str]:
    head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
    if is_raw(tool):
        return quoted(f"{head}{{}}}}\n{RAW_OPEN}"), quoted(f"{RAW_CLOSE}\n")
    return quoted(head), quoted("}\n")


def shortest(wanted: ConstraintSpec) -> str:
    """The text of a short valid call of the first tool that may be called."""
    tool = callable_tools(wanted)[0]
    return f'{OPEN}\n{{"name": {json.dumps(tool.name)}, "arguments": {shortest_arguments(tool)}}}\n{CLOSE}'


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return OPEN in template and '"arguments"' in template.replace('\\"', '"') and "<function=" not in template


HERMES = Dialect(
    name="hermes",
    markers=(OPEN, CLOSE),
    halts=(),
    parser=partial(IncrementalParser, _read_reply),
    constrain=remembering(constrain),
    shortest=shortest,
    recognise=recognise,
)
