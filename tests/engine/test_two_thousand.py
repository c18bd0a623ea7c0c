"""Many concurrent requests to a real server whose KV cache holds four sequences: every one completes."""

import asyncio
import random

import httpx
import pytest

from tests.live import Live, live_server

NUM_REQUESTS = 2000
CLIENTS = 64
WINDOW = 256
OPTIONS = ("--max-model-len", str(WINDOW), "--kv-cache-tokens", str(4 * WINDOW), "--threads", "1")


async def ask(client: httpx.AsyncClient, number: int) -> tuple[int, str]:
    """Status and finish of one short chat; prompts differ in length and share their beginnings."""
    chance = random.Random(number)
    words = " ".join(chance.choices(("red", "green", "blue", "one", "two"), k=chance.randint(1, 60)))
    body = {
        "model": "any",
        "messages": [{"role": "user", "content": f"Say {words}"}],
        "max_tokens": chance.randint(1, 8),
        "seed": number,
        "stream": False,
    }
    reply = await client.post("/v1/chat/completions", json=body)
    if reply.status_code != 200:
        return reply.status_code, reply.text
    answer = reply.json()
    assert answer["usage"]["completion_tokens"] <= body["max_tokens"]
    return 200, answer["choices"][0]["finish_reason"]


async def ask_all(server: Live, num_requests: int) -> list[tuple[int, str]]:
    """All requests from `CLIENTS` clients at once."""
    numbers = iter(range(num_requests))
    outcomes: list[tuple[int, str]] = []

    async def work(client: httpx.AsyncClient) -> None:
        for number in numbers:
            outcomes.append(await ask(client, number))

    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        await asyncio.gather(*(work(client) for _ in range(CLIENTS)))
    return outcomes


@pytest.mark.long  # tests/test_faults.py has a crowd on a small cache
@pytest.mark.timeout(900)  # half a minute on two idle cores, several on busy ones
async def test_many_requests_through_a_cache_of_four_are_all_answered() -> None:
    with live_server(*OPTIONS, "--allow-any-model") as server:
        outcomes = await ask_all(server, NUM_REQUESTS)
        assert len(outcomes) == NUM_REQUESTS
        assert [outcome for outcome in outcomes if outcome[0] != 200] == []
        assert {finish for _, finish in outcomes} <= {"stop", "length"}
        assert server.process.poll() is None
