"""The choice of an engine by prefixes and load, and the index behind it."""

import random
from dataclasses import dataclass, field

import pytest

from server.backends.prefix_index import (
    COARSE_BLOCK,
    FINE_BLOCK,
    FINE_TOKENS,
    PrefixIndex,
    choose_by_prefix,
    num_blocks,
    num_tokens,
    prefix_hashes,
)


@dataclass
class Engine:
    name: str
    load: int = 0
    index: PrefixIndex = field(default_factory=lambda: PrefixIndex(10_000))


def prompt(*parts: tuple[int, int]) -> list[int]:
    """A prompt of pieces: an id, and how often it stands there."""
    return [token_id for token_id, times in parts for _ in range(times)]


@pytest.mark.parametrize("length", [0, 31, 32, 33, FINE_TOKENS - 1, FINE_TOKENS, FINE_TOKENS + COARSE_BLOCK, 10_000])
def test_blocks_are_whole_and_cover_the_prompt(length: int) -> None:
    blocks = num_blocks(length)
    left = length - num_tokens(blocks)
    assert len(prefix_hashes([7] * length)) == blocks
    assert 0 <= left < (FINE_BLOCK if length < FINE_TOKENS else COARSE_BLOCK)


def test_hashes_depend_on_every_token_before_them_and_on_the_salt() -> None:
    """Equal blocks behind other beginnings would send a conversation to an engine that holds nothing of it."""
    one, other = prefix_hashes(prompt((1, 64), (5, 64))), prefix_hashes(prompt((2, 64), (5, 64)))
    assert not set(one) & set(other)
    assert prefix_hashes([1] * 64, "a")[0] != prefix_hashes([1] * 64, "b")[0] != prefix_hashes([1] * 64)[0]
    assert prefix_hashes([1] * 64, "x" * 500)[0] != prefix_hashes([1] * 64, "x" * 501)[0]


def test_the_longest_prefix_is_found_whatever_was_forgotten() -> None:
    """The search halves the prompt: one forgotten block in front of a known one would mislead it."""
    draw, index = random.Random(3), PrefixIndex(60)
    chains = [prefix_hashes(prompt((draw.randrange(3), 64), (draw.randrange(3), 96), (k, 200))) for k in range(12)]
    for _ in range(400):
        index.insert(draw.choice(chains))
        assert len(index) <= 60
        for chain in chains:
            known = [one in index._known for one in chain]
            assert index.match(chain) == (known.index(False) if False in known else len(chain))
            assert known == sorted(known, reverse=True)


def test_a_conversation_goes_on_where_its_prefix_is() -> None:
    engines = [Engine("a"), Engine("b"), Engine("c")]
    first = prefix_hashes(prompt((1, 200)))
    engines[1].index.insert(first)
    engines[2].index.insert(first[:2])
    assert choose_by_prefix(engines, prefix_hashes(prompt((1, 200), (2, 50)))).name == "b"


def test_what_many_conversations_begin_with_does_not_gather_them() -> None:
    """All agents went to the engine that had the first one's instructions, whose cache did not hold them."""
    engines = [Engine("a", load=1), Engine("b")]
    engines[0].index.insert(prefix_hashes(prompt((1, 200), (2, 400))))
    assert choose_by_prefix(engines, prefix_hashes(prompt((1, 200), (3, 400)))).name == "b"


def test_an_overloaded_engine_gets_nothing_new_although_it_holds_the_prefix() -> None:
    """Every agent has the same tools: without a bound all of them would wait at the engine that had the first."""
    engines = [Engine("a", load=12), Engine("b", load=2), Engine("c", load=2)]
    hashes = prefix_hashes(prompt((1, 200)))
    engines[0].index.insert(hashes)
    assert choose_by_prefix(engines, hashes).name == "b"
    engines[0].load = 7  # 4 more than the mean: not as bad as a prompt that is computed again
    assert choose_by_prefix(engines, hashes).name == "a"


def test_without_a_prefix_the_least_loaded_engine_with_the_emptiest_cache_is_chosen() -> None:
    engines = [Engine("a"), Engine("b"), Engine("c", load=1)]
    engines[0].index.insert(prefix_hashes(prompt((9, 400))))
    assert choose_by_prefix(engines, prefix_hashes(prompt((1, 200)))).name == "b"
    assert choose_by_prefix(engines, []).name == "b"


def test_some_engine_is_always_within_the_bound() -> None:
    for loads in ([0], [5], [3, 3, 3], [0, 100], [1000] * 100):
        engines = [Engine(str(number), load) for number, load in enumerate(loads)]
        assert choose_by_prefix(engines, []).load == min(loads)
