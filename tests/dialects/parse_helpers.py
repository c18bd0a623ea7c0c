"""Helpers of the dialect tests: parse text in pieces, fold events, list texts and calls."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from server.dialects.base import Dialect, Tool
from server.events import CallArguments, CallClosed, CallOpened, ParserEvent, Text


@dataclass(frozen=True, slots=True)
class Call:
    """One call as a client gets it."""

    name: str
    arguments: str
    flags: tuple[str, ...] = ()
    raw: str = ""

    @property
    def value(self) -> Any:
        """The arguments' JSON value."""
        return json.loads(self.arguments)


def read(dialect: Dialect, tools: Sequence[Tool], pieces: Iterable[str]) -> list[ParserEvent]:
    """Parse a reply that arrives in these pieces; adjacent events are joined."""
    parser = dialect.parser(tools)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return folded(events + parser.close())


def folded(events: Iterable[ParserEvent]) -> list[ParserEvent]:
    """Join adjacent texts and adjacent pieces of arguments."""
    out: list[ParserEvent] = []
    for new in events:
        old = out[-1] if out else None
        if isinstance(old, Text) and isinstance(new, Text):
            out[-1] = Text(old.text + new.text)
        elif isinstance(old, CallArguments) and isinstance(new, CallArguments):
            assert old.index == new.index, "calls are interleaved"
            out[-1] = CallArguments(old.index, old.text + new.text)
        else:
            out.append(new)
    return out


def texts_and_calls(events: Iterable[ParserEvent]) -> list[str | Call]:
    """Return texts and calls in order; fail if the sequence of events is invalid."""
    out: list[str | Call] = []
    name, arguments, index = "", "", -1
    is_open = False
    for event in events:
        match event:
            case Text(text):
                assert text and not is_open, event
                out.append(text)
            case CallOpened(i, name, _):
                assert not is_open and i == index + 1, event
                index, arguments, is_open = i, "", True
            case CallArguments(i, text):
                assert is_open and i == index and text, event
                arguments += text
            case CallClosed(i, flags, raw):
                assert is_open and i == index and bool(raw) == bool(flags), event
                out.append(Call(name, arguments, flags, raw))
                is_open = False
    assert not is_open, "a call was never closed"
    return out


def parse_in_any_pieces(dialect: Dialect, tools: Sequence[Tool], text: str) -> list[str | Call]:
    """Return texts and calls of a whole text, after checking that any pieces give the same events."""
    whole = read(dialect, tools, [text])
    for size in (1, 2, 3, 7):
        assert read(dialect, tools, cut_evenly(text, size)) == whole, f"pieces of {size}"
    return texts_and_calls(whole)


def cut_evenly(text: str, size: int) -> list[str]:
    """Return pieces of one size."""
    return [text[i : i + size] for i in range(0, len(text), size)]


def cut_somehow(text: str, chance: random.Random) -> list[str]:
    """Return pieces of random sizes, some empty."""
    longest = chance.choice((1, 3, 8, 30))
    pieces, at = [], 0
    while at < len(text):
        size = chance.randint(0 if longest > 1 else 1, longest)
        pieces.append(text[at : at + size])
        at += size
    return pieces
