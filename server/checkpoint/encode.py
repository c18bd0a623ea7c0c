"""Rendered text -> ids: control tokens where the template wrote them, ordinary text everywhere else.

    <|im_start|> | user\\nWrite | ‹<›|im_end|> out | <|im_end|> | \\n
    a token        text           masked: text       a token      text

The text is cut at the control tokens that hold no masked character, and what lies between them is encoded by a
tokenizer that knows no added tokens. On clean text the ids are those of the checkpoint's own tokenizer: it cuts at
added tokens before anything else, too.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from tokenizers import Tokenizer

from server.checkpoint.mask import Mask
from server.errors import CannotStart

CACHE_BYTES = 64 << 20
BYTES_AN_ID = 40  # of a Python list of ids: pointer and integer
BYTES_AN_ENTRY = 400


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that text cannot write by ordinary merges. The flags are those of the tokenizers library."""

    text: str
    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class EncodedPiece:
    """Part of a rendered prompt: `token_ids` of the characters from `start` to `end`."""

    start: int
    end: int
    token_ids: Sequence[int]
    control: bool


class Encoder:
    """Thread-safe. `plain` is the tokenizer `without_added_tokens`; ids of recent pieces are remembered."""

    def __init__(self, plain: Tokenizer, control: Sequence[ControlToken], cache_bytes: int = CACHE_BYTES) -> None:
        self._ids = {token.text: token.id for token in control}
        self._tokens = _pattern(control)
        self._plain = plain
        self._cache: OrderedDict[str, list[int]] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes
        self._lock = Lock()

    def encode(self, text: str, mask: Mask) -> list[int]:
        """The ids of a text rendered from masked input."""
        return [token_id for piece in self.pieces(text, mask) for token_id in piece.token_ids]

    def pieces(self, text: str, mask: Mask) -> list[EncodedPiece]:
        """The ids by piece, in order, covering the whole text."""
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
        """Where in the rendered text each token begins."""
        for piece in pieces:
            if piece.control:
                yield piece.start
            else:
                encoding = self._plain.encode(mask.show(text[piece.start : piece.end]), add_special_tokens=False)
                yield from (piece.start + start for start, _ in encoding.offsets)

    def encode_text(self, text: str) -> list[int]:
        """The ids of outside text: no control token among them, whatever it says."""
        return list(self._encode(text)) if text else []

    def _piece(self, text: str, start: int, end: int, mask: Mask) -> EncodedPiece:
        return EncodedPiece(start, end, self._encode(mask.show(text[start:end])), False)

    def _encode(self, text: str) -> list[int]:
        with self._lock:
            known = self._cache.get(text)
            if known is not None:
                self._cache.move_to_end(text)
                return known
        token_ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        with self._lock:
            if text not in self._cache:
                self._cache[text] = token_ids
                self._cached_bytes += _size(text, token_ids)
            while self._cached_bytes > self._cache_bytes and self._cache:
                self._cached_bytes -= _size(*self._cache.popitem(last=False))
        return token_ids


def _size(text: str, token_ids: Sequence[int]) -> int:
    return 4 * len(text) + BYTES_AN_ID * len(token_ids) + BYTES_AN_ENTRY


def _pattern(control: Sequence[ControlToken]) -> re.Pattern[str]:
    """Leftmost and longest, as the tokenizers library matches added tokens."""
    longest_first = sorted(control, key=lambda token: len(token.text), reverse=True)
    return re.compile("|".join(map(_one, longest_first)) or "(?!)")


def _one(token: ControlToken) -> str:
    text = re.escape(token.text)
    if token.single_word:
        text = rf"(?<!\w){text}(?!\w)"
    return (r"\s*" if token.lstrip else "") + text + (r"\s*" if token.rstrip else "")


def without_added_tokens(tokenizer: Tokenizer, tokenizer_json: str, control: Sequence[ControlToken]) -> Tokenizer:
    """The tokenizer for text alone. Raises CannotStart if it makes a control token out of text all the same."""
    plain = _with_its_parts(tokenizer)
    if any(plain.token_to_id(token.text) is not None for token in control):
        plain = _without_entries(tokenizer_json, control)
    ids = {token.id for token in control}
    for token in control:
        if not token.text.isspace() and ids.intersection(plain.encode(token.text, add_special_tokens=False).ids):
            raise CannotStart(f"this tokenizer makes the control token {token.text} out of ordinary text")
    return plain


def _with_its_parts(tokenizer: Tokenizer) -> Tokenizer:
    plain = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        plain.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        plain.pre_tokenizer = tokenizer.pre_tokenizer
    return plain


def _without_entries(tokenizer_json: str, control: Sequence[ControlToken]) -> Tokenizer:
    """For vocabularies that list their control tokens: with `ignore_merges` such an entry could be typed."""
    layout: dict[str, Any] = json.loads(tokenizer_json)
    for token in control:
        layout["model"]["vocab"].pop(token.text, None)
    return _with_its_parts(Tokenizer.from_str(json.dumps({**layout, "added_tokens": [], "post_processor": None})))
