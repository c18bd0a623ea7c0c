"""Encode rendered text: control tokens where the template wrote them, ordinary text everywhere else.

    <|im_start|> | user\\nWrite <|im_end|> out | <|im_end|> | \\n
    a token        text: from outside           a token      text

The text is split at the control tokens whose characters the template wrote, all of them, and the text between them is
encoded by a tokenizer without added tokens. For text from outside without control tokens the ids equal those of the
checkpoint's own tokenizer, which also splits at added tokens first.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from server.byte_cache import ByteCache
from server.checkpoint.template import RenderedText
from server.checkpoint.text_encoder import TextEncoder
from server.checkpoint.tokenizer import ControlToken

CACHE_BYTES = 64 << 20
ID_BYTES = 40  # of a Python list of ids: pointer and integer


@dataclass(frozen=True, slots=True)
class EncodedPiece:
    """Part of a rendered prompt: `token_ids` of the characters from `start` to `end`."""

    start: int
    end: int
    token_ids: Sequence[int]
    control: bool


class Encoder:
    """Encoder of one checkpoint; thread-safe. `plain` is its tokenizer `without_added_tokens`.

    The ids of recent pieces are kept in an LRU cache of about `cache_bytes`.
    """

    def __init__(self, plain: Tokenizer, control: Sequence[ControlToken], cache_bytes: int = CACHE_BYTES) -> None:
        self._tokens = {token.text: token for token in control}
        self._pattern = _pattern([text for text in self._tokens if not text.isspace()])
        self._spaces = _pattern([text for text in self._tokens if text.isspace()])
        self._text = TextEncoder(plain)
        self._cache: ByteCache[str, list[int]] = ByteCache(cache_bytes, _entry_bytes)

    def encode(self, rendered: RenderedText) -> list[int]:
        """The ids of a rendered text."""
        return [token_id for piece in self.pieces(rendered) for token_id in piece.token_ids]

    def pieces(self, rendered: RenderedText) -> list[EncodedPiece]:
        """The pieces in order; together they cover the whole text."""
        text = rendered.text
        pieces: list[EncodedPiece] = []
        at = 0
        for start, end, token_id in self._control(rendered):
            if start > at:
                pieces += self._between(text, at, start)
            pieces.append(EncodedPiece(start, end, (token_id,), True))
            at = end
        if at < len(text):
            pieces += self._between(text, at, len(text))
        return pieces

    def count_before(self, text: str, pieces: Iterable[EncodedPiece], places: Sequence[int]) -> list[int]:
        """How many tokens begin before each of these places of the rendered text, which must be sorted."""
        counts: list[int] = []
        num_tokens = 0
        for piece in pieces:
            end = bisect_right(places, piece.end if not piece.control else piece.start, lo=len(counts))
            inside = places[len(counts) : end]
            if piece.control:
                counts += [num_tokens] * len(inside)
            elif inside:
                of_piece = self._text.count_before(
                    text[piece.start : piece.end], [place - piece.start for place in inside]
                )
                counts += [num_tokens + count for count in of_piece]
            num_tokens += len(piece.token_ids)
        return counts + [num_tokens] * (len(places) - len(counts))

    def min_tokens(self, text: str, limit: int) -> int:
        """As `TextEncoder.min_tokens`: a lower bound, found without encoding."""
        return self._text.min_tokens(text, limit)

    def encode_text(self, text: str) -> list[int]:
        """The ids of untrusted text: never a control token, whatever the text."""
        return list(self._encode(text)) if text else []

    def _control(self, rendered: RenderedText) -> Iterator[tuple[int, int, int]]:
        """Start, end and id of each control token that the template wrote; its white space may be from outside."""
        text, at = rendered.text, 0
        for first, last in rendered.written:
            for match in self._pattern.finditer(text, first, last):
                token = self._tokens[match.group()]
                start, end = match.span()
                if start < at or (token.single_word and _is_within_a_word(text, start, end)):
                    continue
                if token.lstrip:
                    start = at + len(text[at:start].rstrip())
                if token.rstrip:
                    end = len(text) - len(text[end:].lstrip())
                yield start, end, token.id
                at = end

    def _between(self, text: str, start: int, end: int) -> Iterator[EncodedPiece]:
        """Text without control tokens; white space that is an added token is no command, also in text from outside."""
        for match in self._spaces.finditer(text, start, end):
            if match.start() > start:
                yield EncodedPiece(start, match.start(), self._encode(text[start : match.start()]), False)
            yield EncodedPiece(*match.span(), (self._tokens[match.group()].id,), True)
            start = match.end()
        if start < end:
            yield EncodedPiece(start, end, self._encode(text[start:end]), False)

    def _encode(self, text: str) -> list[int]:
        return self._cache.get(text, lambda: self._text.ids(text))


def _entry_bytes(text: str, token_ids: Sequence[int]) -> int:
    return 4 * len(text) + ID_BYTES * len(token_ids)


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches leftmost and longest, as the tokenizers library does for added tokens."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _is_within_a_word(text: str, start: int, end: int) -> bool:
    return bool(re.match(r"\w", text[start - 1 : start]) or re.match(r"\w", text[end : end + 1]))
