"""Lexer of tags, also as models distort them: blanks inside, another case, quotes round a name, a missing `>`."""

import re
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from server.dialects.parsing.text_buffer import MAX_NAME_LENGTH, SPACE, TextBuffer

Kind = Literal["argument", "key", "function", "call", "end"]
MAX_TAG_LENGTH = MAX_NAME_LENGTH + 64
BLANKS = r"[ \t]{0,8}"
STOP = re.compile(r"[<>\n]")
ATTRIBUTE = re.compile(r"\s*=\s*(?P<equal>.*?)\s*|\s+name\s*=\s*(?P<named>.*?)\s*")


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of a reply, between two positions. `word` is its word in lower case, `name` what an opening one names.

    `exact`: it is written as the format writes it. `complete`: it has its `>`. `loose`: it may well be another
    language's: in another case, or with the name in an attribute (`name="x"`). `bare`: an opening one that is nothing
    but its word, where the format's own names something or stands behind a name.
    """

    kind: Kind
    closes: bool
    start: int
    end: int
    word: str
    name: str | None = None
    exact: bool = True
    complete: bool = True
    loose: bool = False
    bare: bool = False

    def opens(self, *kinds: Kind) -> bool:
        """Whether this is an opening tag of one of these kinds."""
        return not self.closes and self.kind in kinds

    def is_written_like(self, other: "Tag") -> bool:
        """Whether both tags are distorted, and in the same way."""
        return not (self.exact or other.exact) and (self.complete, self.loose) == (other.complete, other.loose)


class Lexer(Protocol):
    """Finds the tags of one format."""

    def search(self, buffer: TextBuffer, position: int) -> Tag | int:
        """Return the first tag from a position on, or the position up to which there certainly is none."""


class TagLexer:
    """Lexer of single tags. Tags of the kinds `named` open with a name; `exact` are the words as the format has them.

    A tag of a named kind without a name, such as XML's own `<parameter type="a">`, has None. The words `nameless` open
    with no name: with one, they are text.
    """

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        exact: Collection[str],
        named: Collection[Kind] = (),
        nameless: Collection[str] = (),
    ) -> None:
        self._kinds = kinds
        self._exact = exact
        self._named = named
        self._nameless = nameless
        words = "|".join(sorted(kinds, key=len, reverse=True))
        longest = max(map(len, kinds))
        self._head = re.compile(rf"<{BLANKS}(/?){BLANKS}((?ai:{words}))(?![\w-])")
        self._begun = re.compile(rf"<{BLANKS}/?{BLANKS}([A-Za-z_]{{0,{longest}}})")

    def search(self, buffer: TextBuffer, position: int) -> Tag | int:
        """Return the first tag from a position on, or the position up to which there certainly is none."""
        text, at = buffer.text, buffer.index(position)
        while head := self._head.search(text, at):
            start, at = head.start(), head.end()
            stop = STOP.search(text, at, at + MAX_TAG_LENGTH)
            if stop is None and not buffer.ended and len(text) < at + MAX_TAG_LENGTH:
                return start + buffer.num_discarded
            end = stop.start() if stop else len(text)
            complete = stop is not None and stop.group() == ">"
            if (stop or buffer.ended) and (tag := self._tag(head, text[at:end], complete)):
                return replace(tag, start=start + buffer.num_discarded, end=tag.end + buffer.num_discarded)
        return (len(text) if buffer.ended else self._certain(text, at)) + buffer.num_discarded

    def _certain(self, text: str, at: int) -> int:
        start = text.rfind("<", at)
        begun = self._begun.fullmatch(text, start) if start >= 0 else None
        could_be = begun is not None and any(word.startswith(begun.group(1).lower()) for word in self._kinds)
        return start if could_be else len(text)

    def _tag(self, head: re.Match[str], rest: str, complete: bool) -> Tag | None:
        """Return the tag with this head, its offsets still indices; None if it is none, such as XML's `<param/>`."""
        word, closes = head.group(2).lower(), bool(head.group(1))
        kind = self._kinds[word]
        end = head.end() + len(rest) + complete
        exact = complete and head.group().removeprefix("<").removeprefix("/") in self._exact
        found = ATTRIBUTE.fullmatch(rest)
        if closes or kind not in self._named:
            is_tag = not rest.strip() or (closes and found is not None)  # some close `</parameter=x>`
            bare = not closes and complete
            tag = Tag(kind, closes, head.start(), end, word, None, exact and not rest, complete, bare=bare)
            return tag if is_tag else None
        if rest.endswith("/"):
            return None
        if found is None:
            bare = complete and not rest.strip()
            return Tag(kind, False, head.start(), end, word, None, False, complete, bare=bare)
        if word in self._nameless:
            return None
        attribute = found.group("equal") is None
        name = (found.group("named") if attribute else found.group("equal")).strip("\"' ")
        if not complete and name:
            name = name.split()[0]
            end = head.end() + rest.index(name) + len(name)
        exact = exact and rest == f"={name}"
        loose = attribute or head.group(2) != word
        return Tag(kind, False, head.start(), end, word, name or None, exact, complete, loose)


def next_tag(lexer: Lexer, buffer: TextBuffer, position: int) -> Generator[None, None, Tag | None]:
    """Return the tag that stands behind white space at a position, of kind "end" at the end of the reply.

    None where other text stands there. Nothing is taken.
    """
    while True:
        space = SPACE.match(buffer.text, buffer.index(position))
        position = (space.end() if space else buffer.index(position)) + buffer.num_discarded
        if buffer.index(position) < len(buffer.text):
            found = lexer.search(buffer, position) if buffer.text[buffer.index(position)] == "<" else position + 1
            if isinstance(found, Tag):
                return found if found.start == position else None
            if found > position:
                return None
        if buffer.ended:
            return Tag("end", True, position, position, "")
        yield
