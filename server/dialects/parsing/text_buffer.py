"""Incremental text buffer, event sink, and the driver of a dialect's parser coroutine.

A parser is a generator that reads the buffer and yields where it needs more text. `IncrementalParser` turns
it into the `feed` and `close` of the Parser protocol.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Sequence

from server.dialects.base import Tool
from server.dialects.schema.validate import ToolSet
from server.events import CallArguments, CallClosed, CallOpened, Flag, ParserEvent, Text

ParserCoroutine = Generator[None, None, None]
SPACE = re.compile(r"\s*")
MAX_NAME_LENGTH = 256


class TextBuffer:
    """Text not parsed yet, and a recording of the text taken since `record`.

    An index counts in `text`, and is valid until the next piece comes; a position counts from the beginning of the
    reply, and is always valid.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.num_discarded = 0  # characters of the reply before `text`
        self.ended = False
        self._kept: list[str] = []

    def add(self, text: str) -> None:
        """Append text and discard what was taken."""
        self.text = self.text[self.at :] + text
        self.num_discarded += self.at
        self.at = 0

    @property
    def position(self) -> int:
        """The position of the next character to take."""
        return self.num_discarded + self.at

    def index(self, position: int) -> int:
        """Return the index of a position that is not discarded."""
        return position - self.num_discarded

    def take_to(self, position: int) -> str:
        """Take the characters before a position."""
        return self.take(self.index(position) - self.at)

    @property
    def rest(self) -> str:
        """The text that was not taken yet."""
        return self.text[self.at :]

    @property
    def empty(self) -> bool:
        """Whether there is no text to take."""
        return self.at >= len(self.text)

    def take(self, length: int) -> str:
        """Take the next characters, which must be there."""
        piece = self.text[self.at : self.at + length]
        self.at += length
        self._kept.append(piece)
        return piece

    def record(self) -> None:
        """Start a new recording at the current position."""
        self._kept = []

    def recorded(self) -> str:
        """Return everything taken since `record`."""
        self._kept = ["".join(self._kept)]
        return self._kept[0]

    def starts(self, *words: str) -> str | None:
        """Return the first of these that the rest begins with; "" if none can match; None if more text is needed."""
        for word in words:
            if self.text.startswith(word, self.at):
                return word
        rest = self.text[self.at : self.at + max(map(len, words))]
        return None if not self.ended and any(word.startswith(rest) for word in words) else ""

    def skip_space(self) -> Generator[None, None, str]:
        """Take white space up to another character or the end of the reply."""
        taken = ""
        while True:
            space = SPACE.match(self.text, self.at)
            taken += self.take(space.end() - self.at) if space else ""
            if not self.empty or self.ended:
                return taken
            yield

    def expect(self, *words: str) -> Generator[None, None, str]:
        """Wait until `starts` is decided; nothing is taken."""
        while (found := self.starts(*words)) is None:
            yield
        return found


class EventSink:
    """Events in order. White space beside a call is held: it is dropped only if a call follows it."""

    def __init__(self) -> None:
        self._events: list[ParserEvent] = []
        self._whitespace = ""
        self._index = -1
        self.after_call = False  # no text since the last call

    def collect(self) -> list[ParserEvent]:
        """Return and clear the events."""
        events, self._events = self._events, []
        return events

    def hold_whitespace(self, whitespace: str) -> None:
        """Hold white space that is part of the markup if a call follows."""
        self._whitespace += whitespace

    def text(self, text: str) -> None:
        """Emit text of the answer."""
        if not text:
            return
        self._events.append(Text(self._whitespace + text))
        self._whitespace = ""
        self.after_call = False

    def open(self, name: str, custom: bool) -> None:
        """Open a call."""
        self._whitespace = ""
        self._index += 1
        self._events.append(CallOpened(self._index, name, custom))

    def arguments(self, text: str) -> None:
        """Emit a part of its arguments."""
        if text:
            self._events.append(CallArguments(self._index, text))

    def close(self, flags: Iterable[Flag], raw: str) -> None:
        """Close the call; `raw` is kept only with flags."""
        unique_flags = tuple(dict.fromkeys(flags))
        self._events.append(CallClosed(self._index, unique_flags, raw if unique_flags else ""))
        self.after_call = True

    def end(self) -> None:
        """End the reply."""
        if not self.after_call:
            self.release_whitespace()

    def release_whitespace(self) -> None:
        """Emit held white space as text."""
        whitespace, self._whitespace = self._whitespace, ""
        self.text(whitespace)


class IncrementalParser:
    """Parser that runs a dialect's coroutine `read` as far as the text goes. `tools` may be called by the reply."""

    def __init__(
        self, read: Callable[[TextBuffer, EventSink, ToolSet], ParserCoroutine], tools: Sequence[Tool]
    ) -> None:
        self._buffer = TextBuffer()
        self._sink = EventSink()
        self._coroutine = read(self._buffer, self._sink, ToolSet(tools))

    def feed(self, text: str) -> list[ParserEvent]:
        """Return the events that the text so far determines."""
        self._buffer.add(text)
        next(self._coroutine)
        return self._sink.collect()

    def close(self) -> list[ParserEvent]:
        """End the reply and return what was held back."""
        self._buffer.ended = True
        for _ in self._coroutine:
            raise AssertionError("a parser waits for text after the end")
        self._sink.end()
        return self._sink.collect()


def read_text(buffer: TextBuffer, sink: EventSink, openers: "Openers") -> Generator[None, None, str]:
    """Emit text up to one of `openers` and return it; "" at the end of the reply.

    White space alone, and one line break right before an opener, are markup if a call follows.
    """
    blank = True
    while True:
        found = openers.search(buffer.text, buffer.at)
        plain = buffer.take((found.start() if found else len(buffer.text) - openers.overlap(buffer.rest)) - buffer.at)
        if plain:
            blank = blank and plain.isspace()
            if blank:
                sink.hold_whitespace(plain)
            else:
                words = plain.removesuffix("\n")
                if words:
                    sink.text(words)
                else:
                    sink.release_whitespace()
                sink.hold_whitespace(plain[len(words) :])
        if found:
            return found.group()
        if buffer.ended:
            sink.text(buffer.take(len(buffer.rest)))
            return ""
        yield


def skip_doubled(buffer: TextBuffer, sink: EventSink, close: str) -> ParserCoroutine:
    """Take further closing markers behind one; white space before other text is held."""
    while True:
        space = yield from buffer.skip_space()
        if not (yield from buffer.expect(close)):
            sink.hold_whitespace(space)
            return
        buffer.take(len(close))


def read_name(buffer: TextBuffer, stop: str) -> Generator[None, None, str | None]:
    """Take a name and the `stop` after it; None, and nothing is taken, if there is none of at most MAX_NAME_LENGTH."""
    while True:
        end = buffer.text.find(stop, buffer.at, buffer.at + MAX_NAME_LENGTH + len(stop))
        name = buffer.text[buffer.at : end if end >= 0 else len(buffer.text) - overlap(buffer.rest, stop)]
        if "\n" in name.strip() or "<" in name or len(name) > MAX_NAME_LENGTH:
            return None
        if end >= 0:
            buffer.take(end + len(stop) - buffer.at)
            return name.strip()
        if buffer.ended:
            return None
        yield


def read_line(buffer: TextBuffer) -> Generator[None, None, str]:
    """Take the rest of a line and strip it; "", and nothing is taken, if it is too long for a name."""
    while True:
        end = buffer.text.find("\n", buffer.at, buffer.at + MAX_NAME_LENGTH)
        if end >= 0:
            return buffer.take(end - buffer.at).strip()
        if buffer.ended or len(buffer.rest) >= MAX_NAME_LENGTH:
            return ""
        yield


class Openers:
    """Strings that end plain text; those of `any_case`, in ASCII, count in any case."""

    def __init__(self, *words: str, any_case: Iterable[str] = ()) -> None:
        folded = [word.lower() for word in any_case]
        self._words = sorted(words)
        self._folded = sorted(folded)
        self._longest = max(map(len, [*words, *folded]))
        firsts = {word[0] for word in words} | {case for word in folded for case in (word[0], word[0].upper())}
        self._first = re.compile("[" + "".join(map(re.escape, sorted(firsts))) + "]")
        alternatives = [re.escape(word) for word in sorted(words, key=len, reverse=True)]
        if folded:
            alternatives.append(f"(?ai:{'|'.join(re.escape(word) for word in sorted(folded, key=len, reverse=True))})")
        self._pattern = re.compile("|".join(alternatives))

    def search(self, text: str, at: int) -> re.Match[str] | None:
        """Find the first of them from `at` on."""
        return self._pattern.search(text, at)

    def match(self, text: str, at: int) -> re.Match[str] | None:
        """Find one that stands at `at`."""
        return self._pattern.match(text, at)

    def overlap(self, text: str) -> int:
        """Return how many characters at the end of `text` may begin one."""
        tail = text[max(0, len(text) - self._longest + 1) :]
        for first in self._first.finditer(tail):
            piece = tail[first.start() :]
            if _begins_one(piece, self._words) or (piece.isascii() and _begins_one(piece.lower(), self._folded)):
                return len(piece)
        return 0


def _begins_one(piece: str, words: Sequence[str]) -> bool:
    """Whether one of these sorted words begins with this text."""
    place = bisect_left(words, piece)
    return place < len(words) and words[place].startswith(piece)


def overlap(text: str, word: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `word`."""
    start = max(0, len(text) - len(word) + 1)
    while (start := text.find(word[0], start)) >= 0:
        if word.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
