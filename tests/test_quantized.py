"""A server with weights of four bits and a cache of eight.

Forced calls are valid, and greedy replies the same alone and in a crowd.
"""

from collections.abc import Iterator

import pytest

from tests.forced_calls import calls_alone_and_in_a_crowd, invalid_calls
from tests.live import Live, live_server


@pytest.fixture(scope="module")
def quantized() -> Iterator[Live]:
    """The built-in model, whose weights are plain, in four bits; its keys and values in eight."""
    with live_server("--quantize", "int4", "--kv-dtype", "int8", "--threads", "2") as server:
        yield server


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_forced_calls_are_valid(quantized: Live, count: int) -> None:
    assert invalid_calls(quantized, count) == []


def test_greedy_replies_are_the_same_alone_and_in_a_crowd(quantized: Live) -> None:
    alone, crowd = calls_alone_and_in_a_crowd(quantized)
    assert crowd == alone
