"""First two laws of a dialect, on 400 random replies each (--long: ten thousand), half of them damaged."""

import random

import pytest

from server.dialects.base import Dialect
from server.dialects.registry import DIALECTS
from server.reply.text import TextStream, Vocabulary
from tests.checkpoints import qwen_vocabulary
from tests.dialects import fuzz
from tests.dialects.parse_helpers import read

CASES, LONG_CASES = 400, 10_000
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


@every_dialect
def test_any_pieces_give_the_same_events_and_nothing_is_lost(dialect: Dialect, is_long: bool) -> None:
    fuzz.run(dialect, LONG_CASES if is_long else CASES, seed=0)


@every_dialect
def test_one_token_at_a_time_gives_the_same_events_across_split_characters(dialect: Dialect, is_long: bool) -> None:
    """Case 3: ids to text to events, as the server does, where half a character can be a token."""
    tokenizer = qwen_vocabulary()
    vocabulary = Vocabulary(tokenizer, kept=dialect.markers)
    for case in range(300 if is_long else 100):
        reply = fuzz.damaged_reply(dialect.name, random.Random(f"tokens {dialect.name} {case}"))
        stream = TextStream(vocabulary)
        pieces = [stream.feed(token_id) for token_id in tokenizer.encode(reply, add_special_tokens=False).ids]
        text = "".join(pieces)
        assert read(dialect, fuzz.TOOLS, pieces) == read(dialect, fuzz.TOOLS, [text]), reply
