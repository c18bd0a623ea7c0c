"""Kimi-K2: a section of calls, each with an id that names the function.

    <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Paris"}
    <|tool_call_end|><|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{}<|tool_call_end|>
    <|tool_calls_section_end|>

(all on one line). Accepted as well: no section around the calls, a name without `functions.` or number, an argument
object without its last braces; and, flagged "repaired", doubled markers, an object without the marker before it, and a
first call whose beginning is missing.

A custom tool's free text is `{"input": "..."}`; where a Lark grammar constrains it, the text is raw.
"""

import re
from collections.abc import Collection, Generator
from functools import partial

from server.dialects.base import ConstraintSpec, Dialect, Tool
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import (
    MAX_CALLS,
    cached_by_spec,
    constraint,
    is_raw,
    json_calls,
    marker,
)
from server.dialects.parsing.json_arguments import JsonArguments
from server.dialects.parsing.text_buffer import (
    MAX_NAME_LENGTH,
    EventSink,
    IncrementalParser,
    Openers,
    ParserCoroutine,
    TextBuffer,
    read_name,
    read_text,
    skip_doubled,
)
from server.dialects.schema.validate import ToolSet
from server.events import Flag
from server.messages import Constraint

SECTION, SECTION_CLOSE = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, CALL_CLOSE = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS = "<|tool_call_argument_begin|>"
FUNCTIONS = "functions."
NUMBER = re.compile(r":\d+\Z")
BARE_ID = re.compile(rf"\s*functions\.[^\s<{{]{{1,{MAX_NAME_LENGTH}}}:\d+\s*(?=\{{)")  # without the marker behind it
OPENERS = Openers(SECTION, CALL)
OPENERS_INSIDE = Openers(SECTION, CALL, CALL_CLOSE, SECTION_CLOSE)


def _read_reply(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> ParserCoroutine:
    inside = False  # a section is open: its end is markup
    while True:
        opener = yield from read_text(buffer, sink, OPENERS_INSIDE if inside else OPENERS)
        if not opener:
            return
        buffer.record()
        num_sections = 0
        while opener == SECTION:
            num_sections += 1
            buffer.take(len(SECTION))
            yield from buffer.skip_space()
            opener = yield from buffer.expect(SECTION, CALL, FUNCTIONS)
        if not opener:
            sink.text(buffer.recorded())
        elif opener in (CALL_CLOSE, SECTION_CLOSE):
            buffer.take(len(opener))
            inside = opener != SECTION_CLOSE
            if not inside:
                yield from skip_doubled(buffer, sink, SECTION_CLOSE)
        else:
            is_whole = opener == CALL and num_sections < 2
            inside = yield from _read_call(buffer, sink, tool_set, () if is_whole else ("repaired",))


def _read_call(
    buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, flags: tuple[Flag, ...]
) -> Generator[None, None, bool]:
    """Read `<|tool_call_begin|>...<|tool_call_end|>`, or emit its beginning as text. True if it was a call.

    `flags` are those of what stands before it.
    """
    arguments = JsonArguments(buffer, sink, tool_set, CALL_CLOSE, (SECTION_CLOSE, CALL))
    num_openers = yield from _skip(buffer, CALL)
    call_id = yield from read_name(buffer, ARGUMENTS)
    num_marks = 1
    if call_id is None and (bare := BARE_ID.match(buffer.text, buffer.at)):
        call_id, num_marks = buffer.take(len(bare.group())).strip(), 0
    arguments.tool = _named_by(call_id, tool_set) if call_id else None
    if arguments.tool is not None:
        num_marks += yield from _skip(buffer, ARGUMENTS)
        for flag in flags if num_openers < 2 and num_marks == 1 else ("repaired",):
            arguments.flag(flag)
        yield from buffer.skip_space()
        if is_raw(arguments.tool):
            closed = yield from arguments.read_raw(Openers(CALL_CLOSE))
            if not closed:
                arguments.flag("truncated")
        else:
            yield from arguments.read()
            yield from buffer.skip_space()
    closed = (yield from buffer.expect(CALL_CLOSE)) if arguments.tool is not None else ""
    if arguments.tool is None or not (arguments.is_read or arguments.is_open or closed):
        sink.text(buffer.recorded())
        return False
    buffer.take(len(closed))
    arguments.finish()
    return True


def _skip(buffer: TextBuffer, mark: str) -> Generator[None, None, int]:
    """Take a marker as often as it comes; return how often."""
    times = 0
    while (yield from buffer.expect(mark)):
        buffer.take(len(mark))
        times += 1
    return times


def _named_by(call_id: str, tool_set: ToolSet) -> Tool | None:
    """Return the tool that an id names: without `functions.` and number if there is such a tool, else as it stands.

    A tool's own name may begin with `functions.` and end with a number.
    """
    bare = call_id.removeprefix(FUNCTIONS)
    names = (NUMBER.sub("", bare), bare, NUMBER.sub("", call_id), call_id)
    return next((tool for name in names if (tool := tool_set.find(name)) is not None), None)


def constrain(spec: ConstraintSpec) -> Constraint | None:
    """Return the grammar of a reply in this format."""
    begin, end = marker(spec, CALL), marker(spec, SECTION_CLOSE)
    arguments, call_end = marker(spec, ARGUMENTS), marker(spec, CALL_CLOSE)
    more = f" ({begin} call){{0,{MAX_CALLS - 1}}}" if spec.choice.parallel else ""
    openers = {SECTION: f"{begin} call{more} {end}", CALL: "call"}

    def around(tool: Tool) -> tuple[str, str]:
        return f"{quoted(f'{FUNCTIONS}{tool.name}:')} /[0-9]{{1,3}}/ {arguments}", call_end

    return constraint(spec, openers=openers, separator=None, rules=json_calls(spec, around))


def call_id(name: str, index: int, tool_names: Collection[str] = ()) -> str:
    """Return the id of a call in the history; a name that is such an id itself is taken for the name in it.

    The names of the request's tools are taken as they are.
    """
    written = re.fullmatch(rf"{re.escape(FUNCTIONS)}(.+):\d+", name) if name not in tool_names else None
    return f"{FUNCTIONS}{written.group(1) if written else name}:{index}"


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return CALL in template and ARGUMENTS in template


KIMI_K2 = Dialect(
    name="kimi_k2",
    markers=(SECTION, SECTION_CLOSE, CALL, CALL_CLOSE, ARGUMENTS),
    halts=(),
    parser=partial(IncrementalParser, _read_reply),
    constrain=cached_by_spec(constrain),
    recognise=recognise,
    call_id=call_id,
)
