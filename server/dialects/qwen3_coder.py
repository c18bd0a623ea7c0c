"""Qwen3-Coder's tags: Qwen3-Coder, Qwen3-Next-Coder, Qwen3.5.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    <parameter=days>
    3
    </parameter>
    </function>
    </tool_call>

Strings are raw text between two line breaks; other values are JSON. Accepted as well: no `<tool_call>`
around the function, values on the line of their tag, missing closing tags, and more of them behind a call. A value
ends at `</parameter>` only where a tag of the format follows, so it may contain that tag; without it, at a line that
opens a declared parameter, and where the call ends. Of a repeated parameter the first value counts.

A custom tool's free text is the parameter `input`.
"""

from collections.abc import Generator
from functools import partial

from server.dialects.base import ConstraintSpec, Dialect
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import cached_by_spec, constraint, marker
from server.dialects.grammar.tagged_grammar import TagForm, tagged_calls
from server.dialects.parsing.tagged import Ending, TaggedCall, ValueEnds
from server.dialects.parsing.text_buffer import (
    EventSink,
    IncrementalParser,
    Openers,
    ParserCoroutine,
    TextBuffer,
    read_name,
    read_text,
)
from server.dialects.schema.validate import ToolSet
from server.messages import Constraint

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_CLOSE = "<function=", "</function>"
PARAMETER, PARAMETER_CLOSE = "<parameter=", "</parameter>"
OPENERS = Openers(OPEN, FUNCTION)
OPENERS_INSIDE = Openers(OPEN, FUNCTION, CLOSE)
AFTER_CALL = (CLOSE, FUNCTION, OPEN)
VALUE_ENDS = ValueEnds(
    Ending(PARAMETER_CLOSE, (PARAMETER, FUNCTION_CLOSE, *AFTER_CALL)),
    Ending(FUNCTION_CLOSE, AFTER_CALL),
    Ending(CLOSE, (FUNCTION, OPEN), at_line=True),
    Ending(PARAMETER, name_end=">", at_line=True),
)
FORM = TagForm(
    head=lambda name: f"{PARAMETER}{name}>\n",
    tail=f"\n{PARAMETER_CLOSE}\n",
    ends=VALUE_ENDS,
)


def _read_reply(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> ParserCoroutine:
    inside = False  # a <tool_call> that a call was read from is still open: its end is markup
    while True:
        opener = yield from read_text(buffer, sink, OPENERS_INSIDE if inside else OPENERS)
        if not opener:
            return
        if opener == CLOSE:
            buffer.take(len(CLOSE))
            inside = False
            continue
        buffer.record()
        if opener == OPEN:
            buffer.take(len(OPEN))
            yield from buffer.skip_space()
        called = False
        while (yield from buffer.expect(FUNCTION)) and (yield from _read_call(buffer, sink, tool_set)):
            called = True
            buffer.record()
            yield from buffer.skip_space()
        if not called:
            sink.text(buffer.recorded())
            continue
        inside = True
        while closing := (yield from buffer.expect(CLOSE, FUNCTION_CLOSE, PARAMETER_CLOSE)):
            inside = inside and closing != CLOSE
            buffer.take(len(closing))
            buffer.record()
            yield from buffer.skip_space()
        sink.hold_whitespace(buffer.recorded())


def _read_call(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> Generator[None, None, bool]:
    """Read `<function=name>...</function>`. False, and nothing is emitted, if it is no call of a declared tool."""
    buffer.take(len(FUNCTION))
    name = yield from read_name(buffer, ">")
    tool = tool_set.find(name) if name else None
    if tool is None:
        return False
    yield from buffer.skip_space()
    if not (yield from buffer.expect(PARAMETER, FUNCTION_CLOSE, CLOSE)):
        return False
    call = TaggedCall(buffer, sink, tool_set, tool)
    while not call.cut and (yield from buffer.expect(PARAMETER)):
        buffer.take(len(PARAMETER))
        argument = yield from read_name(buffer, ">")
        if argument is None:
            break
        yield from call.read_argument(argument, VALUE_ENDS, trims=True)
        yield from buffer.skip_space()
    if (yield from buffer.expect(FUNCTION_CLOSE)):
        buffer.take(len(FUNCTION_CLOSE))
    elif not call.cut:
        call.flag("truncated" if buffer.ended and buffer.empty else "repaired")
    call.finish()
    return True


def constrain(spec: ConstraintSpec) -> Constraint | None:
    """Return the grammar of a reply in this format."""
    closing = marker(spec, CLOSE)
    openers = {OPEN: f'"\\n{FUNCTION}" call {closing}', FUNCTION: f"call {closing}"}
    rules = tagged_calls(spec, FORM, lambda tool: (quoted(f"{tool.name}>\n"), quoted(f"{FUNCTION_CLOSE}\n")))
    return constraint(spec, openers=openers, separator='"\\n"', rules=rules)


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return FUNCTION in template and PARAMETER in template


QWEN3_CODER = Dialect(
    name="qwen3_coder",
    markers=(OPEN, CLOSE),
    halts=(),
    parser=partial(IncrementalParser, _read_reply),
    constrain=cached_by_spec(constrain),
    recognise=recognise,
)
