"""Load generator for any OpenAI-compatible server, measured at the client: python -m benchmarks.load URL MODEL.

Closed loop: each of `streams` clients sends its next request when its last one has ended. Open loop: requests are sent
at random times of a given rate, whether the server keeps up or not. Tokens are those of the server's `usage`, or the
number of chunks if it sends none; times are the client's. `benchmarks.peers` uses it for every server. The client runs
on the server's machine, so it is kept cheap with aiohttp, msgspec and uvloop.
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

TIMEOUT_S = 600.0
WORDS = ("the", "server", "reads", "one", "token", "after", "another", "and", "writes", "what", "it", "has", "learned")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One streamed reply as its client received it. Times in seconds from sending."""

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
        """Tokens after the first, per second, up to the end: the last token may carry no text."""
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
    """Return text of `count` short words, different for each seed."""
    return " ".join(WORDS[(seed * 7 + i * (seed % 5 + 1)) % len(WORDS)] for i in range(count))


def connect(url: str) -> aiohttp.ClientSession:
    """Return a client of the server at this address, without a limit on connections."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def exchange(client: aiohttp.ClientSession, body: dict[str, Any]) -> Exchange:
    """Send one streamed chat request and read it to the end. Raises RuntimeError on an error status or event."""
    began_s = time.perf_counter()
    arrivals: list[float] = []
    usage: dict[str, Any] = {}
    finish, pieces, total_s = "", [], 0.0
    payload = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.post("/v1/chat/completions", json=payload) as reply:
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
    """Send all bodies from `streams` clients; return the exchanges and the seconds from first to last byte."""
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
    """Send the bodies as a Poisson process of `per_s` requests a second, the same for every server."""
    rng = random.Random(0)
    times_s = list(itertools.accumulate(rng.expovariate(per_s) for _ in bodies))

    async def work(client: aiohttp.ClientSession, at_s: float, body: dict[str, Any]) -> Exchange:
        await asyncio.sleep(at_s)
        return await exchange(client, body)

    async with connect(url) as client:
        began_s = time.perf_counter()
        pairs = zip(times_s, bodies, strict=True)
        done = await asyncio.gather(*(work(client, at_s, body) for at_s, body in pairs))
        return list(done), time.perf_counter() - began_s


def summarise(done: Sequence[Exchange], wall_s: float, streams: int) -> Summary:
    """Return medians and totals of one workload."""
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
