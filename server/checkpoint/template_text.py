"""Text of a rendering that knows which of its characters the template wrote.

    "<|im_start|>" + message.role + "\\n" + message.content
     written         written        written  from outside

Only what the template's source spells out is written by it, with the roles and the tokens that the server itself
gives it. Joining, slicing, trimming and splitting keep that knowledge with each character; the result of any other
operation is an ordinary `str`, in which nothing counts as written. So no operation on a client's text makes a control
token of it, whatever the operation is: the encoder takes only written characters for one.
"""

from collections.abc import Iterable
from typing import SupportsIndex

Spans = tuple[tuple[int, int], ...]


class RawArguments(str):
    """Arguments of an earlier call that are not a JSON object; templates print them unchanged."""

    __slots__ = ()


class TemplateText(str):
    """A string equal to its text; `written` are the spans of characters that the template wrote, in order."""

    __slots__ = ("written",)
    written: Spans

    def __new__(cls, text: str, written: Spans = ()) -> "TemplateText":
        self = super().__new__(cls, text)
        self.written = written
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> "TemplateText":
        return join_texts((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> "TemplateText":
        return join_texts((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> "TemplateText":
        return join_texts([self] * times.__index__())

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice):
            return super().__getitem__(key)
        start, stop, step = key.indices(len(self))
        return self._part(start, max(start, stop)) if step == 1 else super().__getitem__(key)

    def strip(self, chars: str | None = None, /) -> "TemplateText":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "TemplateText":
        return self._part(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> "TemplateText":
        return self._part(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> "TemplateText":
        return self._part(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> "TemplateText":
        return self._part(0, len(super().removesuffix(suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(super().rsplit(sep, maxsplit), sep)

    def join(self, parts: Iterable[str], /) -> "TemplateText":
        texts = [text for part in parts for text in (self, part)]
        return join_texts(texts[1:])

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return super().replace(old, new, count)
        return TemplateText(new, getattr(new, "written", ())).join(self.split(old, count))

    def _part(self, start: int, end: int) -> "TemplateText":
        spans = ((max(first, start) - start, min(last, end) - start) for first, last in self.written)
        text = super().__getitem__(slice(start, end))
        return TemplateText(text, tuple((first, last) for first, last in spans if first < last))

    def _parts(self, texts: list[str], sep: str | None) -> list[str]:
        """The results of a split as parts of this text. One at a text from outside gives ordinary strings, which
        nothing can join to a token.
        """
        if sep is not None and getattr(sep, "written", ()) != ((0, len(sep)),):
            return texts
        parts: list[str] = []
        at = 0
        for text in texts:
            at = at if sep is not None else self.find(text, at)  # between words there is only white space
            parts.append(self._part(at, at + len(text)))
            at += len(text) + len(sep or "")
        return parts


def written_text(text: str) -> TemplateText:
    """Text that the template wrote, all of it."""
    return TemplateText(text, ((0, len(text)),) if text else ())


def join_texts(parts: Iterable[str]) -> TemplateText:
    """The parts joined, each of its characters written or not as before."""
    texts = list(parts)
    written: list[tuple[int, int]] = []
    at = 0
    for text in texts:
        if isinstance(text, TemplateText):
            for start, end in text.written:
                if written and written[-1][1] == at + start:
                    written[-1] = (written[-1][0], at + end)
                else:
                    written.append((at + start, at + end))
        at += len(text)
    return TemplateText("".join(texts), tuple(written))
