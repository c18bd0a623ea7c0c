"""Regular expressions of schemas: from the syntaxes that clients write to the one that both engines read.

Clients write those of JavaScript, Python, PCRE and Java. The engines of grammars and of validation read Rust's.
Source: https://docs.rs/regex/latest/regex/#syntax.
"""

import re
import string
import unicodedata

from llguidance import regex_to_lark

QUANTIFIER = re.compile(r"\{(\d*)(,?)(\d*)\}")
GROUP = re.compile(r"\?(?:P?<[A-Za-z_$][\w$]*>|>)")  # named or atomic: a group here
COMMENT = re.compile(r"\(\?#[^)]*\)")
FLAGS = re.compile(r"\?([a-zA-Z]+)(\)|:)")
POSIX_CLASS = re.compile(r"\[:\^?[a-z]+:\]")
ESCAPES = {
    "A": "^", "Z": "$", "z": "$", "h": r"[ \t]", "H": r"[^ \t]", "R": r"(?:\r\n|\n|\r)", "N": r"[^\n]", "e": r"\x1b",
    "0": r"\x00", "<": "<", ">": ">",
}  # fmt: skip
NAMED = re.compile(r"\\N\{(?:U\+([0-9A-Fa-f]{1,6})|([A-Za-z][A-Za-z0-9 -]*))\}")  # a character, as Python and Perl do
OCTAL = re.compile(r"\\o\{([0-7]{1,7})\}")
PAIR = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")  # of surrogates, in JavaScript
ESCAPES_IN_CLASS = {"h": r" \t", "e": r"\x1b", "0": r"\x00", "b": r"\x08", "<": "<", ">": ">"}
MAX_SPREAD = 256  # alternatives of a pattern whose anchors stand in groups
CLASS_ESCAPES = "dDwWsSpPh"  # stand for several characters, so that no range begins or ends with them


def translated(pattern: str) -> str:
    """Rewrite a pattern in Rust's syntax as far as that is possible; the rest is left as it is."""
    return _Translation(pattern).whole()


def ends_open(pattern: str) -> bool:
    """Whether a pattern ends in a backslash that escapes nothing, which is a fault in every syntax."""
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1


def most_repeats(pattern: str) -> int:
    """How often a part of a pattern may repeat by its counts, those of the groups around it included."""
    levels, last = [1], -1
    for at, char in _outside(pattern):
        if char == "(":
            levels.append(1)
        elif char == ")" and len(levels) > 1:
            inner = levels.pop() * _count_at(pattern, at + 1)
            levels[-1], last = max(levels[-1], inner), at
        elif char == "{" and last != at - 1:
            levels[-1] = max(levels[-1], _count_at(pattern, at))
    return max(levels)


def _count_at(pattern: str, at: int) -> int:
    found = QUANTIFIER.match(pattern, at)
    return max((int(number) for number in found.group(1, 3) if number), default=1) if found else 1


class _Translation:
    """One pass over a pattern."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._out: list[str] = []

    def whole(self) -> str:
        """Return the translated pattern."""
        while self._at < len(self._text):
            self._step()
        flags = ""
        while self._out and (found := re.fullmatch(r"\(\?([a-z]+)\)", self._out[0])):  # of the whole pattern
            flags += found[1]
            del self._out[0]
        text = "".join(self._out)
        return f"(?{flags}:{text})" if flags else text

    def _take(self, length: int) -> str:
        taken = self._text[self._at : self._at + length]
        self._at += length
        return taken

    def _step(self) -> None:
        char = self._text[self._at]
        if char == "\\":
            self._out.append(self._escape(ESCAPES))
        elif char == "[":
            self._out.append(self._char_class())
        elif char == "(":
            self._group()
        elif char in "*+?{":
            self._quantifier()
        else:
            self._out.append(self._take(1))

    def _escape(self, table: dict[str, str]) -> str:
        if (char := self._character()) is not None:
            return char
        kind = self._text[self._at + 1 : self._at + 2]
        if kind == "Q" and table is ESCAPES:
            quoted, _, _ = self._text[self._at + 2 :].partition(r"\E")
            self._at += len(quoted) + 4
            return re.escape(quoted)
        if kind == "c" and self._text[self._at + 2 : self._at + 3] in (*string.ascii_letters,):
            return f"\\x{ord(self._take(3)[2]) % 32:02x}"
        if kind in ("p", "P", "x", "u") and self._text[self._at + 2 : self._at + 3] == "{":
            end = self._text.find("}", self._at)
            return self._take(end + 1 - self._at if end > 0 else 2)
        if kind == "0" and self._text[self._at + 2 : self._at + 3].isdigit():
            return self._take(2)  # an octal number
        written = self._take(2)
        return kind if kind and not kind.isascii() else table.get(kind, written)

    def _character(self) -> str | None:
        """Take a character written as its name, a pair of surrogates, or an octal number; None where there is none."""
        code: int | None = None
        if found := NAMED.match(self._text, self._at):
            code = int(found[1], 16) if found[1] else _code_of(found[2])
        elif found := OCTAL.match(self._text, self._at):
            code = int(found[1], 8)
        elif found := PAIR.match(self._text, self._at):
            code = 0x10000 + ((int(found[1], 16) - 0xD800) << 10) + int(found[2], 16) - 0xDC00
        if found is None:
            return None
        self._take(len(found[0]))
        return found[0] if code is None else f"\\x{{{code:x}}}"

    def _group(self) -> None:
        if comment := COMMENT.match(self._text, self._at):
            self._take(len(comment[0]))
            return
        self._take(1)
        if head := GROUP.match(self._text, self._at):
            self._take(len(head[0]))
            self._out.append("(?:")
        elif flags := FLAGS.match(self._text, self._at):
            self._take(len(flags[0]))
            kept = "".join(flag for flag in flags[1] if flag not in "uaL")  # the engines' own way in any case
            if kept or flags[2] == ":":
                self._out.append(f"(?{kept}{flags[2]}")
        else:
            self._out.append("(")

    def _quantifier(self) -> None:
        if self._text[self._at] != "{":
            self._out.append(self._take(1))
        else:
            found = QUANTIFIER.match(self._text, self._at)
            if not found or not (found[1] or found[3]):
                self._out.append("\\" + self._take(1))  # a brace
                return
            self._take(len(found[0]))
            self._out.append(f"{{{found[1] or 0}{found[2]}{found[3]}}}")
        if self._text.startswith("+", self._at):  # possessive: as many, without a second try
            self._at += 1

    def _char_class(self) -> str:
        """Translate a class: `[` and doubled `&`, `-`, `~` have no meaning of their own in it."""
        self._take(1)
        out = ["["]
        if self._text.startswith("^", self._at):
            out.append(self._take(1))
        if self._text.startswith("]", self._at):
            if "]" not in self._text[self._at + 1 :]:  # JavaScript's `[^]`
                self._take(1)
                return r"[\s\S]" if len(out) > 1 else "[]"
            self._take(1)
            out.append(r"\]")
        after_class = True  # what was written stands for several characters, or nothing was
        while self._at < len(self._text) and self._text[self._at] != "]":
            char = self._text[self._at]
            if posix := POSIX_CLASS.match(self._text, self._at):
                out.append(self._take(len(posix[0])))
                after_class = True
            elif char == "\\":
                after_class = self._text[self._at + 1 : self._at + 2] in CLASS_ESCAPES
                out.append(self._escape(ESCAPES_IN_CLASS))
            elif char == "-":
                self._take(1)
                out.append(r"\-" if after_class or self._no_range_end() else "-")
                after_class = False
            else:
                out.append(("\\" if char in "[&~" else "") + self._take(1))
                after_class = False
        return "".join(out) + self._take(1)

    def _no_range_end(self) -> bool:
        rest = self._text[self._at : self._at + 2]
        return rest[:1] in ("]", "") or (rest[:1] == "\\" and rest[1:] in CLASS_ESCAPES)


def _code_of(name: str) -> int | None:
    try:
        return ord(unicodedata.lookup(name))
    except (KeyError, TypeError):  # TypeError: a sequence of characters
        return None


def full_match(pattern: str) -> str | None:
    """Convert a pattern, which may match anywhere, to a regular expression of whole texts, for a Lark grammar.

    None where an anchor stands in the middle or in a group that repeats, where anchors in groups make too many
    alternatives, and where llguidance does not take it.
    """
    flags = FLAGS.match(pattern, 1) if pattern.startswith("(") and _first_close(pattern) == len(pattern) - 1 else None
    if flags:
        found = full_match(pattern[1 + len(flags[0]) : -1])
        return None if found is None else f"(?{flags[1]}:{found})"
    whole = _alternatives(_without_group(pattern))
    spread = [one for part in whole for one in _spread(part, MAX_SPREAD)]
    parts = [_anchored(part) for part in spread] if len(spread) <= max(MAX_SPREAD, len(whole)) else [None]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return "|".join(f"({part})" for part in known) if len(known) > 1 else known[0]


def _spread(pattern: str, most: int) -> list[str]:
    """Write a pattern as alternatives that have no anchor in a group at either end, as `(^|,)x` is `^x` or `,x`.

    More than `most` of them are not all returned.
    """
    if pattern.startswith("(") and _first_close(pattern) == len(pattern) - 1:
        return [pattern]  # one group, whose content is looked at by itself
    for before, inner, after in (_group_at_start(pattern), _group_at_end(pattern)):
        if not any(char in "^$" for _, char in _outside(inner)):
            continue
        spread: list[str] = []
        for part in _alternatives(inner):
            head = before if not (before == "^" and part.startswith("^")) else ""
            tail = after if not (after == "$" and _ends_in_anchor(part)) else ""
            spread += _spread(f"{head}{part}{tail}", most - len(spread))
            if len(spread) > most:
                break
        return spread
    return [pattern]


def _group_at_start(pattern: str) -> tuple[str, str, str]:
    """Split a pattern around the group that it begins with, an anchor before it aside; empty where there is none."""
    start = int(pattern.startswith("^"))
    end = start + _first_close(pattern[start:])
    if not pattern.startswith("(", start) or end < start or pattern[end + 1 : end + 2] in (*"*+?{",):
        return "", "", ""
    inner = _without_group(pattern[start : end + 1])
    return (pattern[:start], inner, pattern[end + 1 :]) if inner != pattern[start : end + 1] else ("", "", "")


def _group_at_end(pattern: str) -> tuple[str, str, str]:
    """The same for the group that it ends with."""
    end = len(pattern) - _ends_in_anchor(pattern)
    depth, start = 0, -1
    for at, char in _outside(pattern[:end]):
        if char == "(":
            start = at if depth == 0 else start
            depth += 1
        depth -= char == ")"
    if start < 0 or depth or start + _first_close(pattern[start:end]) != end - 1:
        return "", "", ""
    inner = _without_group(pattern[start:end])
    return (pattern[:start], inner, pattern[end:]) if inner != pattern[start:end] else ("", "", "")


def _ends_in_anchor(pattern: str) -> bool:
    outside = _outside(pattern)
    return bool(outside) and outside[-1] == (len(pattern) - 1, "$")


def _anchored(pattern: str) -> str | None:
    inner = _without_group(pattern)
    if inner != pattern:
        found = full_match(inner)
        return None if found is None else f"({found})"
    bare = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", pattern)  # without escapes and classes
    begins, ends = pattern.startswith("^"), bare.endswith("$") and pattern.endswith("$")
    bare = bare[begins : len(bare) - ends]
    if "^" in bare or "$" in bare:
        return None
    try:
        source = regex_to_lark(f"({pattern[begins : len(pattern) - ends]})", "dw")
    except ValueError:
        return None
    return f"{'' if begins else '(?s:.*)'}{source}{'' if ends else '(?s:.*)'}"


def _without_group(pattern: str) -> str:
    """Return the content of a pattern that is one group, as `(?:^$|^a$)`; the anchors in it are the pattern's own."""
    while pattern.startswith("(") and not FLAGS.match(pattern, 1) and pattern.endswith(")"):
        head = 3 if pattern.startswith("(?:") else 1
        if (pattern.startswith("(?") and head == 1) or _first_close(pattern) != len(pattern) - 1:
            break
        pattern = pattern[head:-1]
    return pattern


def _first_close(pattern: str) -> int:
    depth = 0
    for at, char in _outside(pattern):
        depth += (char == "(") - (char == ")")
        if depth == 0 and char == ")":
            return at
    return -1


def _alternatives(pattern: str) -> list[str]:
    """Split at the `|` outside groups."""
    depth, cuts = 0, [-1]
    for at, char in _outside(pattern):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            cuts.append(at)
    return [pattern[start + 1 : end] for start, end in zip(cuts, [*cuts[1:], len(pattern)], strict=True)]


def _outside(pattern: str) -> list[tuple[int, str]]:
    """Return the characters outside escapes and classes, with their indices."""
    skipped = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|(.)", re.DOTALL)
    return [(found.start(), found[1]) for found in skipped.finditer(pattern) if found[1] is not None]
