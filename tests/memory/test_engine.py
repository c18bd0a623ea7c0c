"""Somebody else takes the card's memory while real requests run: the budget of a real engine is tied to a fake NVML.

The model computes on the CPU; `--memory-probe nvml` makes the guard watch the first visible card instead of main
memory, so that the test decides what is free.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.memory.budget import headroom
from tests.checkpoints import tiny_checkpoint
from tests.live import Live, live_server
from tests.memory.fake_nvml import Card, FakeNvml

MIB = 1 << 20
TOTAL, OWN = 512 * MIB, 100 * MIB
OPTIONS = [
    "--memory-probe",
    "nvml",
    "--block-size",
    "16",
    "--kv-cache-tokens",
    "16384",
    "--max-batch-tokens",
    "256",
    "--max-running",
    "4",
    "--threads",
    "1",
]
REPLY = 2000  # longer than a second, between two heartbeats


@dataclass(frozen=True)
class Shared:
    """A server, and the card that it shares with the test."""

    server: Live
    nvml: FakeNvml
    card: Card

    def memory(self) -> dict[str, Any]:
        report: dict[str, Any] = httpx.get(f"{self.server.url}/v1/memory", timeout=10).json()
        return report

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.server.url}/metrics", timeout=10).text
        found = re.search(rf"^toolwire_{name}(?:_total)? (\S+)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def until(self, wanted: Callable[[], bool], what: str, seconds: float = 20) -> None:
        deadline_s = time.monotonic() + seconds
        while not wanted():
            assert time.monotonic() < deadline_s, f"{what}: {self.memory()}"
            time.sleep(0.02)

    def take_all_but(self, blocks: int) -> None:
        """Another process leaves room for this many blocks; returns when the engine keeps to it."""
        memory = self.memory()
        left = blocks * memory["block_bytes"] + headroom(TOTAL) // 2 if blocks else 0
        wanted = memory["fixed_bytes"] + left
        self.nvml.take(self.card, TOTAL - wanted + OWN - self.card.used)
        self.until(lambda: self.memory()["allowed_blocks"] <= blocks, "fewer blocks are allowed")

    def give_everything_back(self) -> None:
        self.nvml.take(self.card, OWN - self.card.used)

    def ask(self, text: str, max_tokens: int, **fields: Any) -> httpx.Response:
        body = {"model": "qwen3", "temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}
        messages = [{"role": "user", "content": text}]
        return httpx.post(
            f"{self.server.url}/v1/chat/completions", json={**body, "messages": messages, **fields}, timeout=120
        )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    nvml = FakeNvml(tmp_path_factory.mktemp("nvml"))
    card = nvml.add_card("GPU-aaaaaaaa-0000-0000-0000-000000000001", TOTAL, used=OWN, own=OWN)
    model = str(tiny_checkpoint("qwen3"))
    with live_server("--model", model, "--no-self-test", *OPTIONS, **nvml.environment) as server:
        yield Shared(server, nvml, card)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_the_cache_shrinks_then_nobody_is_admitted_then_the_newest_give_way_and_all_recover(shared: Shared) -> None:
    question = "Tell me everything about rivers."
    expected = text_of(shared.ask(question, REPLY))
    for number in range(3):
        text_of(shared.ask(f"{number} " + "one two three four " * 400, 1))
    calm = shared.memory()
    assert calm["level"] == "calm" and calm["devices"][0]["source"] == "nvml" and calm["devices"][0]["total"] == TOTAL
    shared.until(lambda: shared.metric("kv_blocks_cached") > 220, "the cache is full of prompts")

    shared.take_all_but(200)
    shared.until(lambda: shared.metric("kv_blocks_cached") <= 200, "the cache shrinks")
    assert shared.memory()["level"] == "tight"
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(shared.ask, question, REPLY)
        shared.until(lambda: shared.metric("sequences_running") == 1, "what fits is still admitted")
        assert shared.metric("engine_preemptions") == 0

        shared.take_all_but(0)
        shared.until(lambda: shared.metric("engine_preemptions") >= 1, "the running request gives way")
        assert shared.memory()["level"] in ("tight", "critical") and shared.metric("sequences_running") == 0
        assert shared.metric("kv_blocks_cached") == shared.metric("kv_blocks_used") == 0
        late = pool.submit(shared.ask, question, 3)
        shared.until(lambda: shared.metric("sequences_waiting") == 2, "the late request waits")
        assert not late.done() and not running.done()

        shared.give_everything_back()
        shared.until(lambda: shared.memory()["level"] == "calm", "it recovers by itself")
        assert text_of(running.result(60)) == expected
        assert expected.startswith(text_of(late.result(60)))
    events = [text for _, text in shared.memory()["events"]]
    assert "calm -> tight" in events and any("caches released" in text for text in events)
    assert events[-1] == "tight -> calm" and shared.memory()["ooms"] == 0


def test_requests_come_through_while_memory_comes_and_goes(shared: Shared) -> None:
    """Eight clients, and another process that allocates and frees: no request is lost, and no reply differs."""
    expected = {n: text_of(shared.ask(f"Count to {n}.", 40)) for n in range(8)}
    over = threading.Event()

    def other_process() -> int:
        """Allocates all but a little, waits, frees it, waits until that is used."""
        rounds = 0
        while not over.is_set():
            shared.take_all_but(32 * (rounds % 2))
            over.wait(0.3)
            shared.give_everything_back()
            shared.until(lambda: over.is_set() or shared.memory()["level"] == "calm", "it recovers by itself")
            rounds += 1
        return rounds

    with ThreadPoolExecutor(9) as pool:
        other = pool.submit(other_process)
        asked: list[Future[httpx.Response]] = [pool.submit(shared.ask, f"Count to {i % 8}.", 40) for i in range(16)]
        try:
            replies = [text_of(one.result(60)) for one in asked]
        finally:
            over.set()
        assert other.result(30) >= 1
    assert replies == [expected[i % 8] for i in range(16)]
    shared.until(lambda: shared.memory()["level"] == "calm", "it recovers by itself")


def test_a_lost_card_does_not_end_the_engine(shared: Shared) -> None:
    shared.card.fault = 15
    shared.until(lambda: not shared.memory()["devices"][0]["healthy"], "the fault is seen")
    assert text_of(shared.ask("Are you there?", 3))
    assert shared.memory()["devices"][0]["note"] == "NVML: GPU is lost"
    shared.card.fault = 0
    shared.until(lambda: bool(shared.memory()["devices"][0]["healthy"]), "the card is read again")
    assert shared.server.output().count("cannot be read") == 1


@pytest.mark.long  # tests/test_serve.py has it for main memory
def test_a_card_that_is_too_small_is_refused_with_the_table(tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path)
    nvml.add_card("GPU-aaaaaaaa-0000-0000-0000-000000000001", 200 * MIB, used=100 * MIB, own=100 * MIB)
    model = str(tiny_checkpoint("qwen3"))
    server = live_server("--model", model, "--no-self-test", *OPTIONS, **nvml.environment)
    with pytest.raises(AssertionError, match="does not fit") as caught, server:
        raise RuntimeError("it started")
    text = str(caught.value)
    assert "the server exited with 2" in text and "KV per 1k tokens" in text and "what would make it fit" in text
