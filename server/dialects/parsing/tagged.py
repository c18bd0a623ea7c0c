"""Convert calls with tagged arguments, as of Qwen3-Coder and GLM, to one JSON object.

A string is emitted while it is being written; any other value when it is complete, as its type is not known before.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from server.dialects.base import Tool
from server.dialects.parsing.coerce import Types, as_json, quoted_json
from server.dialects.parsing.text_buffer import SPACE, EventSink, TextBuffer, overlap
from server.dialects.schema.validate import ToolSet
from server.events import Flag

INPUT = "input"  # the only argument of a custom tool


@dataclass(frozen=True, slots=True)
class Ending:
    """End of a value: a tag, but only if one of `before` or the end of the reply follows it.

    So a value may contain the tag itself, as code that handles this format does.
    """

    tag: str
    before: tuple[str, ...]


class TaggedCall:
    """Emits one call: `read_argument` for each argument in the buffer, then `finish`."""

    def __init__(self, buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, tool: Tool) -> None:
        self._buffer = buffer
        self._sink = sink
        self._tool_set = tool_set
        self._tool = tool
        self._types = Types(tool.parameters)
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

    def read_argument(self, name: str, endings: Sequence[Ending], trims: bool) -> Generator[None, None, str]:
        """Read one value and its closing tag, which is returned.

        With `trims`, one line break on either side is part of the tags.
        """
        if name in self._names or (self._tool.custom and name != INPUT):
            self.flag("repaired")  # the first value was emitted already; the rest is in `raw`
            return (yield from self._pass_value(endings, trims, lambda text: None))
        self._names.add(name)
        if self._tool.custom:
            return (yield from self._pass_value(endings, trims, self._emit))
        key = f"{', ' if self._emitted else '{'}{quoted_json(name)}: "
        if self._types.is_text(name):
            self._emit(f'{key}"')
            ended_by = yield from self._pass_value(endings, trims, lambda text: self._emit(quoted_json(text)[1:-1]))
            self._emit("" if self.cut else '"')
            return ended_by
        pieces: list[str] = []
        ended_by = yield from self._pass_value(endings, trims, pieces.append)
        if not self.cut:
            value, repaired = as_json("".join(pieces), self._types.of(name))
            self._emit(key + value)
            if repaired:
                self.flag("repaired")
        return ended_by

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
        self, endings: Sequence[Ending], trims: bool, emit: Callable[[str], None]
    ) -> Generator[None, None, str]:
        buffer = self._buffer
        if trims:
            while buffer.empty and not buffer.ended:
                yield
            buffer.take(len(buffer.starts("\n") or ""))
        while True:
            start, ending = _find_end(buffer, endings)
            if ending is None and buffer.ended:
                emit(buffer.take(len(buffer.rest)))
                self.flag("truncated")
                return ""
            line_break = trims and start > buffer.at and buffer.text[start - 1] == "\n"
            emit(buffer.take(start - line_break - buffer.at))
            if ending is not None:
                buffer.take(line_break + len(ending.tag))
                return ending.tag
            yield


def _find_end(buffer: TextBuffer, endings: Sequence[Ending]) -> tuple[int, Ending | None]:
    """Return the index and kind of the end of the value; with None, the index up to which it certainly extends."""
    at = buffer.at
    while True:
        found = [(start, ending) for ending in endings if (start := buffer.text.find(ending.tag, at)) >= 0]
        if not found:
            return len(buffer.text) - max(overlap(buffer.rest, ending.tag) for ending in endings), None
        start, ending = min(found, key=lambda hit: hit[0])
        follows = _is_followed(buffer, start + len(ending.tag), ending)
        if follows is None:
            return start, None
        if follows:
            return start, ending
        at = start + 1


def _is_followed(buffer: TextBuffer, at: int, ending: Ending) -> bool | None:
    space = SPACE.match(buffer.text, at)
    at = space.end() if space else at
    if buffer.text.startswith(ending.before, at):
        return True
    rest = buffer.text[at:]
    if not any(word.startswith(rest) for word in ending.before):
        return False
    return True if buffer.ended and not rest else False if buffer.ended else None
