"""Text of one tagged value, emitted as it becomes certain: the line break and blanks at its end may belong to a tag."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.dialects.parsing.tags import Tag
from server.dialects.parsing.text_buffer import ParserCoroutine, TextBuffer

OPEN_STRING = re.compile(r'(?:[^"]|"(?:[^"\\\n]|\\.)*+")*+"(?:[^"\\\n]|\\.)*+')
LINE_BREAK = re.compile(r"[ \t]*\r?\n")
Outcome = Literal["closed", "repaired", "truncated"]


@dataclass(slots=True)
class ValueText:
    """Takes a value from the buffer and emits it. `by_line`: a line break on either side belongs to its tags.

    `indented`: blanks stand before its opening tag, and may stand before its closing one.
    """

    buffer: TextBuffer
    by_line: bool
    is_json: bool
    emit: Callable[[str], None]
    indented: bool = False
    inline: bool = False  # it begins in the line of its tag
    begun: bool = False  # some of it was taken
    _crlf: bool = False
    _repaired: bool = False
    _first_line: bool = True
    _json: str = ""

    def skip_first_break(self) -> ParserCoroutine:
        """Take the line break behind the opening tag."""
        while self.by_line and not (first := LINE_BREAK.match(self.buffer.text, self.buffer.at)):
            if self.buffer.rest.strip(" \t\r") or self.buffer.ended:
                self.inline = True
                return
            yield
        if self.by_line and first:
            taken = self.buffer.take(len(first.group()))
            self._crlf = taken.endswith("\r\n")
            self._repaired = taken != "\n"

    def write_before(self, position: int) -> None:
        """Emit the text before a position, but not what may belong to a tag there."""
        piece = self.buffer.text[self.buffer.at : self.buffer.index(position)]
        self.write(piece[: len(piece) - len(margin(piece))])

    def write(self, piece: str) -> None:
        """Take and emit this text, which comes next."""
        if piece:
            self.buffer.take(len(piece))
            self.emit(piece)
            self.begun = True
            self._first_line = self._first_line and "\n" not in piece
            if self.is_json:
                self._json += piece

    def end(self, tag: Tag) -> Outcome:
        """Emit the rest of the value before this tag, and take the tag if it closes an argument."""
        self.write_before(tag.start)
        before = self.between(self.buffer.position, tag.start)
        is_closing = tag.closes and tag.kind in ("argument", "key")
        if is_closing and tag.exact and not (self.by_line and "\n" in before):
            self.write(before)
        elif is_closing and tag.exact:
            line, blanks = before.split("\n")
            self.write("" if self._crlf or self.inline else line)
            self._repaired = self._repaired or bool(blanks)
        self.buffer.take_to(tag.end if is_closing else tag.start)
        return "closed" if is_closing and tag.exact and not self._repaired else "repaired"

    def drop(self, tag: Tag) -> None:
        """Take a tag that means nothing."""
        self._repaired = True
        self.buffer.take_to(tag.end)
        if self.by_line and (found := LINE_BREAK.match(self.buffer.text, self.buffer.at)):
            self.buffer.take(len(found.group()))

    def in_string(self, tag: Tag) -> bool:
        """Whether a string of the value's JSON is open there; a line break ends it, as none has one."""
        piece = self.between(self.buffer.position, tag.start)
        return self.is_json and OPEN_STRING.fullmatch(self._json + piece) is not None

    def at_line(self, tag: Tag) -> bool:
        """Whether a line begins with this tag, or the value's first line began with its tag and is not over."""
        text, start, end = self.buffer.text, self.buffer.at, self.buffer.index(tag.start)
        line_break = text.rfind("\n", start, end)
        if line_break < 0 and (self.begun or self.inline):
            return not self.by_line or (self.inline and self._first_line)
        return not self.by_line or not text[line_break + 1 if line_break >= 0 else start : end].strip()

    def is_indented(self, tag: Tag) -> bool:
        """Whether a blank stands before this tag."""
        start = self.buffer.index(tag.start)
        return self.by_line and self.buffer.text[start - 1 : start] in (" ", "\t")

    def has_own_line(self, tag: Tag) -> bool:
        """Whether a line break stands on either side of this tag, the first one in the value."""
        start = self.buffer.index(tag.start)
        before = self.buffer.text[self.buffer.at : start]
        begins_line = (before.rstrip(" \t") if self.indented else before).endswith("\n")
        return self.by_line and begins_line and self.ends_line(tag)

    def is_attached(self, tag: Tag) -> bool:
        """Whether text of the value stands right before this tag; call it behind `write_before`."""
        return self.by_line and self.begun and self.buffer.index(tag.start) == self.buffer.at

    def ends_line(self, tag: Tag) -> bool:
        """Whether a line ends with this tag."""
        return LINE_BREAK.match(self.buffer.text, self.buffer.index(tag.end)) is not None

    def between(self, start: int, end: int) -> str:
        """Return the text between two positions."""
        return self.buffer.text[self.buffer.index(start) : self.buffer.index(end)]

    def has_break(self, start: int, end: int) -> bool:
        """Whether a line break stands between two positions."""
        return self.buffer.text.find("\n", self.buffer.index(start), self.buffer.index(end)) >= 0


def margin(piece: str) -> str:
    """Return the line break, if there is one, and the blanks at the end of a text."""
    bare = piece.rstrip(" \t")
    if bare.endswith("\n"):
        bare = bare[:-1]
    return piece[len(bare.removesuffix("\r")) :]
