"""One call written as a JSON object: `{"name": "get_weather", "arguments": {"city": "Paris"}}`."""

import json
import re
from collections.abc import Generator
from typing import Literal

from server.dialects.json_text import JsonText
from server.dialects.protocol import Tool
from server.dialects.tape import Openers, Outbox, Steps, Tape
from server.dialects.validity import Offered
from server.events import Flag

ARGUMENTS = ("arguments", "parameters")
SHORT = 256  # keys and names are no longer; so nothing is held back for long to find out
STRING = re.compile(rf'"(?:[^"\\\n]|\\.){{0,{SHORT}}}"' + "|" + rf"'[^'\\\n]{{0,{SHORT}}}'")
STRING_BEGUN = re.compile(rf'"(?:[^"\\\n]|\\.){{0,{SHORT}}}\\?' + "|" + rf"'[^'\\\n]{{0,{SHORT}}}")
INPUT = re.compile(r'\{\s*"input"\s*:\s*(?=")')
INPUT_LETTERS = '{"input":"'
RAW_OPEN, RAW_CLOSE = "<input>\n", "\n</input>"


class JsonCall:
    """Reads one such object from the tape, from its opening brace on, and the raw input behind it if there is one.

    `end` is the markup that follows the object; `stops` are strings that end a call whose arguments are broken.
    The tape must be recording from where the call's own text begins: that is what comes back where it is no call.
    """

    def __init__(self, tape: Tape, out: Outbox, offered: Offered, end: str, stops: tuple[str, ...] = ()) -> None:
        self._tape = tape
        self._out = out
        self._offered = offered
        self._end = end
        self._stops = Openers(end, *stops)
        self._tool: Tool | None = None
        self._early: str | None = None  # arguments that came before the name
        self._state: Literal["before", "inside", "after", "text"] = "before"  # where we are in the call's arguments
        self._given: list[str] = []
        self._flags: list[Flag] = []

    def read(self) -> Generator[None, None, bool]:
        """True if it was a call; otherwise all of it has come out as text."""
        self._tape.take(1)
        while True:
            yield from self._tape.skip_space()
            found = yield from self._tape.expect('"', "'", "}", ",", self._end)
            if found == ",":
                self._tape.take(1)
            elif found not in ('"', "'") or not (yield from self._read_member()):
                break
        if self._state == "text":
            return False
        if found == "}":
            self._tape.take(1)
        elif found == self._end or self._state == "after":
            self._flags.append("repaired")
        elif self._state == "before":
            return self._give_back()
        return (yield from self._finish())

    def _read_member(self) -> Generator[None, None, bool]:
        """One `"key": value`. False if it cannot be read, or if the call is not one of ours."""
        key = yield from self._short_string()
        yield from self._tape.skip_space()
        if key is None or not (yield from self._tape.expect(":")):
            return False
        self._tape.take(1)
        yield from self._tape.skip_space()
        if key == "name" and self._tool is None:
            return (yield from self._read_name())
        if key in ARGUMENTS and self._state == "before" and self._early is None:
            if key != "arguments":
                self._flags.append("repaired")
            return (yield from self._read_arguments())
        if self._state == "after":
            self._flags.append("repaired")  # what it says is in `raw` alone
        return (yield from self._collect()) is not None

    def _short_string(self) -> Generator[None, None, str | None]:
        while True:
            string = STRING.match(self._tape.text, self._tape.at)
            if string:
                text = self._tape.take(len(string.group()))
                return str(_decoded(text)) if text[0] == '"' else text[1:-1]
            if self._tape.ended or not STRING_BEGUN.fullmatch(self._tape.rest):
                return None
            yield

    def _read_name(self) -> Generator[None, None, bool]:
        name = yield from self._short_string()
        self._tool = self._offered.find(name) if name is not None else None
        if name is not None and self._tool is None:
            yield from self._pass_through()
            return False
        return self._tool is not None

    def _read_arguments(self) -> Generator[None, None, bool]:
        found = yield from self._tape.expect("{", '"', "null")
        if self._tool is not None and self._tool.custom:
            return (yield from self._read_input(found))
        if found == "{" and self._tool is not None:
            self._open()
            yield from self._stream()
            return self._state == "after"
        if not found:
            return False
        text = yield from self._collect()
        if text is None:
            return False
        if found == "{":
            self._early = text
        else:
            self._flags.append("repaired")
            inner = "{}" if found == "null" else _object_in(text)
            if inner is None:
                return False
            self._early = inner
        return True

    def _stream(self) -> Steps:
        """Pass on an object as it is written."""
        value = JsonText(self._end)
        while not (value.done or value.broken):
            text, end = value.feed(self._tape.text, self._tape.at, self._tape.ended)
            self._tape.take(end - self._tape.at)
            self._give(text)
            if self._tape.ended:
                break
            if not (value.done or value.broken):
                yield
        if value.repaired:
            self._flags.append("repaired")
        if value.done:
            self._state = "after"
        elif value.broken:
            yield from self._give_rest()
        else:
            self._give(self._tape.take(len(self._tape.rest)))
            self._flags.append("truncated")

    def _give_rest(self) -> Steps:
        """The arguments are no JSON from here on: the model's text, but for the brace that closes the call."""
        self._flags.append("invalid")
        while True:
            stop = self._stops.search(self._tape.text, self._tape.at)
            end = stop.start() if stop else len(self._tape.text) - self._stops.overlap(self._tape.rest)
            held = self._tape.text[self._tape.at : end]
            self._give(self._tape.take(len(held.rstrip("} \t\r\n"))))
            if stop or self._tape.ended:
                rest = self._tape.take((end if stop else len(self._tape.text)) - self._tape.at)
                self._give(rest.rstrip().removesuffix("}"))
                return
            yield

    def _collect(self) -> Generator[None, None, str | None]:
        """A whole value, put right; None if it is none. It may be long, and nothing of it comes out before its end."""
        value = JsonText(self._end, within="{")
        pieces: list[str] = []
        while True:
            text, end = value.feed(self._tape.text, self._tape.at, self._tape.ended)
            self._tape.take(end - self._tape.at)
            pieces.append(text)
            if value.repaired and "repaired" not in self._flags:
                self._flags.append("repaired")
            if value.done:
                return "".join(pieces)
            if value.broken or self._tape.ended:
                return None
            yield

    def _read_input(self, found: str) -> Generator[None, None, bool]:
        """A custom tool's free text: the only member `input`, or the value itself if that is a string."""
        if found == "{":
            while not (head := INPUT.match(self._tape.text, self._tape.at)):
                if self._tape.ended or not INPUT_LETTERS.startswith("".join(self._tape.rest.split())):
                    return (yield from self._read_odd_input())
                yield
            self._tape.take(len(head.group()))
            yield from self._stream_string()
            if self._state == "after":
                yield from self._tape.skip_space()
                if (yield from self._tape.expect("}")):
                    self._tape.take(1)
            return self._state == "after"
        if found == '"':
            yield from self._stream_string()
            return self._state == "after"
        return (yield from self._read_odd_input())

    def _read_odd_input(self) -> Generator[None, None, bool]:
        text = yield from self._collect()
        if text is not None and text != "{}":
            self._early = text
            self._flags.append("repaired")
        return text is not None

    def _stream_string(self) -> Steps:
        self._open()
        value = JsonText(self._end, within="{")
        begun = False
        while True:
            text, end = value.feed(self._tape.text, self._tape.at, self._tape.ended)
            self._tape.take(end - self._tape.at)
            inner = text if begun else text[1:]
            begun = begun or bool(text)
            self._give(str(_decoded(f'"{inner[:-1] if value.done else inner}"')))
            if value.done or value.broken or self._tape.ended:
                break
            yield
        if value.repaired:
            self._flags.append("repaired")
        if value.done:
            self._state = "after"
        else:
            self._give(self._tape.take(len(self._tape.rest) if self._tape.ended else 0))
            self._flags.append("truncated" if self._tape.ended else "invalid")

    def _pass_through(self) -> Steps:
        """No tool of this name was offered: the whole call is text."""
        self._state = "text"
        self._out.text(self._tape.recorded())
        value = JsonText(self._end, rest_of_object=True)
        while not (value.done or value.broken):
            _, end = value.feed(self._tape.text, self._tape.at, self._tape.ended)
            self._out.text(self._tape.take(end - self._tape.at))
            if self._tape.ended:
                break
            if not (value.done or value.broken):
                yield
        if value.done:
            self._out.text((yield from self._tape.skip_space()))
            self._out.text(self._tape.take(len((yield from self._tape.expect(self._end)))))

    def _give_back(self) -> bool:
        self._out.text(self._tape.recorded())
        return False

    def _finish(self) -> Generator[None, None, bool]:
        if self._tool is None:
            return self._give_back()
        if self._state == "before":
            self._open()
            if self._tool.custom and self._early is None:
                yield from self._read_raw_input()
            else:
                self._give(self._early if self._early is not None else "{}")
        flags = [*self._flags, *self._offered.judge(self._tool, "".join(self._given))]
        if "truncated" in flags:
            flags = [flag for flag in flags if flag != "invalid"]
        self._out.close(flags, self._tape.recorded())
        return True

    def _read_raw_input(self) -> Steps:
        yield from self._tape.skip_space()
        if not (yield from self._tape.expect(RAW_OPEN)):
            return
        self._tape.take(len(RAW_OPEN))
        close = Openers(RAW_CLOSE)
        while not (found := close.search(self._tape.text, self._tape.at)):
            self._give(self._tape.take(len(self._tape.rest) - close.overlap(self._tape.rest)))
            if self._tape.ended:
                self._give(self._tape.take(len(self._tape.rest)))
                self._flags.append("truncated")
                return
            yield
        self._give(self._tape.take(found.start() - self._tape.at))
        self._tape.take(len(RAW_CLOSE))

    def _open(self) -> None:
        assert self._tool is not None
        self._out.open(self._tool.name, self._tool.custom)
        self._state = "inside"

    def _give(self, text: str) -> None:
        self._given.append(text)
        self._out.arguments(text)


def _decoded(text: str) -> object:
    """A JSON string's value. Half a surrogate pair is no character: it is replaced."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:  # an escape that JSON does not have
        return text[1:-1]
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else value


def _object_in(text: str) -> str | None:
    """The object inside a string of JSON inside a string of JSON; None if there is none."""
    for _ in range(3):
        text = str(_decoded(text))
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if isinstance(value, dict):
            return text
    return None
