"""Convert calls with tagged arguments, as of Qwen3-Coder and GLM, to one JSON object.

A string is emitted while it is being written; any other value when it is complete, as its type is not known before.
"""

from collections.abc import Callable

from server.dialects.base import Tool
from server.dialects.parsing.coerce import Types, as_json, quoted_json
from server.dialects.parsing.tags import Tag
from server.dialects.parsing.text_buffer import EventSink, ParserCoroutine, TextBuffer
from server.dialects.parsing.value_ends import ScanBudget, TagFormat, ValueContext, ValueReader
from server.dialects.parsing.value_text import ValueText
from server.dialects.schema.validate import ToolSet
from server.events import Flag

INPUT = "input"  # the only argument of a custom tool


def declared_names(tool: Tool) -> frozenset[str]:
    """Return the names of a tool's arguments."""
    return frozenset({INPUT}) if tool.custom else Types(tool.parameters).names


class TaggedCall:
    """Emits one call: `open`, then `read_argument` for each argument in the buffer, then `finish`."""

    def __init__(self, buffer: TextBuffer, sink: EventSink, tool_set: ToolSet, tool: Tool, format: TagFormat) -> None:
        self._buffer = buffer
        self._format = format
        self._sink = sink
        self._tool_set = tool_set
        self._tool = tool
        self._types = Types(tool.parameters)
        self.declared = declared_names(tool)
        self._names: set[str] = set()
        self._emitted: list[str] = []
        self._flags: list[Flag] = []
        self._budget = ScanBudget()

    def open(self) -> None:
        """Open the call: what is read is a call, whatever follows."""
        self._sink.open(self._tool.name, self._tool.custom)

    def flag(self, flag: Flag) -> None:
        """Flag this call."""
        self._flags.append(flag)

    @property
    def cut(self) -> bool:
        """Whether the reply ended inside an argument."""
        return "truncated" in self._flags

    def is_new(self, name: str | None) -> bool:
        """Whether this is the name of a declared argument that was not given yet."""
        return name in self.declared and name not in self._names

    def read_argument(self, opening: Tag) -> ParserCoroutine:
        """Take the opening tag of an argument, its value and its closing tag.

        Any other end of the value is left in the buffer, and the call is flagged.
        """
        name = opening.name or ""
        taken = self._buffer.take_to(opening.end)
        indented = "\n " in taken or "\n\t" in taken
        if not opening.complete and not self._format.by_line:
            yield from self._buffer.skip_space()
        if name in self._names or (self._tool.custom and name != INPUT):
            self.flag("repaired")  # the first value was emitted already; the rest is in `raw`
            yield from self._pass_value(opening, indented, lambda text: None)
            return
        self._names.add(name)
        if self._tool.custom:
            yield from self._pass_value(opening, indented, self._emit)
            return
        key = f"{', ' if self._emitted else '{'}{quoted_json(name)}: "
        if self._types.is_text(name):
            self._emit(f'{key}"')
            yield from self._pass_value(opening, indented, lambda text: self._emit(quoted_json(text)[1:-1]))
            self._emit("" if self.cut else '"')
            return
        pieces: list[str] = []
        yield from self._pass_value(opening, indented, pieces.append)
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

    def _arguments_of(self, name: str) -> frozenset[str] | None:
        tool = self._tool_set.find(name)
        return None if tool is None else declared_names(tool)

    def _pass_value(self, opening: Tag, indented: bool, emit: Callable[[str], None]) -> ParserCoroutine:
        name = opening.name or ""
        is_json = not self._tool.custom and self._types.is_json(name)
        required = frozenset() if self._tool.custom else self._types.required
        context = ValueContext(
            name, opening, self.declared, required, self._names | {name}, is_json, self._arguments_of, self._budget
        )
        text = ValueText(self._buffer, self._format.by_line, is_json, emit, indented)
        outcome = yield from ValueReader(text, self._format, context).read()
        if outcome != "closed":
            self.flag(outcome)
