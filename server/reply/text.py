"""Decode token ids to text incrementally: whole characters only, control tokens dropped, stop strings cut off.

A byte-level vocabulary writes each byte as one printable character (GPT-2's `bytes_to_unicode`). We read that table
backwards and decode UTF-8 incrementally, which costs the same for the first token and the ten thousandth.
"""

import codecs
from collections.abc import Collection, Iterable

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel, DecodeStream


class Vocabulary:
    """The bytes of each id; shared by all replies of a checkpoint.

    `kept` are special tokens that stay text all the same (a dialect's markers, the think tags). Every other special
    token and every id the tokenizer does not know writes nothing.
    """

    def __init__(self, tokenizer: Tokenizer, kept: Collection[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.byte_level = isinstance(tokenizer.decoder, ByteLevel)
        added = tokenizer.get_added_tokens_decoder()
        self._dropped = frozenset(i for i, token in added.items() if token.special and token.content not in kept)
        self._pieces: dict[int, bytes] = {}

    def drops(self, token_id: int) -> bool:
        """Whether this id writes nothing."""
        return token_id in self._dropped

    def piece(self, token_id: int) -> bytes:
        """The bytes that this id writes, which need not be whole characters."""
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._read_piece(token_id)
        return known

    def _read_piece(self, token_id: int) -> bytes:
        token = None if token_id in self._dropped else self.tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if not self.byte_level:
            return self.tokenizer.decode([token_id], skip_special_tokens=False).encode()
        if all(character in BYTE_OF for character in token):
            return bytes(BYTE_OF[character] for character in token)
        return token.encode()  # an added token, whose content is plain text


class TextStream:
    """ids -> text of one reply. The text so far is always a prefix of what decoding all ids at once gives."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._other = None if vocabulary.byte_level else DecodeStream(skip_special_tokens=False)

    def feed(self, token_id: int) -> str:
        """The characters that this id completes: often some, sometimes none.

        Bytes cut off by the end of the reply never come out: half a character is no text.
        """
        if self._vocabulary.drops(token_id):
            return ""
        if self._other is not None:
            return self._other.step(self._vocabulary.tokenizer, token_id) or ""
        return self._utf8.decode(self._vocabulary.piece(token_id))


class StopStrings:
    """Lets text through up to the first stop string, and nothing of the stop string itself.

    Held back is only a tail that may yet become a stop string. The match is the one that is complete first, so that
    the outcome does not depend on how the text is cut into pieces; of two complete at once, the longer.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that is now certain not to belong to a stop string; nothing once one has matched."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            start, self.matched = min(found, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            self._held = ""
            return text[:start]
        keep = held_length(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self) -> str:
        """What was held back: the reply is over, so it was no stop string."""
        held, self._held = self._held, ""
        return held


def held_length(text: str, needles: Iterable[str]) -> int:
    """Length of the longest end of `text` that begins one of `needles` without being all of it."""
    return max((_overlap(text, needle) for needle in needles), default=0)


def _overlap(text: str, needle: str) -> int:
    start = max(0, len(text) - len(needle) + 1)
    while (start := text.find(needle[0], start)) >= 0:
        if needle.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0


def _byte_characters() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + position): byte for position, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


BYTE_OF = _byte_characters()
