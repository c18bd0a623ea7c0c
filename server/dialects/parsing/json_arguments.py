"""Parser of the JSON arguments of one call, or of a custom tool's free text inside or outside JSON."""

import json
import re
from collections.abc import Generator

from server.dialects.base import Tool
from server.dialects.parsing.json_stream import JsonText
from server.dialects.parsing.text_buffer import EventSink, Openers, ParserCoroutine, TextBuffer
from server.dialects.schema.validate import ToolSet
from server.events import Flag

INPUT = re.compile(r'\{\s*"input"\s*:\s*(?=")')
INPUT_LETTERS = '{"input":"'


class JsonArguments:
    """Parses arguments from the buffer, then closes the call.

    `end` is the markup that follows the call's JSON; `stops` are strings that end invalid arguments.
    Once `tool` is set, arguments are emitted at once; before, they are kept for `finish`.
    The buffer must be recording from the beginning of the call.
    """

    def __init__(
        self, buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, end: str, stops: tuple[str, ...] = ()
    ) -> None:
        self._buffer = buffer
        self._sink = sink
        self._tool_set = tool_set
        self._end = end
        self._stops = Openers(end, *stops)
        self._emitted: list[str] = []
        self._early: str | None = None  # whole arguments that could not be emitted yet
        self._flags: list[Flag] = []
        self.tool: Tool | None = None
        self.is_read = False
        self.is_open = False  # CallOpened was emitted

    def flag(self, flag: Flag) -> None:
        """Flag this call."""
        self._flags.append(flag)

    def read(self) -> Generator[None, None, bool]:
        """Parse the next value. False if it cannot be arguments, is cut off or invalid."""
        found = yield from self._buffer.expect("{", '"', "null")
        if self.tool is not None and self.tool.custom:
            yield from self._read_input(found)
        elif found == "{" and self.tool is not None:
            yield from self._stream_object()
        elif found:
            yield from self._read_early(found)
        return self.is_read

    def skip_value(self) -> Generator[None, None, bool]:
        """Parse a value that does not belong to the arguments; False if it is no JSON value."""
        return (yield from self._collect()) is not None

    def finish(self) -> None:
        """Close the call. `tool` must be set."""
        assert self.tool is not None
        if not self.is_open:
            self._open()
            self._emit(self._early if self._early is not None else "" if self.tool.custom else "{}")
        flags = self._flags
        if "truncated" not in flags:
            flags = [*flags, *self._tool_set.validate(self.tool, "".join(self._emitted))]
        self._sink.close(flags, self._buffer.recorded())

    def read_raw(self, close: Openers) -> Generator[None, None, str]:
        """Emit a custom tool's raw text up to one of `close`, which is not taken; "" if the reply ends first."""
        self._open()
        while not (found := close.search(self._buffer.text, self._buffer.at)):
            self._emit(self._buffer.take(len(self._buffer.rest) - close.overlap(self._buffer.rest)))
            if self._buffer.ended:
                self._emit(self._buffer.take(len(self._buffer.rest)))
                return ""
            yield
        self._emit(self._buffer.take(found.start() - self._buffer.at))
        self.is_read = True
        return found.group()

    def _stream_object(self) -> ParserCoroutine:
        """Emit an object while it is being written."""
        self._open()
        value = JsonText(self._end)
        yield from self._run(value)
        if value.broken:
            yield from self._emit_rest()

    def _run(self, value: JsonText) -> ParserCoroutine:
        while True:
            text, end = value.feed(self._buffer.text, self._buffer.at, self._buffer.ended)
            self._buffer.take(end - self._buffer.at)
            self._emit(text)
            if value.done or value.broken or self._buffer.ended:
                break
            yield
        self._record_outcome(value)
        if not (value.done or value.broken):
            self._emit(self._buffer.take(len(self._buffer.rest)))

    def _record_outcome(self, value: JsonText) -> None:
        if value.repaired:
            self.flag("repaired")
        self.is_read = value.done
        if value.broken:
            self.flag("invalid")
        elif not value.done:
            self.flag("truncated")

    def _emit_rest(self) -> ParserCoroutine:
        """Emit the rest of invalid arguments as it is, without the brace that closes the call."""
        while True:
            stop = self._stops.search(self._buffer.text, self._buffer.at)
            end = stop.start() if stop else len(self._buffer.text) - self._stops.overlap(self._buffer.rest)
            held = self._buffer.text[self._buffer.at : end]
            self._emit(self._buffer.take(len(held.rstrip("} \t\r\n"))))
            if stop or self._buffer.ended:
                rest = self._buffer.take((end if stop else len(self._buffer.text)) - self._buffer.at)
                self._emit(rest.rstrip().removesuffix("}"))
                return
            yield

    def _read_early(self, found: str) -> ParserCoroutine:
        text = yield from self._collect()
        if text is None:
            return
        if found != "{":
            self.flag("repaired")
            text = "{}" if found == "null" else _object_in(text)
        self._early = text
        self.is_read = text is not None

    def _collect(self) -> Generator[None, None, str | None]:
        """Return a whole value, repaired; None if it is invalid. Nothing is emitted before its end."""
        value = JsonText(self._end, within="{")
        pieces: list[str] = []
        while True:
            text, end = value.feed(self._buffer.text, self._buffer.at, self._buffer.ended)
            self._buffer.take(end - self._buffer.at)
            pieces.append(text)
            if value.done:
                if value.repaired:
                    self.flag("repaired")
                return "".join(pieces)
            if value.broken or self._buffer.ended:
                return None
            yield

    def _read_input(self, found: str) -> ParserCoroutine:
        """Parse free text: the only member `input`, or the value itself if it is a string."""
        if found == "{":
            while not (head := INPUT.match(self._buffer.text, self._buffer.at)):
                if self._buffer.ended or not INPUT_LETTERS.startswith("".join(self._buffer.rest.split())):
                    return (yield from self._read_odd_input())
                yield
            self._buffer.take(len(head.group()))
            yield from self._stream_string()
            if self.is_read:
                yield from self._buffer.skip_space()
                self._buffer.take(len((yield from self._buffer.expect("}"))))
            return None
        return (yield from self._stream_string() if found == '"' else self._read_odd_input())

    def _read_odd_input(self) -> ParserCoroutine:
        text = yield from self._collect()
        self.is_read = text is not None
        if text is not None and text != "{}":  # raw text may follow `{}`
            self._early = text
            self.flag("repaired")

    def _stream_string(self) -> ParserCoroutine:
        self._open()
        value = JsonText(self._end, within="{")
        begun = False
        while True:
            text, end = value.feed(self._buffer.text, self._buffer.at, self._buffer.ended)
            self._buffer.take(end - self._buffer.at)
            inner = text if begun else text[1:]
            begun = begun or bool(text)
            self._emit(decoded(f'"{inner[:-1] if value.done else inner}"'))
            if value.done or value.broken or self._buffer.ended:
                break
            yield
        self._record_outcome(value)

    def _open(self) -> None:
        assert self.tool is not None
        self.is_open = True
        self._sink.open(self.tool.name, self.tool.custom)

    def _emit(self, text: str) -> None:
        self._emitted.append(text)
        self._sink.arguments(text)


def decoded(text: str) -> str:
    """Decode a JSON string. A lone surrogate is replaced."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:  # an escape that JSON does not have
        return text[1:-1]
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _object_in(text: str) -> str | None:
    """Return the JSON object inside nested JSON strings; None if there is none."""
    for _ in range(3):
        text = decoded(text)
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if not isinstance(value, str):
            return text if isinstance(value, dict) else None
    return None
