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
around the function, values on the line of their tag, and, flagged "repaired", tags that are missing, doubled, indented,
in another case, with blanks or quotes inside, or without their `>` or `/`; `</parameters>` and `</param>`; and any
spelling of `<tool_call>` (`parsing/odd_tags.py`) before `<function=`. A value ends at `</parameter>` only where a tag
of the format follows, so it may contain that tag; without it, before a tag that opens a declared parameter or tool,
and where the call ends; calls of this format in a value are its text where they are whole (`parsing/value_ends.py`).
Of a repeated parameter the first value counts.

A custom tool's free text is the parameter `input`.
"""

import re
from collections.abc import Collection, Generator
from functools import partial

from server.dialects.base import ConstraintSpec, Dialect
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import cached_by_spec, constraint, marker, pattern_of
from server.dialects.grammar.tagged_grammar import Beside, TagForm, tagged_calls
from server.dialects.parsing.odd_tags import ODD_CLOSE, ODD_OPEN
from server.dialects.parsing.tagged import TaggedCall
from server.dialects.parsing.tags import Tag, TagLexer, next_tag
from server.dialects.parsing.text_buffer import (
    EventSink,
    IncrementalParser,
    Openers,
    ParserCoroutine,
    TextBuffer,
    read_text,
)
from server.dialects.parsing.value_ends import TagFormat
from server.dialects.schema.validate import ToolSet
from server.events import Flag
from server.messages import Constraint

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_CLOSE = "<function=", "</function>"
PARAMETER, PARAMETER_CLOSE = "<parameter=", "</parameter>"
OPENERS = Openers(OPEN, f"{OPEN[:-1]}\n", FUNCTION, any_case=ODD_OPEN)
OPENERS_INSIDE = Openers(OPEN, f"{OPEN[:-1]}\n", FUNCTION, CLOSE, any_case=ODD_OPEN)
ODD_CLOSERS = Openers(CLOSE, any_case=ODD_CLOSE)
WORDS = ("parameter", "function", "tool_call")
LEXER = TagLexer(
    {
        "parameter": "argument", "parameters": "argument", "param": "argument", "function": "function",
        "tool_call": "call",
    },
    exact=WORDS,
    named=("argument", "function"),
    nameless=("parameters",),
)  # fmt: skip
CERTAIN = re.compile(r"<(parameter ?=| parameter ?=|param=)")
FORMAT = TagFormat(LEXER, by_line=True, outer="call", certain=CERTAIN)


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
        is_odd = opener.lower() in ODD_OPEN and opener != OPEN
        if is_odd:
            buffer.take(len(opener))
            yield from buffer.skip_space()
            opener = yield from buffer.expect(FUNCTION, OPEN)  # from there on the grammar holds a call
        if opener and (yield from _read_calls(buffer, sink, tool_set, opener, is_odd)):
            inside = yield from _skip_closing(buffer, sink)
            if is_odd and inside:
                inside = not (yield from _skip_odd_closing(buffer))
        else:
            yield from buffer.skip_space()
            sink.text(buffer.recorded())


def _read_calls(
    buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, opener: str, is_odd: bool
) -> Generator[None, None, bool]:
    """Read the calls behind an opener; False, and no more than their beginning is taken, if there are none.

    `is_odd`: a tag in another spelling stands before the opener.
    """
    tag = None
    flags: tuple[Flag, ...] = () if opener in (OPEN, FUNCTION) and not is_odd else ("repaired",)
    if opener == FUNCTION:
        tag = yield from next_tag(LEXER, buffer, buffer.position)
    if tag is None:
        buffer.take(len(opener))
        tag = yield from next_tag(LEXER, buffer, buffer.position)
    while tag is not None and tag.opens("call"):
        flags = ("repaired",)
        buffer.take_to(tag.end)
        tag = yield from next_tag(LEXER, buffer, buffer.position)
    while tag is not None and tag.opens("function"):
        after = yield from next_tag(LEXER, buffer, tag.end)
        if after is None or not after.opens("function") or after.name != tag.name:
            break
        flags = ("repaired",)  # doubled
        buffer.take_to(tag.end)
        tag = after
    called = False
    while tag is not None and tag.opens("function") and (yield from _read_call(buffer, sink, tool_set, tag, flags)):
        called, flags = True, ()
        buffer.record()
        yield from buffer.skip_space()
        tag = yield from next_tag(LEXER, buffer, buffer.position)
    if tag is not None and tag.opens("function") and not called:
        buffer.take_to(tag.end)
    return called


def _read_call(
    buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, head: Tag, flags: tuple[Flag, ...]
) -> Generator[None, None, bool]:
    """Read `<function=name>...</function>`. False, and nothing is taken, if it is no call of a declared tool.

    `flags` are those of what stands before it.
    """
    tool = tool_set.find(head.name or "")
    tag = (yield from next_tag(LEXER, buffer, head.end)) if tool is not None else None
    if tool is None or tag is None or not (tag.opens("argument") or (tag.closes and tag.kind != "end")):
        return False
    call = TaggedCall(buffer, sink, tool_set, tool, FORMAT)
    call.open()
    for flag in flags if head.exact else ("repaired",):
        call.flag(flag)
    buffer.take_to(head.end)
    closed = False
    while tag is not None and not call.cut:
        if tag.opens("argument") and (call.is_new(tag.name) or (tag.complete and tag.name and not closed)):
            if closed or not tag.exact:
                call.flag("repaired")
            yield from call.read_argument(tag)
        elif tag.bare and tag.kind == "argument" and not closed:
            call.flag("repaired")  # a closing tag without its slash, or a tag around the arguments
            buffer.take_to(tag.end)
        elif tag.closes and tag.kind in ("argument", "function") and not closed:
            closed = tag.kind == "function"
            if not (closed and tag.exact):
                call.flag("repaired")
            buffer.take_to(tag.end)
        else:
            break
        tag = yield from next_tag(LEXER, buffer, buffer.position)
    if not closed and not call.cut:
        call.flag("truncated" if tag is not None and tag.kind == "end" else "repaired")
        yield from buffer.skip_space()
    call.finish()
    return True


def _skip_closing(buffer: TextBuffer, sink: EventSink) -> Generator[None, None, bool]:
    """Take further closing tags behind calls. True if that of `<tool_call>` is not among them."""
    inside = True
    while (tag := (yield from next_tag(LEXER, buffer, buffer.position))) and tag.closes and tag.word in WORDS:
        inside = inside and tag.kind != "call"
        buffer.take_to(tag.end)
        buffer.record()
        yield from buffer.skip_space()
    sink.hold_whitespace(buffer.recorded())
    return inside


def _skip_odd_closing(buffer: TextBuffer) -> Generator[None, None, bool]:
    """Take the closing tag of a `<tool_call>` in another spelling, if it comes next; return whether it did."""
    while not (found := ODD_CLOSERS.match(buffer.text, buffer.at)):
        if buffer.ended or ODD_CLOSERS.overlap(buffer.rest) < len(buffer.rest):
            return False
        yield
    buffer.take(len(found.group()))
    return True


def ended(names: Collection[str], beside: Beside = "nothing") -> str:
    """Return a pattern of the texts that are no value in this format; `names` are the declared arguments.

    They are the texts in which a tag may end a value, and those that are read on to see whether it does. Beside other
    rules of a string the lexer has no room for the names of declared tags behind text in a line: no tag of an argument
    stands right behind text there, and beside an expression none anywhere.
    """
    anywhere = r"<\/parameter>\s*(<parameter=|<\/function>|<\/tool_call>|<function=|<tool_call>)"
    anywhere += r"|<\/function>\s*(<\/tool_call>|<function=|<tool_call>)"
    at_line = r"<\/tool_call>\s*(<function=|<tool_call>)|<(parameter =| parameter ?=|param=|parameter=[ \"'])"
    behind_text = ""
    if names and beside == "an expression":
        anywhere += "|<parameter="
    elif names:
        declared = f"<parameter=({'|'.join(map(pattern_of, sorted(names)))})"
        at_line += rf"|{declared}[ \t\"']*>"
        if beside == "a length":
            anywhere += r"|[^ \t\n]<parameter="
        else:
            behind_text = rf"|(?s:.*)[^ \t\n]{declared}>[ \t]*\r?(\n(?s:.*))?"
    return rf"(?s:.*)({anywhere})(?s:.*)|((?s:.*)\n)?[ \t]*({at_line})(?s:.*){behind_text}"


FORM = TagForm(
    head=lambda name: f"{PARAMETER}{name}>\n",
    tail=f"\n{PARAMETER_CLOSE}\n",
    closing=PARAMETER_CLOSE,
    ended=ended,
)


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
    raw_strings=True,
)
