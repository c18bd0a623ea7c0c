"""GLM-4.5 and GLM-4.6: a name, then keys and values.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Paris</arg_value>
    <arg_key>days</arg_key>
    <arg_value>3</arg_value>
    </tool_call>

Strings are raw text, other values are JSON. Line breaks between the tags may be missing (GLM-4.7). Accepted as well,
and flagged "repaired": tags that are missing, doubled, swapped or distorted; `<tool_call>` itself only where the call
is whole and its arguments satisfy the schema, as the grammar holds no other call. A value ends at `</arg_value>` only
where a tag of the format follows, so it may contain that tag; without it, at the key of a declared argument, and where
the call ends; calls of this format in a value are its text where they are whole (`parsing/value_ends.py`). Of a
repeated key the first value counts.

A custom tool's free text is the argument `input`.
"""

import re
from collections.abc import Collection, Generator
from dataclasses import dataclass, replace
from functools import partial

from server.dialects.base import ConstraintSpec, Dialect
from server.dialects.grammar.json_grammar import quoted
from server.dialects.grammar.lark import cached_by_spec, constraint, marker, pattern_of
from server.dialects.grammar.tagged_grammar import Beside, TagForm, tagged_calls
from server.dialects.parsing.odd_tags import ODD_CLOSE, ODD_OPEN
from server.dialects.parsing.tagged import TaggedCall
from server.dialects.parsing.tags import Tag, TagLexer, next_tag
from server.dialects.parsing.text_buffer import (
    MAX_NAME_LENGTH,
    SPACE,
    EventSink,
    IncrementalParser,
    Openers,
    ParserCoroutine,
    TextBuffer,
    read_text,
)
from server.dialects.parsing.value_ends import PLAIN_NAME, TagFormat
from server.dialects.schema.validate import ToolSet
from server.events import CallArguments, CallClosed, CallOpened
from server.messages import Constraint

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, KEY_CLOSE = "<arg_key>", "</arg_key>"
VALUE, VALUE_CLOSE = "<arg_value>", "</arg_value>"
ODD_OPENERS = (*ODD_OPEN, f"{OPEN[:-1]}\n")
ODD_CLOSERS = Openers(CLOSE, any_case=ODD_CLOSE)
MAX_HELD_LENGTH = 64 * 1024  # characters of a call without its opening tag
MAX_HELD_TAGS = 256  # of it, and
MAX_TRIES = 8  # of reading one in a reply: they bound the time that a hostile reply takes
NAME = re.compile(rf"[^\s<]{{1,{MAX_NAME_LENGTH}}}(?=[\s<])")
NAME_BEGUN = re.compile(rf"[^\s<]{{0,{MAX_NAME_LENGTH}}}")
WORDS = ("arg_key", "arg_value", "tool_call")
TAGS = TagLexer({"arg_key": "key", "arg_value": "argument", "tool_call": "call"}, exact=WORDS)


class GlmLexer:
    """Lexer of GLM's tags in which a key and the opening tag of its value are one tag, and so are `<tool_call>` and the
    name of the tool. A key without the opening tag of a value is not complete.
    """

    def search(self, buffer: TextBuffer, position: int) -> Tag | int:
        """Return the first tag from a position on, or the position up to which there certainly is none."""
        found = TAGS.search(buffer, position)
        if not isinstance(found, Tag) or found.kind == "argument":
            return found
        if found.kind == "call":
            return replace(found, kind="function") if found.closes else self._call(buffer, found)
        return found if found.closes else self._argument(buffer, found)

    def _argument(self, buffer: TextBuffer, key: Tag) -> Tag | int:
        opened, exact, loose = key, key.exact, not key.exact
        while (found := _word_and_tag(buffer, opened.end)) and not found[0] and found[1].opens("key"):
            opened, exact, loose = found[1], False, loose or not found[1].exact  # doubled
        if found is None:
            return key.start
        name, tag = found
        if not name or tag.kind == "end" or tag.opens("key", "call"):
            return key
        end = opened.end
        while tag.closes and tag.kind in ("key", "argument"):
            exact = exact and tag.exact and tag.kind == "key" and end == opened.end
            loose = loose or not tag.exact
            end = tag.end
            found = _word_and_tag(buffer, end)
            if found is None:
                return key.start
            blank, tag = found
            if blank:
                break
        else:
            if tag.opens("argument"):
                exact = exact and tag.exact and end > opened.end
                loose = loose or not tag.exact
                return Tag("argument", False, key.start, tag.end, "arg_value", name, exact, loose=loose)
        if end == opened.end or not exact:  # without the opening tag of a value, only as a key is written
            return key
        return Tag("argument", False, key.start, end, "arg_value", name, exact=False, complete=False)

    def _call(self, buffer: TextBuffer, tag: Tag) -> Tag | int:
        found = _word_and_tag(buffer, tag.end)
        if found is None:
            return tag.start
        name, behind = found
        is_head = PLAIN_NAME.fullmatch(name) is not None and behind.exact
        is_whole = behind.kind == "key" or (behind.kind == "call" and behind.closes)
        return replace(tag, kind="function", name=name, end=behind.start) if is_head and is_whole else tag


def _word_and_tag(buffer: TextBuffer, position: int) -> tuple[str, Tag] | None:
    """Return the words up to the next "<" and the tag there; None where more text is needed.

    Where no tag stands there, or the words are too long for a name or of several lines, the tag has the kind "end".
    """
    text, start = buffer.text, buffer.index(position)
    space = SPACE.match(text, start)
    start = space.end() if space else start
    end = text.find("<", start, start + MAX_NAME_LENGTH + 1)
    words = text[start : end if end >= 0 else start + MAX_NAME_LENGTH + 1].rstrip()
    none = Tag("end", True, position, position, "")
    if "\n" in words or len(words) > MAX_NAME_LENGTH or (end < 0 and buffer.ended):
        return words, none
    if end < 0:
        return None
    place = end + buffer.num_discarded
    found = TAGS.search(buffer, place)
    if isinstance(found, Tag):
        return words, found if found.start == place else none
    return None if found == place and not buffer.ended else (words, none)


LEXER = GlmLexer()
CERTAIN = re.compile(rf"({KEY})+[^<>\n]*{KEY_CLOSE}")
FORMAT = TagFormat(LEXER, by_line=False, outer="function", certain=CERTAIN, words=_word_and_tag)


def _read_reply(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> ParserCoroutine:
    heads = [f"{name}{space}{KEY}" for name in tool_set.names for space in ("", "\n")]
    words = (OPEN, *(f"\n{head}" for head in heads))
    openers = Openers(*words, any_case=ODD_OPENERS)
    openers_inside = Openers(*words, CLOSE, any_case=ODD_OPENERS)
    inside = False  # a tag that a call was read from is still open: its end is markup
    num_tries = 0
    opener = (yield from buffer.expect(*heads)) if heads else ""
    while True:
        opener = opener or (yield from read_text(buffer, sink, openers_inside if inside else openers))
        if not opener:
            return
        buffer.record()
        inside = False
        if opener == OPEN:
            buffer.take(len(opener))
            inside = yield from _read_call(buffer, sink, tool_set)
        elif opener == CLOSE:
            buffer.take(len(opener))
        else:
            num_tries += yield from _read_unopened(buffer, sink, tool_set, opener, MAX_TRIES - num_tries)
        opener = ""


def _read_unopened(
    buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, opener: str, most_tries: int
) -> Generator[None, None, int]:
    """Read a call whose opening tag is missing or distorted, or emit its beginning as text; return the tries it took.

    It is a call only where it is whole and valid: the grammar holds what follows `<tool_call>` alone.
    """
    buffer.take(len(opener) if opener.lower() in ODD_OPENERS else opener.startswith("\n"))
    name = yield from _read_name(buffer)
    if tool_set.find(name) is not None:
        yield from buffer.skip_space()
    is_call = tool_set.find(name) is not None and bool(
        (yield from buffer.expect(KEY)) or (yield from _closer(buffer)) is not None
    )
    scanned = num_tries = 0  # characters behind the name in which no end of the call is left
    while is_call and num_tries < most_tries:
        found = ODD_CLOSERS.search(buffer.text, buffer.at + scanned)
        end = found.start() - buffer.at if found else len(buffer.rest) - ODD_CLOSERS.overlap(buffer.rest)
        if end > MAX_HELD_LENGTH or (found is None and buffer.ended):
            break
        scanned = end
        if found is None:
            yield
            continue
        written = buffer.rest[:end]
        if written.count(KEY[:5]) > MAX_HELD_TAGS:
            break
        num_tries += 1
        if (call := _whole_call(name, written, tool_set)) is not None:
            buffer.take(found.end() - buffer.at)
            sink.open(name, call.custom)
            sink.arguments(call.arguments)
            sink.close(("repaired",), buffer.recorded())
            return num_tries
        scanned = found.end() - buffer.at
    sink.text(buffer.recorded())
    return num_tries


def _closer(buffer: TextBuffer) -> Generator[None, None, re.Match[str] | None]:
    """Return the end of a call, in any spelling, that stands next; None where other text does. Nothing is taken."""
    while not (found := ODD_CLOSERS.match(buffer.text, buffer.at)):
        if buffer.ended or ODD_CLOSERS.overlap(buffer.rest) < len(buffer.rest):
            return None
        yield
    return found


@dataclass(frozen=True, slots=True)
class _WholeCall:
    """A call that was read from one text."""

    arguments: str
    custom: bool


def _whole_call(name: str, written: str, tool_set: ToolSet) -> _WholeCall | None:
    """Return the call of which this is the text behind the name, if it is nothing else and valid."""
    buffer, sink = TextBuffer(), EventSink()
    buffer.add(f"{OPEN}{name}\n{written}{CLOSE}")
    buffer.ended = True
    buffer.take(len(OPEN))
    for _ in _read_call(buffer, sink, tool_set):
        raise AssertionError("a parser waits for text after the end")
    events = sink.collect()
    opened, closed = (events[0], events[-1]) if events else (None, None)
    if not isinstance(opened, CallOpened) or not isinstance(closed, CallClosed) or not buffer.empty:
        return None
    if not {*closed.flags} <= {"repaired"}:
        return None
    arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
    return _WholeCall(arguments, opened.custom)


def _read_call(buffer: TextBuffer, sink: EventSink, tool_set: ToolSet) -> Generator[None, None, bool]:
    """Read one call, or emit its beginning as text. True if its closing tag is still to come."""
    doubled = False
    while (tag := (yield from next_tag(TAGS, buffer, buffer.position))) and tag.opens("call"):
        buffer.take_to(tag.end)
        doubled = True
    name = yield from _read_name(buffer)
    tool = tool_set.find(name)
    if tool is None:
        sink.text(buffer.recorded())
        return False
    yield from buffer.skip_space()
    call = TaggedCall(buffer, sink, tool_set, tool, FORMAT)
    key = yield from _next_key(buffer, call)
    if key is None and not _closes_call((yield from next_tag(LEXER, buffer, buffer.position))):
        sink.text(buffer.recorded())
        return False
    call.open()
    if doubled:
        call.flag("repaired")
    closed = False
    while not call.cut:
        if key is not None and key.name is not None:
            if closed or not key.exact:
                call.flag("repaired")
            yield from call.read_argument(key)
        else:
            closing = yield from next_tag(LEXER, buffer, buffer.position)
            if closing is None or closing.kind == "end" or not closing.closes or closed:
                break
            closed = closing.kind == "function"
            if not (closed and closing.exact):
                call.flag("repaired")
            buffer.take_to(closing.end)
        key = yield from (_late_key if closed else _next_key)(buffer, call)
    if not closed and not call.cut:
        yield from buffer.skip_space()
        call.flag("truncated" if buffer.ended and buffer.empty else "repaired")
    call.finish()
    while (tag := (yield from next_tag(LEXER, buffer, buffer.position))) and tag.closes and tag.kind != "end":
        closed = closed or tag.kind == "function"
        buffer.take_to(tag.end)
    return not closed


def _closes_call(tag: Tag | None) -> bool:
    return tag is not None and tag.closes and tag.kind == "function"


def _late_key(buffer: TextBuffer, call: TaggedCall) -> Generator[None, None, Tag | None]:
    """Return the key of a declared argument that was not given yet, behind the end of its call."""
    tag = yield from next_tag(LEXER, buffer, buffer.position)
    return tag if tag is not None and tag.opens("argument") and call.is_new(tag.name) else None


def _next_key(buffer: TextBuffer, call: TaggedCall) -> Generator[None, None, Tag | None]:
    """Return the key of the next argument with the opening tag of its value; None if none comes. Nothing is taken.

    Of a declared argument either tag may be missing, doubled or the other one.
    """
    tag = yield from next_tag(LEXER, buffer, buffer.position)
    if tag is not None and tag.opens("argument") and tag.name and (tag.complete or call.is_new(tag.name)):
        return tag
    start = buffer.position if tag is None else tag.start
    position = tag.end if tag is not None and tag.opens("argument", "key") else start
    while (found := _word_and_tag(buffer, position)) is None:
        yield
    name, behind = found
    if not call.is_new(name) or behind.kind not in ("key", "argument") or (position == start and behind.opens("key")):
        return None
    end = position
    following: Tag | None = behind
    while following is not None and following.closes and following.kind in ("key", "argument"):
        end = following.end
        following = yield from next_tag(TAGS, buffer, end)
    complete = following is not None and following.opens("key", "argument")
    if following is not None and complete:
        end = following.end
    return Tag("argument", False, start, end, "arg_value", name, False, complete) if end > position else None


def _read_name(buffer: TextBuffer) -> Generator[None, None, str]:
    yield from buffer.skip_space()
    while True:
        name = NAME.match(buffer.text, buffer.at)
        if name:
            return buffer.take(len(name.group()))
        if buffer.ended or not NAME_BEGUN.fullmatch(buffer.rest):
            return ""
        yield


def ended(names: Collection[str], beside: Beside = "nothing") -> str:
    """Return a pattern of the texts that are no value in this format; `names` are the declared arguments.

    They are the texts in which a tag may end a value, and those that are read on to see whether it does.
    """
    anywhere = r"<\/arg_value>\s*(<arg_key>|<\/?tool_call>|<arg_value>)|<\/tool_call>\s*(<tool_call>|<arg_key>)"
    if names:
        anywhere += rf"|<arg_key>({'|'.join(map(pattern_of, sorted(names)))})<\/arg_key>"
    return rf"(?s:.*)({anywhere})(?s:.*)|\s*<arg_value>(?s:.*)|(?s:.*)<\/arg_value>\s*"


FORM = TagForm(
    head=lambda name: f"{KEY}{name}{KEY_CLOSE}\n{VALUE}",
    tail=f"{VALUE_CLOSE}\n",
    closing=VALUE_CLOSE,
    ended=ended,
    tags=(KEY, KEY_CLOSE, VALUE, VALUE_CLOSE),
)


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
    raw_strings=True,
)
