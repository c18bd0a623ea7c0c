"""GLM-4.5 and GLM-4.6: a name, then keys and values.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Paris</arg_value>
    <arg_key>days</arg_key>
    <arg_value>3</arg_value>
    </tool_call>

Strings stand as they are, other values are JSON. Line breaks between the tags may be missing (GLM-4.7). A value ends
at `</arg_value>` only where a key or `</tool_call>` follows, so it may hold that tag. Of a key that is written twice
the first counts.

A custom tool's free text is the argument `input`.
"""

import re
from collections.abc import Generator, Iterator, Sequence

from server.dialects.json_rules import quoted
from server.dialects.lark import callable_tools, constraint, marker, remembering
from server.dialects.minimal import shortest_members
from server.dialects.protocol import Dialect, Parser, Tool, Wanted
from server.dialects.tagged import INPUT, Ending, TaggedCall
from server.dialects.tagged_lark import TagForm, input_text, literal, shared_rules, tagged_rules
from server.dialects.tape import LONGEST_NAME, Openers, Outbox, Reading, Steps, Tape, read_name, read_text
from server.dialects.validity import Offered
from server.messages import Constraint

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, KEY_CLOSE = "<arg_key>", "</arg_key>"
VALUE, VALUE_CLOSE = "<arg_value>", "</arg_value>"
OPENERS = Openers(OPEN)
OPENERS_INSIDE = Openers(OPEN, CLOSE)
NAME = re.compile(rf"[^\s<]{{1,{LONGEST_NAME}}}(?=[\s<])")
NAME_BEGUN = re.compile(rf"[^\s<]{{0,{LONGEST_NAME}}}")
VALUE_ENDS = (Ending(VALUE_CLOSE, (KEY, CLOSE)),)
FORM = TagForm(
    head=lambda name: f"{KEY}{name}{KEY_CLOSE}\n{VALUE}",
    tail=f"{VALUE_CLOSE}\n",
    ends=r"<\/arg_value>\s*(<arg_key>|<\/tool_call>)",
    closing=VALUE_CLOSE,
    tags=(KEY, KEY_CLOSE, VALUE, VALUE_CLOSE),
)


def parser(tools: Sequence[Tool]) -> Parser:
    """Reads replies in this format."""
    offered = Offered(tools)
    return Reading(lambda tape, out: _read_reply(tape, out, offered))


def _read_reply(tape: Tape, out: Outbox, offered: Offered) -> Steps:
    inside = False  # a tag that a call was read from is still open: its end is markup
    while True:
        opener = yield from read_text(tape, out, OPENERS_INSIDE if inside else OPENERS)
        if not opener:
            return
        tape.record()
        tape.take(len(opener))
        inside = False
        if opener == OPEN:
            inside = yield from _read_call(tape, out, offered)


def _read_call(tape: Tape, out: Outbox, offered: Offered) -> Generator[None, None, bool]:
    """Read one call, or give its beginning back as text. True if its closing tag is still to come."""
    name = yield from _read_name(tape)
    tool = offered.find(name)
    if tool is not None:
        yield from tape.skip_space()
    if tool is None or not (yield from tape.expect(KEY, CLOSE)):
        out.text(tape.recorded())
        return False
    call = TaggedCall(tape, out, offered, tool)
    while not call.cut and (yield from tape.expect(KEY)):
        tape.take(len(KEY))
        key = yield from read_name(tape, KEY_CLOSE)
        yield from tape.skip_space()
        if key is None or not (yield from tape.expect(VALUE)):
            break
        tape.take(len(VALUE))
        yield from call.read_argument(key, VALUE_ENDS, trims=False)
        yield from tape.skip_space()
    closed = yield from tape.expect(CLOSE)
    tape.take(len(closed))
    if not closed and not call.cut:
        call.flag("truncated" if tape.ended and tape.empty else "repaired")
    call.finish()
    return not closed


def _read_name(tape: Tape) -> Generator[None, None, str]:
    yield from tape.skip_space()
    while True:
        name = NAME.match(tape.text, tape.at)
        if name:
            return tape.take(len(name.group()))
        if tape.ended or not NAME_BEGUN.fullmatch(tape.rest):
            return ""
        yield


def constrain(wanted: Wanted) -> Constraint | None:
    """The grammar of a reply in this format."""
    rest = f"call {marker(wanted, CLOSE)}"
    return constraint(wanted, openers={OPEN: rest}, separator='"\\n"', rules=_rules(wanted))


def _rules(wanted: Wanted) -> Iterator[str]:
    tools = callable_tools(wanted)
    yield "call: " + " | ".join(f"call_{i}" for i in range(len(tools)))
    yield from shared_rules(wanted, FORM)
    for i, tool in enumerate(tools):
        arguments = f"arguments_{i}"
        yield f"call_{i}: {quoted(tool.name + chr(10))} {arguments}"
        if tool.custom:
            yield f"{arguments}: {literal(wanted, FORM, FORM.head(INPUT))} {input_text(wanted, tool, FORM)}"
        else:
            yield from tagged_rules(arguments, wanted, tool, FORM)


def shortest(wanted: Wanted) -> str:
    """The text of a short valid call of the first tool that may be called."""
    tool = callable_tools(wanted)[0]
    members = "".join(f"{FORM.head(name)}{text}{FORM.tail}" for name, text in shortest_members(tool))
    return f"{OPEN}{tool.name}\n{members}{CLOSE}"


def recognise(template: str) -> bool:
    """Whether a chat template writes this format."""
    return KEY in template and VALUE in template


GLM4 = Dialect(
    name="glm4",
    markers=(OPEN, CLOSE, KEY, KEY_CLOSE, VALUE, VALUE_CLOSE),
    halts=(),
    parser=parser,
    constrain=remembering(constrain),
    shortest=shortest,
    recognise=recognise,
)
