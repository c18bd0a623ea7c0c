"""Drives any OpenAI-compatible server and measures what a client sees: python -m benchmarks.load URL MODEL.

Closed loop: each of `streams` clients sends its next request when its last one has ended. Open loop: requests come at
random moments of a given rate, whether the server keeps up or not. Tokens are counted by the server's own `usage`, or
by arrivals where it sends none; times are the client's. Used by `benchmarks.peers` for every server alike. What the
client computes is taken from the machine that the server has, so it reads by aiohttp, msgspec and uvloop.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import msgspec
import uvloop

PATIENCE_S = 600.0
WORDS = ("the", "server", "reads", "one", "token", "after", "another", "and", "writes", "what", "it", "has", "learned")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One streamed reply as its client saw it. Times in seconds from sending."""

    first_token_s: float
    total_s: float
    gaps_s: tuple[float, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finish: str
    text: str = field(repr=False, default="")

    @property
    def decode_per_s(self) -> float:
        """Tokens after the first by the time they took; the last may show in no text, so the end counts."""
        return (self.completion_tokens - 1) / max(self.total_s - self.first_token_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the exchanges of one workload."""

    requests: int
    streams: int
    first_token_s: float
    first_token_p99_s: float
    gap_p50_ms: float
    gap_p99_ms: float
    decode_per_s: float
    throughput_per_s: float
    cached_share: float


def words(count: int, seed: int) -> str:
    """Plain text of `count` short words, different for each seed."""
    return " ".join(WORDS[(seed * 7 + i * (seed % 5 + 1)) % len(WORDS)] for i in range(count))


def connect(url: str) -> aiohttp.ClientSession:
    """A client of the server at this address, with as many connections as are asked for."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def exchange(client: aiohttp.ClientSession, body: dict[str, Any]) -> Exchange:
    """Send one chat request with `stream` and read it to the end; raises on any error."""
    began_s = time.perf_counter()
    arrivals: list[float] = []
    usage: dict[str, Any] = {}
    finish, pieces, total_s = "", [], 0.0
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.post("/v1/chat/completions", json=asked) as reply:
        if reply.status != 200:
            raise RuntimeError(f"{reply.status}: {(await reply.text())[:300]}")
        async for chunk in _chunks(reply):
            if "error" in chunk:
                raise RuntimeError(json.dumps(chunk))
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", []):
                delta = choice.get("delta") or {}
                text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
                text += "".join(
                    (call.get("function") or {}).get("arguments") or "" for call in delta.get("tool_calls") or []
                )
                if text or delta.get("tool_calls"):
                    arrivals.append(time.perf_counter() - began_s)
                    pieces.append(text)
                if choice.get("finish_reason"):
                    finish, total_s = choice["finish_reason"], time.perf_counter() - began_s
    total_s = total_s or time.perf_counter() - began_s
    details = usage.get("prompt_tokens_details") or {}
    return Exchange(
        arrivals[0] if arrivals else total_s,
        total_s,
        tuple(b - a for a, b in itertools.pairwise(arrivals)),
        usage.get("prompt_tokens", 0),
        usage.get("completion_tokens") or len(arrivals),
        details.get("cached_tokens") or 0,
        finish,
        "".join(pieces),
    )


async def closed_loop(url: str, bodies: Sequence[dict[str, Any]], streams: int) -> tuple[list[Exchange], float]:
    """All bodies by `streams` clients; the exchanges and the seconds from the first to the last byte."""
    waiting = list(reversed(bodies))
    done: list[Exchange] = []

    async def work(client: aiohttp.ClientSession) -> None:
        while waiting:
            done.append(await exchange(client, waiting.pop()))

    async with connect(url) as client:
        began_s = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(streams)))
        return done, time.perf_counter() - began_s


async def open_loop(url: str, bodies: Sequence[dict[str, Any]], per_s: float) -> tuple[list[Exchange], float]:
    """The bodies at random moments, `per_s` in a second on average (a Poisson process, the same for every server)."""
    rng = random.Random(0)
    moments = list(itertools.accumulate(rng.expovariate(per_s) for _ in bodies))

    async def work(client: aiohttp.ClientSession, moment_s: float, body: dict[str, Any]) -> Exchange:
        await asyncio.sleep(moment_s)
        return await exchange(client, body)

    async with connect(url) as client:
        began_s = time.perf_counter()
        pairs = zip(moments, bodies, strict=True)
        done = await asyncio.gather(*(work(client, moment_s, body) for moment_s, body in pairs))
        return list(done), time.perf_counter() - began_s


def summarise(done: Sequence[Exchange], wall_s: float, streams: int) -> Summary:
    """Medians and totals of one workload."""
    gaps = sorted(gap for item in done for gap in item.gaps_s) or [0.0]
    firsts = sorted(item.first_token_s for item in done)
    prompt = sum(item.prompt_tokens for item in done) or 1
    return Summary(
        requests=len(done),
        streams=streams,
        first_token_s=statistics.median(firsts),
        first_token_p99_s=firsts[min(len(firsts) - 1, int(len(firsts) * 0.99))],
        gap_p50_ms=1e3 * gaps[len(gaps) // 2],
        gap_p99_ms=1e3 * gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))],
        decode_per_s=statistics.median(item.decode_per_s for item in done),
        throughput_per_s=sum(item.completion_tokens for item in done) / wall_s,
        cached_share=sum(item.cached_tokens for item in done) / prompt,
    )


async def _chunks(reply: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in reply.content:
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield msgspec.json.decode(data)


def main() -> None:
    """Measure one server with one workload and print the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="for example http://127.0.0.1:8000")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--requests", type=int, default=3)
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()
    bodies = [
        {
            "model": options.model,
            "messages": [{"role": "user", "content": words(options.prompt_words, seed)}],
            "max_tokens": options.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        for seed in range(options.requests)
    ]
    done, wall_s = uvloop.run(closed_loop(options.url, bodies, options.streams))
    print(json.dumps(asdict(summarise(done, wall_s, options.streams)), indent=1))


if __name__ == "__main__":
    main()
