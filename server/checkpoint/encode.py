"""Encode rendered text: control tokens where the template wrote them, ordinary text everywhere else.

    <|im_start|> | user\\nWrite | ‹<›|im_end|> out | <|im_end|> | \\n
    a token        text           masked: text       a token      text

The text is split at the control tokens that hold no masked character, and the text between them is encoded by a
tokenizer without added tokens. For text without masked characters the ids equal those of the checkpoint's own
tokenizer, which also splits at added tokens first.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from server.byte_cache import ByteCache
from server.checkpoint.mask import Mask
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
        self._ids = {token.text: token.id for token in control}
        self._tokens = _pattern(control)
        self._text = TextEncoder(plain)
        self._cache: ByteCache[str, list[int]] = ByteCache(cache_bytes, _entry_bytes)

    def encode(self, text: str, mask: Mask) -> list[int]:
        """The ids of a text rendered from masked input."""
        return [token_id for piece in self.pieces(text, mask) for token_id in piece.token_ids]

    def pieces(self, text: str, mask: Mask) -> list[EncodedPiece]:
        """The pieces in order; together they cover the whole text."""
        pieces: list[EncodedPiece] = []
        at = 0
        for match in self._tokens.finditer(text):
            if match.start() > at:
                pieces.append(self._piece(text, at, match.start(), mask))
            found = match.group()
            token_id = self._ids[found if found in self._ids else found.strip()]
            pieces.append(EncodedPiece(match.start(), match.end(), (token_id,), True))
            at = match.end()
        if at < len(text):
            pieces.append(self._piece(text, at, len(text), mask))
        return pieces

    def token_starts(self, text: str, mask: Mask, pieces: Iterable[EncodedPiece]) -> Iterator[int]:
        """The position in the rendered text at which each token begins."""
        for piece in pieces:
            if piece.control:
                yield piece.start
            else:
                starts = self._text.starts(mask.show(text[piece.start : piece.end]))
                yield from (piece.start + start for start in starts)

    def min_tokens(self, text: str, limit: int) -> int:
        """As `TextEncoder.min_tokens`: a lower bound, found without encoding."""
        return self._text.min_tokens(text, limit)

    def encode_text(self, text: str) -> list[int]:
        """The ids of untrusted text: never a control token, whatever the text."""
        return list(self._encode(text)) if text else []

    def _piece(self, text: str, start: int, end: int, mask: Mask) -> EncodedPiece:
        return EncodedPiece(start, end, self._encode(mask.show(text[start:end])), False)

    def _encode(self, text: str) -> list[int]:
        return self._cache.get(text, lambda: self._text.ids(text))


def _entry_bytes(text: str, token_ids: Sequence[int]) -> int:
    return 4 * len(text) + ID_BYTES * len(token_ids)


def _pattern(control: Sequence[ControlToken]) -> re.Pattern[str]:
    """Matches leftmost and longest, as the tokenizers library does for added tokens."""
    longest_first = sorted(control, key=lambda token: len(token.text), reverse=True)
    return re.compile("|".join(map(_token_pattern, longest_first)) or "(?!)")


def _token_pattern(token: ControlToken) -> str:
    text = re.escape(token.text)
    if token.single_word:
        text = rf"(?<!\w){text}(?!\w)"
    return (r"\s*" if token.lstrip else "") + text + (r"\s*" if token.rstrip else "")
