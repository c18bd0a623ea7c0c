"""Random words, and the rule that splits them into training and held-out halves.

`is_held_out(word)` is the only rule: a word (noun, name, value, invented or real) whose checksum falls in one of six
classes is used for evaluation only. Words of the hand-written tools of everyday.txt are always training words.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Literal

from demo.lists import (
    ADJECTIVES,
    CITIES,
    COUNTRIES,
    FIRST_NAMES,
    LAST_NAMES,
    NOUNS,
    PARAMETER_NOUNS,
    TWO_WORD_CITIES,
    split_words,
)

Split = Literal["train", "heldout"]

ONSETS = split_words("""
b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sn sp st t th tr v w y z
""")
VOWELS = split_words("a e i o u ai ee ia oa oo ou ei")
CODAS = ["", "", "", "b", "ck", "d", "f", "l", "ll", "m", "n", "nd", "ng", "p", "r", "rk", "s", "st", "t", "x", "zz"]


def is_held_out(word: str) -> bool:
    """Return whether the word is used for evaluation only; case is ignored."""
    return zlib.crc32(word.lower().encode()) % 6 == 0


LONG = 100  # length of lists from which a `corner` takes a sixth


@dataclass(frozen=True, slots=True)
class World:
    """Random words of one half; equal seeds give equal words."""

    split: Split
    rng: random.Random
    known: frozenset[str]  # lower-case words of the hand-written tools: never held out
    corner: int = 0  # not 0: only a sixth of the words, a different one for each number, so that tools share words

    def allows(self, word: str) -> bool:
        held_out = is_held_out(word) and word.lower() not in self.known
        return held_out == (self.split == "heldout")

    def pick(self, words: list[str] | tuple[str, ...]) -> str:
        """Return one of the words that belongs to this half."""
        while True:
            word = self.rng.choice(words)
            available = not self.corner or len(words) < LONG or zlib.crc32(f"{self.corner}{word}".encode()) % 6 == 0
            if available and self.allows(word):
                return word

    def invented(self) -> str:
        """Return an invented word in lower case."""
        while True:
            word = self._syllables() if self.rng.random() < 0.93 else self._letters()
            if self.allows(word):
                return word

    def noun(self, invented_share: float = 0.35) -> str:
        return self.invented() if self.rng.random() < invented_share else self.pick(NOUNS)

    def adjective(self) -> str:
        return self.pick(ADJECTIVES)

    def parameter_noun(self) -> str:
        roll = self.rng.random()
        if roll < 0.2:
            return self.invented()
        return self.pick(PARAMETER_NOUNS) if roll < 0.85 else self.pick(NOUNS)

    def place(self) -> str:
        roll = self.rng.random()
        if roll < 0.5:
            return self.pick(CITIES)
        if roll < 0.6:
            return self.pick(TWO_WORD_CITIES)
        if roll < 0.65:
            return self.pick(COUNTRIES)
        if roll < 0.7:
            return f"{self.pick(CITIES)}, {self.pick(COUNTRIES)}"
        return self.invented().capitalize()

    def person(self) -> str:
        roll = self.rng.random()
        first = self.pick(FIRST_NAMES) if roll < 0.6 else self.invented().capitalize()
        if self.rng.random() < 0.35:
            last = self.pick(LAST_NAMES) if self.rng.random() < 0.5 else self.invented().capitalize()
            return f"{first} {last}"
        return first

    def whole_number(self) -> int:
        while True:
            number = self.rng.choice((self.rng.randint(1, 12), self.rng.randint(2, 99), self.rng.randint(10, 9999)))
            if number < 10 or self.allows(str(number)):
                return number

    def decimal(self) -> float:
        while True:
            number = round(self.rng.uniform(0, self.rng.choice((2, 20, 500))), self.rng.choice((1, 1, 2)))
            if self.allows(str(number)) and number != int(number):
                return number

    def _syllables(self) -> str:
        choose = self.rng.choice
        count = self.rng.choice((1, 2, 2, 2, 3, 3))
        return "".join(choose(ONSETS) + choose(VOWELS) + choose(CODAS if i == count - 1 else ("", "", "n", "r", "l"))
                       for i in range(count))  # fmt: skip

    def _letters(self) -> str:
        return "".join(self.rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(self.rng.randint(3, 5)))
