"""The two ends of every parser: the `TextBuffer` that text comes in on, and the `EventSink` that events leave by.

A parser is written as one generator that reads the tape and yields where it needs more text, so it reads like the
format it describes. `IncrementalParser` turns that generator into the `feed` and `close` of the Parser protocol.
"""

import re
from collections.abc import Callable, Generator, Iterable, Sequence

from server.dialects.base import Tool
from server.dialects.schema.validate import ToolSet
from server.events import CallArguments, CallClosed, CallOpened, Flag, ParserEvent, Text

ParserCoroutine = Generator[None, None, None]
SPACE = re.compile(r"\s*")
MAX_NAME_LENGTH = 256


class TextBuffer:
    """Text that is still to be read. What is taken while recording can be had back whole."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._kept: list[str] = []

    def add(self, text: str) -> None:
        """More text has come; what was read is forgotten."""
        self.text = self.text[self.at :] + text
        self.at = 0

    @property
    def rest(self) -> str:
        """All that has come and was not taken."""
        return self.text[self.at :]

    @property
    def empty(self) -> bool:
        """Nothing to read now."""
        return self.at >= len(self.text)

    def take(self, length: int) -> str:
        """The next characters, which must be there."""
        piece = self.text[self.at : self.at + length]
        self.at += length
        self._kept.append(piece)
        return piece

    def record(self) -> None:
        """Begin a new recording at this place."""
        self._kept = []

    def recorded(self) -> str:
        """Everything taken since `record`."""
        self._kept = ["".join(self._kept)]
        return self._kept[0]

    def starts(self, *words: str) -> str | None:
        """The first of these that the rest begins with; "" if none can any more; None if more text will decide."""
        for word in words:
            if self.text.startswith(word, self.at):
                return word
        rest = self.text[self.at : self.at + max(map(len, words))]
        return None if not self.ended and any(word.startswith(rest) for word in words) else ""

    def skip_space(self) -> Generator[None, None, str]:
        """Take white space; ends at another character or at the end of the reply."""
        taken = ""
        while True:
            space = SPACE.match(self.text, self.at)
            taken += self.take(space.end() - self.at) if space else ""
            if not self.empty or self.ended:
                return taken
            yield

    def expect(self, *words: str) -> Generator[None, None, str]:
        """`starts`, decided; what was found is not taken."""
        while (found := self.starts(*words)) is None:
            yield
        return found


class EventSink:
    """Events in the order they were settled. A gap is white space that disappears only if a call follows it."""

    def __init__(self) -> None:
        self._events: list[ParserEvent] = []
        self._whitespace = ""
        self._index = -1
        self.after_call = False  # no text since the last call

    def collect(self) -> list[ParserEvent]:
        """What has come since the last time."""
        events, self._events = self._events, []
        return events

    def hold_whitespace(self, whitespace: str) -> None:
        """White space beside a call: the format's own if the call turns out to be one."""
        self._whitespace += whitespace

    def text(self, text: str) -> None:
        """Text meant for the user."""
        if not text:
            return
        self._events.append(Text(self._whitespace + text))
        self._whitespace = ""
        self.after_call = False

    def open(self, name: str, custom: bool) -> None:
        """A call begins."""
        self._whitespace = ""
        self._index += 1
        self._events.append(CallOpened(self._index, name, custom))

    def arguments(self, text: str) -> None:
        """More of its arguments."""
        if text:
            self._events.append(CallArguments(self._index, text))

    def close(self, flags: Iterable[Flag], raw: str) -> None:
        """It is complete; `raw` goes along where there is something to say of it."""
        unique_flags = tuple(dict.fromkeys(flags))
        self._events.append(CallClosed(self._index, unique_flags, raw if unique_flags else ""))
        self.after_call = True

    def end(self) -> None:
        """The reply is over."""
        if not self.after_call:
            self.release_whitespace()

    def release_whitespace(self) -> None:
        """The gap was no gap: it comes out as text."""
        whitespace, self._whitespace = self._whitespace, ""
        self.text(whitespace)


class IncrementalParser:
    """A parser: runs a dialect's `read` as far as the text goes. The tools are those that a reply may call."""

    def __init__(
        self, read: Callable[[TextBuffer, EventSink, ToolSet], ParserCoroutine], tools: Sequence[Tool]
    ) -> None:
        self._buffer = TextBuffer()
        self._sink = EventSink()
        self._coroutine = read(self._buffer, self._sink, ToolSet(tools))

    def feed(self, text: str) -> list[ParserEvent]:
        """Events that the text so far settles."""
        self._buffer.add(text)
        next(self._coroutine)
        return self._sink.collect()

    def close(self) -> list[ParserEvent]:
        """The reply is over: whatever was held back comes out."""
        self._buffer.ended = True
        for _ in self._coroutine:
            raise AssertionError("a parser waits for text after the end")
        self._sink.end()
        return self._sink.collect()


def read_text(buffer: TextBuffer, sink: EventSink, openers: "Openers") -> Generator[None, None, str]:
    """Pass text on until one of `openers` stands next on the tape; "" at the end of the reply.

    White space alone, and one line break right before an opener, belong to the format if a call follows.
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


def read_name(buffer: TextBuffer, stop: str) -> Generator[None, None, str | None]:
    """Take a name and the `stop` behind it; None, and nothing taken, if no name of a tolerable length stands here."""
    while True:
        end = buffer.text.find(stop, buffer.at, buffer.at + MAX_NAME_LENGTH + len(stop))
        name = buffer.text[buffer.at : end if end >= 0 else len(buffer.text) - overlap(buffer.rest, stop)]
        if "\n" in name or "<" in name or len(name) > MAX_NAME_LENGTH:
            return None
        if end >= 0:
            buffer.take(end + len(stop) - buffer.at)
            return name.strip()
        if buffer.ended:
            return None
        yield


def read_line(buffer: TextBuffer) -> Generator[None, None, str]:
    """Take the rest of a line, without spaces around it; "", and nothing taken, if it is too long for a name."""
    while True:
        end = buffer.text.find("\n", buffer.at, buffer.at + MAX_NAME_LENGTH)
        if end >= 0:
            return buffer.take(end - buffer.at).strip()
        if buffer.ended or len(buffer.rest) >= MAX_NAME_LENGTH:
            return ""
        yield


class Openers:
    """Strings that end plain text."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self._pattern = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))

    def search(self, text: str, at: int) -> re.Match[str] | None:
        """The first of them."""
        return self._pattern.search(text, at)

    def overlap(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of one."""
        return max(overlap(text, word) for word in self._words)


def overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that begins `word` without being all of it."""
    start = max(0, len(text) - len(word) + 1)
    while (start := text.find(word[0], start)) >= 0:
        if word.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
