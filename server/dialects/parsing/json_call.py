"""Parser of a call written as a JSON object: `{"name": "get_weather", "arguments": {"city": "Paris"}}`."""

import re
from collections.abc import Generator

from server.dialects.parsing.json_arguments import JsonArguments, decoded
from server.dialects.parsing.json_stream import JsonText
from server.dialects.parsing.text_buffer import EventSink, Openers, ParserCoroutine, TextBuffer
from server.dialects.schema.validate import ToolSet
from server.events import Flag

SHORT = 256  # length limit of keys and names, which bounds the text held back
STRING = re.compile(rf'"(?:[^"\\\n]|\\.){{0,{SHORT}}}"' + "|" + rf"'[^'\\\n]{{0,{SHORT}}}'")
STRING_BEGUN = re.compile(rf'"(?:[^"\\\n]|\\.){{0,{SHORT}}}\\?' + "|" + rf"'[^'\\\n]{{0,{SHORT}}}")
RAW_OPEN, RAW_CLOSE = "<input>\n", "\n</input>"


class JsonCall:
    """Parses one such object from its opening brace on, and the raw input after it if there is one.

    `end` is the markup that follows the object; `stops` are strings that end a call with invalid arguments.
    The buffer must be recording from the beginning of the call: this text is emitted if it is no call.
    """

    def __init__(
        self, buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, end: str, stops: tuple[str, ...] = ()
    ) -> None:
        self._buffer = buffer
        self._sink = sink
        self._tool_set = tool_set
        self._end = end
        self._arguments = JsonArguments(buffer, sink, tool_set, end, stops)
        self._is_text = False
        self._has_others = False  # unknown members

    def flag(self, flag: Flag) -> None:
        """Flag this call."""
        self._arguments.flag(flag)

    def read(self) -> Generator[None, None, bool]:
        """Return True if it was a call; otherwise what was taken is emitted as text."""
        arguments = self._arguments
        self._buffer.take(1)
        while True:
            yield from self._buffer.skip_space()
            found = yield from self._buffer.expect('"', "'", "}", ",", self._end)
            if found == ",":
                self._buffer.take(1)
            elif found not in ('"', "'") or not (yield from self._read_member()):
                break
        if self._is_text:
            return False
        begun = arguments.is_open or arguments.is_read
        # Without arguments they are `{}`; but another member may be the arguments, misspelt.
        empty = found in ("}", self._end) and not self._has_others
        if arguments.tool is None or not (begun or empty):
            self._sink.text(self._buffer.recorded())
            return False
        if found == "}":
            self._buffer.take(1)
        elif arguments.is_read or not arguments.is_open:
            arguments.flag("repaired")
        yield from self._read_raw_input()
        arguments.finish()
        return True

    def _read_member(self) -> Generator[None, None, bool]:
        """Parse one `"key": value`. False if it is invalid, or if the request has no such tool."""
        arguments = self._arguments
        key = yield from self._short_string()
        yield from self._buffer.skip_space()
        if key is None or not (yield from self._buffer.expect(":")):
            return False
        self._buffer.take(1)
        yield from self._buffer.skip_space()
        if key == "name" and arguments.tool is None:
            return (yield from self._read_name())
        if key in ("arguments", "parameters") and not arguments.is_read:
            if key == "parameters":
                arguments.flag("repaired")
            return (yield from arguments.read())
        self._has_others = True
        arguments.flag("repaired")  # its value is only in `raw`
        return (yield from arguments.skip_value())

    def _short_string(self) -> Generator[None, None, str | None]:
        while True:
            string = STRING.match(self._buffer.text, self._buffer.at)
            if string:
                text = self._buffer.take(len(string.group()))
                return decoded(text) if text[0] == '"' else text[1:-1]
            if self._buffer.ended or not STRING_BEGUN.fullmatch(self._buffer.rest):
                return None
            yield

    def _read_name(self) -> Generator[None, None, bool]:
        name = yield from self._short_string()
        self._arguments.tool = self._tool_set.find(name) if name is not None else None
        if name is not None and self._arguments.tool is None:
            yield from self._pass_through()
        return self._arguments.tool is not None

    def _pass_through(self) -> ParserCoroutine:
        """Emit the whole call as text: the request has no tool of this name."""
        self._is_text = True
        self._sink.text(self._buffer.recorded())
        value = JsonText(self._end, rest_of_object=True)
        while True:
            _, end = value.feed(self._buffer.text, self._buffer.at, self._buffer.ended)
            self._sink.text(self._buffer.take(end - self._buffer.at))
            if value.done or value.broken or self._buffer.ended:
                break
            yield
        if value.done:
            self._sink.text((yield from self._buffer.skip_space()))
            self._sink.text(self._buffer.take(len((yield from self._buffer.expect(self._end)))))

    def _read_raw_input(self) -> ParserCoroutine:
        """Parse a custom tool's raw text, which may follow an object without arguments."""
        arguments = self._arguments
        if arguments.tool is None or not arguments.tool.custom or arguments.is_open:
            return
        yield from self._buffer.skip_space()
        if (yield from self._buffer.expect(RAW_OPEN)):
            self._buffer.take(len(RAW_OPEN))
            close = yield from arguments.read_raw(Openers(RAW_CLOSE))
            self._buffer.take(len(close))
            if not close:
                arguments.flag("truncated")
