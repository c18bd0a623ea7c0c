"""Encode plain text of any length: in pieces, and without holding Python's lock meanwhile.

A tokenizer takes some 300 bytes for each character that it encodes at once, and the ids that it returns become Python
objects in one go; both are bounded by the length of a piece. `Tokenizer.encode` holds the lock, `encode_batch` and
`encode_batch_fast` do not.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial

from tokenizers import Encoding, Tokenizer

PIECE_CHARACTERS = 1 << 17
# No token of a tokenizer that splits text before it merges reaches over the start of a line that begins with a letter.
_CUT = re.compile(r"(?<=\n)(?=[^\W\d_])")
_PROBE = ("of one line \n\n", "Then another")


class TextEncoder:
    """Ids of text for a tokenizer without added tokens; thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._longest = max(map(len, tokenizer.get_vocab(with_added_tokens=False)), default=1)
        self._separable = self._ids("".join(_PROBE)) == [token_id for text in _PROBE for token_id in self._ids(text)]

    def ids(self, text: str) -> list[int]:
        """The ids of a text."""
        return [token_id for piece in self._pieces(text) for token_id in self._ids(piece)]

    def count_before(self, text: str, places: Sequence[int]) -> list[int]:
        """How many tokens begin before each of these places of the text, which must be sorted.

        The places are searched for: a list of all offsets takes Python's lock for tens of milliseconds.
        """
        counts: list[int] = []
        at = num_tokens = 0
        for piece in self._pieces(text):
            encoding = self._tokenizer.encode_batch([piece], add_special_tokens=False)[0]
            end = at + len(piece)
            while len(counts) < len(places) and places[len(counts)] <= end:
                place = places[len(counts)] - at
                inside = bisect_left(range(len(encoding)), place, key=partial(_start, encoding))
                counts.append(num_tokens + inside)
            at, num_tokens = end, num_tokens + len(encoding)
        return counts + [num_tokens] * (len(places) - len(counts))

    def min_tokens(self, text: str, limit: int) -> int:
        """A number of tokens that this text has at least, found without encoding it; worth knowing above `limit`.

        No token covers more characters than the vocabulary's longest has. A normalizer may compose several into one.
        """
        num_characters = len(text)
        normalizer = self._tokenizer.normalizer
        if num_characters // self._longest > limit and normalizer is not None and not text.isascii():
            slices = (text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS))
            valid = (part.encode("utf-8", "replace").decode() for part in slices)  # masks are lone surrogates
            num_characters = sum(len(normalizer.normalize_str(part)) for part in valid)
        return num_characters // self._longest

    def _ids(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return token_ids

    def _pieces(self, text: str) -> Iterator[str]:
        """Pieces that are encoded alone; a line longer than a piece is cut where it is, which may cost one token."""
        at = 0
        while self._separable and len(text) - at > 2 * PIECE_CHARACTERS:
            cut = _CUT.search(text, at + PIECE_CHARACTERS, at + 2 * PIECE_CHARACTERS)
            end = cut.start() if cut else at + 2 * PIECE_CHARACTERS
            yield text[at:end]
            at = end
        yield text[at:]


def _start(encoding: Encoding, token: int) -> int:
    characters = encoding.token_to_chars(token)
    assert characters is not None, "text has no special tokens"
    return characters[0]
