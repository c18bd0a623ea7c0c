"""A server whose model is one GGUF file, with codes of many types."""

from collections.abc import Iterator

import pytest

from tests.forced_calls import calls_alone_and_in_a_crowd, invalid_calls
from tests.gguf.written import gguf_checkpoint
from tests.live import Live, live_server


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    """Both processes read the file: prompts and grammars have the same ids."""
    with live_server("--model", str(gguf_checkpoint("qwen3") / "model.gguf"), "--kv-cache-tokens", "16384") as server:
        yield server


@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_forced_calls_are_valid(served: Live, count: int) -> None:
    assert [model.id for model in served.client().models.list()] == ["model"]
    assert invalid_calls(served, count, "model") == []


def test_greedy_replies_are_the_same_alone_and_in_a_crowd(served: Live) -> None:
    """Codes are multiplied in other tiles for one token than for many."""
    alone, crowd = calls_alone_and_in_a_crowd(served, "model")
    assert crowd == alone


def test_the_log_says_what_became_of_each_type(served: Live) -> None:
    assert "Q8_0: codes as stored" in served.output() and "F32: numbers of bfloat16" in served.output()
