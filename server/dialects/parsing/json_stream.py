"""Incremental scanner that finds the end of a JSON value and repairs common mistakes of models.

Valid JSON is passed through byte for byte. Only mistakes with one possible meaning are repaired:

    raw newline, tab, control character in a string      escaped
    \\d and other escapes that JSON does not have         the backslash is doubled
    "she said "hi" to me"                                the inner quotes are escaped
    {'a': True, 'b': None,}                              "a", true, "b", null, no last comma
    {"a": [1, 2</tool_call>                              the missing ]} are added
"""

import re
from typing import Literal

PLAIN = re.compile(r'(?:[^"\\\x00-\x1f]+|\\["\\/bfnrt])+')
PLAIN_IN_SINGLE = re.compile(r"""(?:[^"'\\\x00-\x1f]+|\\["\\/bfnrt])+""")
SPACE = re.compile(r"[ \t\r\n]*")
NUMBER = re.compile(r"[-+0-9.eE]+")
WORD = re.compile(r"[A-Za-z]+")
ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4})')
# What may follow a closing quote: nothing else ends a string. A group is set when more text is needed.
AFTER_MEMBER = re.compile(r"""[ \t\r\n]*(?:(\Z)|\}|,[ \t\r\n]*(?:(\Z)|["'}]))""")
AFTER_ITEM = re.compile(r"""[ \t\r\n]*(?:(\Z)|\]|,[ \t\r\n]*(?:(\Z)|["'\[{\]0-9tfnTFN-]))""")
POSSIBLE_ESCAPE = re.compile(
    r"\\(?:u[0-9a-fA-F]{0,4}|u[dD][89abAB][0-9a-fA-F]{2}\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?"
)
HIGH = ("d8", "d9", "da", "db")  # first half of a surrogate pair
WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
CONTROLS = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}

Expected = Literal["value", "first item", "first key", "key", "colon", "comma", "string", "number", "nothing"]


class JsonText:
    """One JSON value. `feed` it the text that was not taken last time, followed by more.

    `done`: the value is complete. `broken`: the text not taken is no JSON. `repaired`: the output differs from the
    input. `end` is the markup that follows; where a value may end, it closes all open brackets, and on a line of its
    own it ends even a string, which is then broken: JSON strings have no raw line breaks. `within` is the bracket
    that encloses the value, if it is parsed apart from it. With `rest_of_object`, parsing continues after one of the
    values of an object.
    """

    def __init__(self, end: str = "", within: Literal["", "{", "["] = "", rest_of_object: bool = False) -> None:
        self._end = end
        self._within = within
        self._stack: list[str] = ["{"] if rest_of_object else []
        self._expected: Expected = "comma" if rest_of_object else "value"
        self._quote = '"'
        self._is_key = False
        self._output: list[str] = []
        self.done = False
        self.broken = False
        self.repaired = False

    def feed(self, text: str, at: int = 0, last: bool = False) -> tuple[str, int]:
        """Return the output, and the index up to which `text` was taken. With `last`, no more text follows."""
        while not (self.done or self.broken) and at < len(text):
            before = at, self._expected
            at = self._in_string(text, at, last) if self._expected == "string" else self._between(text, at, last)
            if (at, self._expected) == before:
                break
        if last and self._expected == "number":
            self._value_ends()
        output, self._output = "".join(self._output), []
        return output, at

    def _between(self, text: str, at: int, last: bool) -> int:
        if self._expected == "number":
            return self._number(text, at)
        space = SPACE.match(text, at)
        if space and space.end() > at:
            self._output.append(space.group())
            return space.end()
        char = text[at]
        if self._end and char == self._end[0]:
            return self._at_end(text, at, last)
        match self._expected:
            case "value" | "first item":
                return self._start_value(text, at, char, last)
            case "first key" | "key":
                return self._start_key(at, char)
            case "colon":
                return self._pass(char, at, "value") if char == ":" else self._break(at)
            case _:
                return self._after_value(text, at, char, last)

    def _start_value(self, text: str, at: int, char: str, last: bool) -> int:
        if char == "{" or char == "[":
            self._stack.append(char)
            return self._pass(char, at, "first key" if char == "{" else "first item")
        if char == "]" and self._expected == "first item":
            return self._close(at, char)
        if char in "\"'":
            return self._open_string(at, char, is_key=False)
        if NUMBER.match(char):
            self._expected = "number"
            return at
        word = WORD.match(text, at)
        if word and word.end() == len(text) and not last:
            return at
        if word and word.group() in WORDS:
            self._put(WORDS[word.group()], word.group())
            self._value_ends()
            return word.end()
        return self._break(at)

    def _number(self, text: str, at: int) -> int:
        # Digits are passed through; whether they form a number is checked on the whole value.
        digits = NUMBER.match(text, at)
        end = digits.end() if digits else at
        self._output.append(text[at:end])
        if end < len(text):
            self._value_ends()
        return end

    def _start_key(self, at: int, char: str) -> int:
        if char == "}" and self._expected == "first key":
            return self._close(at, char)
        return self._open_string(at, char, is_key=True) if char in "\"'" else self._break(at)

    def _open_string(self, at: int, char: str, is_key: bool) -> int:
        self._quote, self._is_key, self._expected = char, is_key, "string"
        self._put('"', char)
        return at + 1

    def _after_value(self, text: str, at: int, char: str, last: bool) -> int:
        if char in "}]":
            return self._close(at, char)
        if char != ",":
            return self._break(at)
        space = SPACE.match(text, at + 1)
        end = space.end() if space else at + 1
        if end == len(text) and not last:
            return at  # a comma before a closing bracket is dropped
        if end < len(text) and text[end] in "}]":
            self.repaired = True
            self._output.append(text[at + 1 : end])
            return end
        self._output.append(text[at:end])
        self._expected = "key" if self._stack[-1] == "{" else "value"
        return end

    def _close(self, at: int, char: str) -> int:
        if not self._stack or (self._stack[-1] == "{") != (char == "}"):
            return self._break(at)
        self._stack.pop()
        self._output.append(char)
        self._value_ends()
        return at + 1

    def _in_string(self, text: str, at: int, last: bool) -> int:
        plain = (PLAIN if self._quote == '"' else PLAIN_IN_SINGLE).match(text, at)
        if plain:
            self._output.append(plain.group())
            return plain.end()
        char = text[at]
        if char == "\\":
            return self._escape(text, at, last)
        if char == self._quote:
            return self._quote_in_string(text, at, last)
        if char == '"':
            self._put('\\"', char)
        elif self._end and char == "\n" and (text.startswith(self._end, at + 1) or self._may_be_end(text, at, last)):
            return self._break(at) if text.startswith(self._end, at + 1) else at
        else:
            self._put(CONTROLS.get(char, f"\\u{ord(char):04x}"), char)
        return at + 1

    def _may_be_end(self, text: str, at: int, last: bool) -> bool:
        return not last and self._end.startswith(text[at + 1 :])

    def _escape(self, text: str, at: int, last: bool) -> int:
        escape = ESCAPE.match(text, at)
        is_high = escape is not None and len(escape.group()) == 6 and text[at + 2 : at + 4].lower() in HIGH
        if escape and not is_high:
            self._output.append(escape.group())
            return escape.end()
        if not last and len(text) - at < (12 if is_high else 6) and POSSIBLE_ESCAPE.fullmatch(text, at):
            return at  # a surrogate pair is emitted whole
        if escape:
            self._output.append(escape.group())
            return escape.end()
        if text[at + 1 : at + 2] == "'":
            self._put("'", "\\'")
            return at + 2
        self._put("\\\\", "\\")
        return at + 1

    def _quote_in_string(self, text: str, at: int, last: bool) -> int:
        closes = self._closes_string(text, at, last)
        if closes is None:
            return at
        if not closes:
            self._put('\\"' if self._quote == '"' else "'", self._quote)
            return at + 1
        self._put('"', self._quote)
        if self._is_key:
            self._expected = "colon"
        else:
            self._value_ends()
        return at + 1

    def _closes_string(self, text: str, at: int, last: bool) -> bool | None:
        bracket = self._stack[-1] if self._stack else self._within
        if not bracket or self._is_key:
            return True
        pattern = AFTER_MEMBER if bracket == "{" else AFTER_ITEM
        after = pattern.match(text, at + 1)
        if after:
            undecided = any(group is not None for group in after.groups())
            return (True if last else None) if undecided else True
        space = SPACE.match(text, at + 1)
        rest = text[space.end() if space else at + 1 :]
        if self._end and rest.startswith(self._end):
            return True
        return None if self._end and not last and self._end.startswith(rest) else False

    def _at_end(self, text: str, at: int, last: bool) -> int:
        if not text.startswith(self._end, at):
            return at if not last and self._end.startswith(text[at:]) else self._break(at)
        if self._expected not in ("comma", "first key", "first item"):
            return self._break(at)
        self.repaired = True
        self._output.extend("}" if opened == "{" else "]" for opened in reversed(self._stack))
        self._stack.clear()
        self.done = True
        return at

    def _value_ends(self) -> None:
        self._expected = "comma" if self._stack else "nothing"
        self.done = not self._stack

    def _pass(self, char: str, at: int, expected: Expected) -> int:
        self._output.append(char)
        self._expected = expected
        return at + 1

    def _put(self, output: str, taken: str) -> None:
        self._output.append(output)
        self.repaired = self.repaired or output != taken

    def _break(self, at: int) -> int:
        self.broken = True
        return at
