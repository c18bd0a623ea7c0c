"""The arguments of one call, written as JSON; or a custom tool's free text, however it is wrapped."""

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
    """Reads them from the tape, then closes the call.

    `end` is the markup that follows the call's JSON; `stops` are strings that end arguments which turn out broken.
    Once `tool` is set, what is certain comes out at once; before, it is kept for `finish`.
    The tape must be recording from where the call's own text begins.
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
        self._early: str | None = None  # whole arguments that could not come out yet
        self._flags: list[Flag] = []
        self.tool: Tool | None = None
        self.is_read = False
        self.is_open = False  # the call has come out: nothing can be taken back

    def flag(self, flag: Flag) -> None:
        """Something is to be said of this call."""
        self._flags.append(flag)

    def read(self) -> Generator[None, None, bool]:
        """Read the value that stands next. False if it is none that can be arguments, or is cut off or broken."""
        found = yield from self._buffer.expect("{", '"', "null")
        if self.tool is not None and self.tool.custom:
            yield from self._read_input(found)
        elif found == "{" and self.tool is not None:
            yield from self._stream_object()
        elif found:
            yield from self._read_early(found)
        return self.is_read

    def skip_value(self) -> Generator[None, None, bool]:
        """Read a value that is none of the call's; False if it is no value at all."""
        return (yield from self._collect()) is not None

    def finish(self) -> None:
        """The call is over: close it. `tool` must be set."""
        assert self.tool is not None
        if not self.is_open:
            self._open()
            self._emit(self._early if self._early is not None else "" if self.tool.custom else "{}")
        flags = self._flags
        if "truncated" not in flags:
            flags = [*flags, *self._tool_set.validate(self.tool, "".join(self._emitted))]
        self._sink.close(flags, self._buffer.recorded())

    def read_raw(self, close: Openers) -> Generator[None, None, str]:
        """A custom tool's text as it stands, up to one of `close`, which is not taken; "" if the reply ends first."""
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
        """Pass on an object as it is written."""
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
        """The arguments are no JSON from here on: the model's text, but for the brace that closes the call."""
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
        """A whole value, put right; None if it is none. It may be long, and nothing of it comes out before its end."""
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
        """Free text: the only member `input`, or the value itself if that is a string."""
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
        if text is not None and text != "{}":  # behind `{}` the text itself may follow
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
    """What a JSON string says. Half a surrogate pair is no character: it is replaced."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:  # an escape that JSON does not have
        return text[1:-1]
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _object_in(text: str) -> str | None:
    """The object inside a string of JSON inside a string of JSON; None if there is none."""
    for _ in range(3):
        text = decoded(text)
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if not isinstance(value, str):
            return text if isinstance(value, dict) else None
    return None
