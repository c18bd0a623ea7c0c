"""GLM-4.5 and GLM-4.6: a name, then keys and values.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Paris</arg_value>
    <arg_key>days</arg_key>
    <arg_value>3</arg_value>
    </tool_call>

Strings are raw text, other values are JSON. Line breaks between the tags may be missing (GLM-4.7). A value ends
at `</arg_value>` only where a tag of the format follows, so it may contain that tag; without it, at the key of a
declared argument, and where the call ends. Of a repeated key the first value counts.

A custom tool's free text is the argument `input`.
"""

import re
from collections.abc import Generator
from functools import partial

from server.dialects.base import ConstraintSpec, Dialect
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import cached_by_spec, constraint, marker
from server.dialects.grammar.tagged_grammar import TagForm, tagged_calls
from server.dialects.parsing.tagged import Ending, TaggedCall, ValueEnds
from server.dialects.parsing.text_buffer import (
    MAX_NAME_LENGTH,
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
KEY, KEY_CLOSE = "<arg_key>", "</arg_key>"
VALUE, VALUE_CLOSE = "<arg_value>", "</arg_value>"
OPENERS = Openers(OPEN)
OPENERS_INSIDE = Openers(OPEN, CLOSE)
NAME = re.compile(rf"[^\s<]{{1,{MAX_NAME_LENGTH}}}(?=[\s<])")
NAME_BEGUN = re.compile(rf"[^\s<]{{0,{MAX_NAME_LENGTH}}}")
VALUE_ENDS = ValueEnds(
    Ending(VALUE_CLOSE, (KEY, CLOSE, OPEN)),
    Ending(CLOSE, (OPEN,)),
    Ending(KEY, name_end=KEY_CLOSE),
)
FORM = TagForm(
    head=lambda name: f"{KEY}{name}{KEY_CLOSE}\n{VALUE}",
    tail=f"{VALUE_CLOSE}\n",
    ends=VALUE_ENDS,
    tags=(KEY, KEY_CLOSE, VALUE, VALUE_CLOSE),
)


def _read_reply(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> ParserCoroutine:
    inside = False  # a tag that a call was read from is still open: its end is markup
    while True:
        opener = yield from read_text(buffer, sink, OPENERS_INSIDE if inside else OPENERS)
        if not opener:
            return
        buffer.record()
        buffer.take(len(opener))
        inside = False
        if opener == OPEN:
            inside = yield from _read_call(buffer, sink, tool_set)


def _read_call(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> Generator[None, None, bool]:
    """Read one call, or emit its beginning as text. True if its closing tag is still to come."""
    name = yield from _read_name(buffer)
    tool = tool_set.find(name)
    if tool is not None:
        yield from buffer.skip_space()
    if tool is None or not (yield from buffer.expect(KEY, CLOSE)):
        sink.text(buffer.recorded())
        return False
    call = TaggedCall(buffer, sink, tool_set, tool)
    while not call.cut and (yield from buffer.expect(KEY)):
        buffer.take(len(KEY))
        key = yield from read_name(buffer, KEY_CLOSE)
        if key is not None:
            yield from buffer.skip_space()
            if not (yield from buffer.expect(VALUE)):
                break
            buffer.take(len(VALUE))
        elif (key := (yield from read_name(buffer, VALUE))) is not None:
            call.flag("repaired")
        else:
            break
        yield from call.read_argument(key, VALUE_ENDS, trims=False)
        yield from buffer.skip_space()
    closed = yield from buffer.expect(CLOSE)
    buffer.take(len(closed))
    if not closed and not call.cut:
        call.flag("truncated" if buffer.ended and buffer.empty else "repaired")
    call.finish()
    return not closed


def _read_name(buffer: TextBuffer) -> Generator[None, None, str]:
    yield from buffer.skip_space()
    while True:
        name = NAME.match(buffer.text, buffer.at)
        if name:
            return buffer.take(len(name.group()))
        if buffer.ended or not NAME_BEGUN.fullmatch(buffer.rest):
            return ""
        yield


def constrain(spec: ConstraintSpec) -> Constraint | None:
    """Return the grammar of a reply in this format."""
    rest = f"call {marker(spec, CLOSE)}"
    rules = tagged_calls(spec, FORM, lambda tool: (quoted(f"{tool.name}\n"), ""))
    return constraint(spec, openers={OPEN: rest}, separator='"\\n"', rules=rules)


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return KEY in template and VALUE in template


GLM4 = Dialect(
    name="glm4",
    markers=(OPEN, CLOSE, KEY, KEY_CLOSE, VALUE, VALUE_CLOSE),
    halts=(),
    parser=partial(IncrementalParser, _read_reply),
    constrain=cached_by_spec(constrain),
    recognise=recognise,
)
