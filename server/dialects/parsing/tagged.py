"""Convert calls with tagged arguments, as of Qwen3-Coder and GLM, to one JSON object.

A string is emitted while it is being written; any other value when it is complete, as its type is not known before.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from server.dialects.base import Tool
from server.dialects.parsing.coerce import Types, as_json, quoted_json
from server.dialects.parsing.text_buffer import (
    MAX_NAME_LENGTH,
    SPACE,
    EventSink,
    Openers,
    ParserCoroutine,
    TextBuffer,
    overlap,
)
from server.dialects.schema.validate import ToolSet
from server.events import Flag

OPEN_STRING = re.compile(r'(?:[^"]|"(?:[^"\\\n]|\\.)*+")*+"(?:[^"\\\n]|\\.)*+')
INPUT = "input"  # the only argument of a custom tool


@dataclass(frozen=True, slots=True)
class Ending:
    """End of a value: `tag`, where one of `before` or the end of the reply follows it. So a value may contain the tag.

    With `name_end`, the name of a declared argument and this string follow instead. `at_line`: the tag counts only at
    the beginning of a line, or in the line that the value began in.
    """

    tag: str
    before: tuple[str, ...] = ()
    name_end: str = ""
    at_line: bool = False


class ValueEnds:
    """Ends of a value in one format: `closing`, its own tag, and what ends it where that is missing.

    The grammar admits no value that contains one of them.
    """

    def __init__(self, closing: Ending, *repairs: Ending) -> None:
        self.closing = closing
        self.all = (closing, *repairs)
        self._by_tag = {ending.tag: ending for ending in self.all}
        self._tags = Openers(*self._by_tag)

    def find(self, buffer: TextBuffer, names: Collection[str], line: "_Line") -> tuple[int, Ending | None]:
        """Return the index and kind of the end of the value; with None, the index up to which it certainly extends."""
        at = buffer.at
        while (found := self._tags.search(buffer.text, at)) is not None:
            start, ending = found.start(), self._by_tag[found.group()]
            ends = (not ending.at_line or line.begins_at(buffer, start)) and not line.in_string(buffer, start)
            follows = ends and _is_followed(buffer, found.end(), ending, names)
            if follows is None:
                return start, None
            if follows:
                return start, ending
            at = start + 1
        return len(buffer.text) - self._tags.overlap(buffer.rest), None


class _Line:
    """Beginnings of lines in a value that begins in the line of its tag (`inline`) or in the next one.

    In a value that can only be JSON (`is_json`) a string may contain any tag.
    """

    def __init__(self, inline: bool, is_json: bool) -> None:
        self._inline = inline
        self._json = "" if is_json else None
        self._is_first = True  # what was taken of the value ends where a line begins, or in the line of its tag

    def begins_at(self, buffer: TextBuffer, index: int) -> bool:
        """Whether a line begins there, or the value's first line began with its tag and is not over."""
        piece = buffer.text[buffer.at : index]
        return piece.endswith("\n") or self._continues(piece)

    def in_string(self, buffer: TextBuffer, index: int) -> bool:
        """Whether a string of the value's JSON is open there; a line break ends it, as none has one."""
        if self._json is None:
            return False
        return OPEN_STRING.fullmatch(self._json + buffer.text[buffer.at : index]) is not None

    def advance(self, piece: str) -> None:
        """Record that this was taken."""
        self._is_first = self._continues(piece)
        if self._json is not None:
            self._json += piece

    def _continues(self, piece: str) -> bool:
        return self._is_first and (not piece or (self._inline and "\n" not in piece))


class TaggedCall:
    """Emits one call: `read_argument` for each argument in the buffer, then `finish`."""

    def __init__(self, buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, tool: Tool) -> None:
        self._buffer = buffer
        self._sink = sink
        self._tool_set = tool_set
        self._tool = tool
        self._types = Types(tool.parameters)
        self._declared = frozenset() if tool.custom else self._types.names
        self._names: set[str] = set()
        self._emitted: list[str] = []
        self._flags: list[Flag] = []
        sink.open(tool.name, tool.custom)

    def flag(self, flag: Flag) -> None:
        """Flag this call."""
        self._flags.append(flag)

    @property
    def cut(self) -> bool:
        """Whether the reply ended inside an argument."""
        return "truncated" in self._flags

    def read_argument(self, name: str, ends: ValueEnds, trims: bool) -> ParserCoroutine:
        """Read one value and its closing tag. Any other end of it is left in the buffer, and the call is flagged.

        With `trims`, one line break on either side is part of the tags.
        """
        if name in self._names or (self._tool.custom and name != INPUT):
            self.flag("repaired")  # the first value was emitted already; the rest is in `raw`
            yield from self._pass_value(ends, trims, lambda text: None)
            return
        self._names.add(name)
        if self._tool.custom:
            yield from self._pass_value(ends, trims, self._emit)
            return
        key = f"{', ' if self._emitted else '{'}{quoted_json(name)}: "
        if self._types.is_text(name):
            self._emit(f'{key}"')
            yield from self._pass_value(ends, trims, lambda text: self._emit(quoted_json(text)[1:-1]))
            self._emit("" if self.cut else '"')
            return
        pieces: list[str] = []
        yield from self._pass_value(ends, trims, pieces.append, self._types.is_json(name))
        if not self.cut:
            value, repaired = as_json("".join(pieces), self._types.of(name))
            self._emit(key + value)
            if repaired:
                self.flag("repaired")

    def finish(self) -> None:
        """Close the call, complete or truncated."""
        if not self._tool.custom and not self.cut:
            self._emit("}" if self._emitted else "{}")
        flags = self._flags
        if not self.cut:
            flags = [*flags, *self._tool_set.validate(self._tool, "".join(self._emitted))]
        self._sink.close(flags, self._buffer.recorded())

    def _emit(self, text: str) -> None:
        self._emitted.append(text)
        self._sink.arguments(text)

    def _pass_value(
        self, ends: ValueEnds, trims: bool, emit: Callable[[str], None], is_json: bool = False
    ) -> ParserCoroutine:
        buffer = self._buffer
        while trims and buffer.empty and not buffer.ended:
            yield
        line = _Line(not (trims and buffer.take(len(buffer.starts("\n") or ""))), is_json)
        while True:
            start, ending = ends.find(buffer, self._declared, line)
            if ending is None and buffer.ended:
                emit(buffer.take(len(buffer.rest)))
                self.flag("truncated")
                return
            is_markup = trims or ending is not ends.closing  # a line break before the end
            line_break = is_markup and start > buffer.at and buffer.text[start - 1] == "\n"
            piece = buffer.take(start - line_break - buffer.at)
            emit(piece)
            line.advance(piece)
            if ending is not None:
                buffer.take(line_break)
                break
            yield
        if ending is ends.closing:
            buffer.take(len(ending.tag))
        else:
            self.flag("repaired")


def _is_followed(buffer: TextBuffer, at: int, ending: Ending, names: Collection[str]) -> bool | None:
    """Whether what must follow the tag of an ending stands at `at`; None where more text is needed."""
    if ending.name_end:
        end = buffer.text.find(ending.name_end, at, at + MAX_NAME_LENGTH + len(ending.name_end))
        if end >= 0:
            return buffer.text[at:end] in names
        begun = buffer.text[at : len(buffer.text) - overlap(buffer.rest, ending.name_end)]
        return None if not buffer.ended and any(name.startswith(begun) for name in names) else False
    space = SPACE.match(buffer.text, at)
    at = space.end() if space else at
    if buffer.text.startswith(ending.before, at):
        return True
    rest = buffer.text[at:]
    if not any(word.startswith(rest) for word in ending.before):
        return False
    return True if buffer.ended and not rest else False if buffer.ended else None
