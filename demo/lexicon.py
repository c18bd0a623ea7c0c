"""Training data of the tokenizer: rendered dialogues for frequent words, and bare words for word pieces."""

import random
import re

from tokenizers import Tokenizer

from demo import lists
from demo.dialogues import Author, read_smalltalk
from demo.everyday import known_words, read_everyday
from demo.render import render
from demo.tokenizer import BOILERPLATE, build_tokenizer
from demo.words import World

VOCABULARY_SIZE = 2048


def train_tokenizer(seed: int, num_dialogues: int = 4000) -> Tokenizer:
    """Train the tokenizer on words of the training half only."""
    world = World("train", random.Random(f"tokenizer-{seed}"), known_words())
    author = Author(world, read_everyday(), read_smalltalk())
    texts = [without_boilerplate("".join(piece.text for piece in render(author.write()))) for _ in range(num_dialogues)]
    return build_tokenizer(texts, write_lexicon(world, texts), to_be_copied(), VOCABULARY_SIZE)


def write_lexicon(world: World, texts: list[str]) -> list[str]:
    """Return bare words: many invented ones, so that the pieces are syllables, and those of the dialogues."""
    lexicon = [world.invented() for _ in range(60_000)]
    lexicon += [word.capitalize() for word in lexicon[:20_000]]
    real = [*lists.NOUNS, *lists.ADJECTIVES, *lists.PARAMETER_NOUNS, *lists.CITIES, *lists.FIRST_NAMES]
    lexicon += [word for word in real if world.allows(word)] * 12
    lexicon += sorted(known_words()) * 60
    for text in texts[:1500]:
        lexicon += re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    return lexicon


def to_be_copied() -> frozenset[str]:
    """Return lower-case words that are always split into pieces, so that a copy has the tokens of its original."""
    people = (lists.FIRST_NAMES, lists.LAST_NAMES)
    listed = (lists.NOUNS, lists.ADJECTIVES, lists.PARAMETER_NOUNS, lists.CITIES, lists.COUNTRIES, *people)
    return frozenset(word.lower() for words in listed for word in words) - known_words()


def without_boilerplate(text: str) -> str:
    """Remove the strings that have a token of their own."""
    for literal in sorted(BOILERPLATE, key=len, reverse=True):
        text = text.replace(literal, "\n") if len(literal) > 4 else text
    return text
