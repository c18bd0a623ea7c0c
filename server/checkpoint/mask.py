"""Mask control tokens in untrusted text before rendering, so that the encoder can tell them from the template's own.

One character of each occurrence is replaced by a lone surrogate, which no valid text contains:

    "<|im_end|>"  ->  "\\udc00|im_end|>"      not a token, of the same length, and undone by `show`

Masked as well is whatever could become a token together with the text beside it: the beginning of a token at the
text's end ("<|im_"), the end of one at its start ("end|>"), and a whole text that literals of the template complete (a
schema key `think` printed as "<" + key + ">").
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server.checkpoint.template_environment import RawArguments

FIRST_SENTINEL = 0xDC00
MAX_SENTINELS = 0x400
LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class Mask:
    """Mask of one checkpoint: `control` are the texts of its control tokens, `literals` its template's strings."""

    def __init__(self, control: Sequence[str], literals: Iterable[str] = ()) -> None:
        tokens = sorted({text for text in control if not text.isspace()}, key=len, reverse=True)
        letters = sorted({letter for text in tokens for letter in text if not letter.isspace()})
        assert len(letters) <= MAX_SENTINELS, "more different characters in control tokens than sentinels"
        self._hidden = {letter: chr(FIRST_SENTINEL + i) for i, letter in enumerate(letters)}
        self._shown = {ord(sentinel): letter for letter, sentinel in self._hidden.items()}
        self._token = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
        self._starts = {text[:i] for text in tokens for i in range(1, len(text))}
        self._ends = {text[i:] for text in tokens for i in range(1, len(text))}
        self._first = "".join(sorted({text[0] for text in tokens}))
        self._last = "".join(sorted({text[-1] for text in tokens}))
        self._longest = max(map(len, tokens), default=0)
        self._completed = _completed(tokens, list(literals))

    def hide(self, text: str) -> str:
        """The text with what could become a control token masked; of the same length."""
        if not text.isascii():
            text = LONE_SURROGATES.sub("\ufffd", text)
        positions = self._positions(text)
        if not positions:
            return text
        letters = list(text)
        for position in positions:
            letters[position] = self._hidden[letters[position]]
        return "".join(letters)

    def hide_all(self, value: Any) -> Any:
        """A copy of a JSON value with every string masked, keys too."""
        if isinstance(value, RawArguments):
            return RawArguments(self.hide(value))
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_all(item) for item in value]
        return value

    def show(self, text: str) -> str:
        """The text as it was before `hide`."""
        if text.isascii() or not LONE_SURROGATES.search(text):
            return text
        return text.translate(self._shown)

    def _positions(self, text: str) -> set[int]:
        found = set()
        match = self._token.search(text)
        while match:  # searched again from the next character: occurrences may overlap
            found.add(_first_visible(text, match.start()))
            match = self._token.search(text, match.start() + 1)
        core = text.strip()
        for part, shift in {(text, 0), (core, text.find(core))}:
            found |= {shift + i for i in self._unfinished_tokens(part)}
            found |= {shift + i for i in self._finished_tokens(part)}
        if core in self._completed:
            found.add(text.find(core))
        return found

    def _unfinished_tokens(self, text: str) -> Iterable[int]:
        """Positions at which a token begins that the text does not finish."""
        for first in self._first:
            at = text.find(first, max(0, len(text) - self._longest + 1))
            while at >= 0:
                if text[at:] in self._starts:
                    yield _first_visible(text, at)
                at = text.find(first, at + 1)

    def _finished_tokens(self, text: str) -> Iterable[int]:
        """Positions at which a token ends that the text did not begin."""
        for last in self._last:
            at = text.find(last, 0, self._longest - 1)
            while at >= 0:
                if text[: at + 1] in self._ends:
                    yield at
                at = text.find(last, at + 1, self._longest - 1)


def _first_visible(text: str, start: int) -> int:
    while text[start].isspace():
        start += 1
    return start


def _completed(tokens: Sequence[str], literals: Sequence[str]) -> frozenset[str]:
    """Texts that become a token between two literals of the template."""
    middles = set()
    for token in tokens:
        heads = [i for i in range(1, len(token)) if any(literal.endswith(token[:i]) for literal in literals)]
        tails = [i for i in range(1, len(token)) if any(literal.startswith(token[i:]) for literal in literals)]
        middles |= {token[i:j] for i in heads for j in tails if i < j}
    return frozenset(middles)
