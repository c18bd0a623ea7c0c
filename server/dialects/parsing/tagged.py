"""Calls whose arguments are tagged one by one, as Qwen3-Coder and GLM write them, told as one JSON object.

A string comes out as it is written; any other value when it is complete, because only then is its type known.
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
    """What ends a value: a tag, but only if one of `before` follows it, or the end of the reply.

    So a value may hold the tag itself, as code that handles this very format does.
    """

    tag: str
    before: tuple[str, ...]


class TaggedCall:
    """Writes one call. Arguments are read from the tape one by one, then the call is finished."""

    def __init__(self, tape: TextBuffer, out: EventSink, offered: ToolSet, tool: Tool) -> None:
        self._tape = tape
        self._out = out
        self._offered = offered
        self._tool = tool
        self._types = Types(tool.parameters)
        self._names: set[str] = set()
        self._given: list[str] = []
        self._flags: list[Flag] = []
        out.open(tool.name, tool.custom)

    def flag(self, flag: Flag) -> None:
        """Something is to be said of this call."""
        self._flags.append(flag)

    @property
    def cut(self) -> bool:
        """The reply has ended inside an argument."""
        return "truncated" in self._flags

    def read_argument(self, name: str, endings: Sequence[Ending], trims: bool) -> Generator[None, None, str]:
        """Read one value, up to and with its closing tag, which is returned.

        With `trims`, one line break on either side belongs to the tags.
        """
        if name in self._names or (self._tool.custom and name != INPUT):
            self.flag("repaired")  # what stood first has come out already; the rest is in `raw`
            return (yield from self._pass_value(endings, trims, lambda text: None))
        self._names.add(name)
        if self._tool.custom:
            return (yield from self._pass_value(endings, trims, self._give))
        key = f"{', ' if self._given else '{'}{quoted_json(name)}: "
        if self._types.is_text(name):
            self._give(f'{key}"')
            ended_by = yield from self._pass_value(endings, trims, lambda text: self._give(quoted_json(text)[1:-1]))
            self._give("" if self.cut else '"')
            return ended_by
        pieces: list[str] = []
        ended_by = yield from self._pass_value(endings, trims, pieces.append)
        if not self.cut:
            value, repaired = as_json("".join(pieces), self._types.of(name))
            self._give(key + value)
            if repaired:
                self.flag("repaired")
        return ended_by

    def finish(self) -> None:
        """The call is complete, or as complete as it will be."""
        if not self._tool.custom and not self.cut:
            self._give("}" if self._given else "{}")
        flags = self._flags
        if not self.cut:
            flags = [*flags, *self._offered.judge(self._tool, "".join(self._given))]
        self._out.close(flags, self._tape.recorded())

    def _give(self, text: str) -> None:
        self._given.append(text)
        self._out.arguments(text)

    def _pass_value(
        self, endings: Sequence[Ending], trims: bool, give: Callable[[str], None]
    ) -> Generator[None, None, str]:
        tape = self._tape
        if trims:
            while tape.empty and not tape.ended:
                yield
            tape.take(len(tape.starts("\n") or ""))
        while True:
            start, ending = _find_end(tape, endings)
            if ending is None and tape.ended:
                give(tape.take(len(tape.rest)))
                self.flag("truncated")
                return ""
            line_break = trims and start > tape.at and tape.text[start - 1] == "\n"
            give(tape.take(start - line_break - tape.at))
            if ending is not None:
                tape.take(line_break + len(ending.tag))
                return ending.tag
            yield


def _find_end(tape: TextBuffer, endings: Sequence[Ending]) -> tuple[int, Ending | None]:
    """Where the value ends and by what; with None, how far it certainly goes on."""
    at = tape.at
    while True:
        found = [(start, ending) for ending in endings if (start := tape.text.find(ending.tag, at)) >= 0]
        if not found:
            return len(tape.text) - max(overlap(tape.rest, ending.tag) for ending in endings), None
        start, ending = min(found, key=lambda hit: hit[0])
        follows = _is_followed(tape, start + len(ending.tag), ending)
        if follows is None:
            return start, None
        if follows:
            return start, ending
        at = start + 1


def _is_followed(tape: TextBuffer, at: int, ending: Ending) -> bool | None:
    space = SPACE.match(tape.text, at)
    at = space.end() if space else at
    if tape.text.startswith(ending.before, at):
        return True
    rest = tape.text[at:]
    if not any(word.startswith(rest) for word in ending.before):
        return False
    return True if tape.ended and not rest else False if tape.ended else None
