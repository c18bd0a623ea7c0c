"""Engines elsewhere, on this machine: python -m benchmarks.engines

Four figures, a line of JSON each: the throughput of one engine elsewhere against the one that `toolwire serve` starts
itself; that of two servers in front of one engine against one server; how many tokens of agents' prompts two engines
find cached, behind the router and behind a client that takes two servers in turn; the longest pause of streams whose
engine is killed.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.checkpoint import make_checkpoint
from benchmarks.engine_faults import requests, stream_all
from benchmarks.load import closed_loop, connect, exchange, summarise, words
from tests.live import Live, live_engine, live_server

STREAMS = 32
PARTS = ("throughput", "servers", "agents", "killed")
# Two engines hold all agents' conversations together, one alone does not, from the first round on: 520 tokens that all
# share, and 2,080 (first round) to 2,580 (last) of each agent's own. An odd number: in turn, each agent's rounds change
# places.
AGENTS, AT_ONCE, ROUNDS, AGENT_CACHE = 15, 6, 5, ("--kv-cache-tokens", "20480")
SHARED_WORDS, OWN_WORDS, ROUND_WORDS, REPLY_TOKENS = 250, 1_000, 40, 32


@contextmanager
def cluster(num_engines: int, *options: str, model: Sequence[str] = ()) -> Iterator[tuple[Live, list[Live]]]:
    """A server and its engines."""
    with ExitStack() as running:
        engines = [running.enter_context(live_engine(*model, *options)) for _ in range(num_engines)]
        addresses = [part for engine in engines for part in ("--engine", engine.url)]
        yield running.enter_context(live_server(*model, *addresses)), engines


def throughput(repeat: int) -> dict[str, Any]:
    """Tokens a second with 32 streams, a local and a remote engine in turn."""
    found: dict[str, list[float]] = {"local": [], "remote": []}
    with tempfile.TemporaryDirectory() as folder:
        model = ("--model", str(make_checkpoint("tiny", Path(folder) / "tiny")), "--served-model-name", "tiny")
        for _ in range(repeat):
            with live_server(*model) as local:
                found["local"].append(_tokens_per_s(local))
            with cluster(1, model=model[:2]) as (server, _):
                found["remote"].append(_tokens_per_s(server))
    local_per_s, remote_per_s = (statistics.median(found[name]) for name in ("local", "remote"))
    return {"part": "throughput", "local_tok_per_s": round(local_per_s), "remote_tok_per_s": round(remote_per_s),
            "remote_over_local": round(remote_per_s / local_per_s, 3), "runs": found}  # fmt: skip


def _tokens_per_s(server: Live) -> float:
    bodies = _bodies(server.client().models.list().data[0].id)
    asyncio.run(closed_loop(server.url, bodies[:STREAMS], STREAMS))
    done, wall_s = asyncio.run(closed_loop(server.url, bodies, STREAMS))
    return summarise(done, wall_s, STREAMS).throughput_per_s


def _bodies(model: str) -> list[dict[str, Any]]:
    common = {"model": model, "max_tokens": 128, "temperature": 0, "ignore_eos": True}
    return [{**common, "messages": [{"role": "user", "content": words(60, seed)}]} for seed in range(4 * STREAMS)]


def servers(repeat: int) -> dict[str, Any]:
    """Tokens a second of one engine with 32 streams through one server and through two, in turn; and who computes.

    `server_share`: processor time of the one server, as a share of the time that the streams take.
    """
    found: dict[str, list[float]] = {"one": [], "two": []}
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        model = ("--model", str(make_checkpoint("tiny", Path(folder) / "tiny")))
        engine = running.enter_context(live_engine(*model))
        named = (*model, "--engine", engine.url, "--served-model-name", "tiny")
        both = [running.enter_context(live_server(*named)) for _ in range(2)]
        process = psutil.Process(both[0].process.pid)
        for _ in range(repeat):
            before_s, began_s = sum(process.cpu_times()[:2]), time.monotonic()
            found["one"].append(asyncio.run(_tokens_per_s_of(both[:1])))
            shares.append((sum(process.cpu_times()[:2]) - before_s) / (time.monotonic() - began_s))
            found["two"].append(asyncio.run(_tokens_per_s_of(both)))
    one_per_s, two_per_s = (statistics.median(found[name]) for name in ("one", "two"))
    return {"part": "servers", "one_tok_per_s": round(one_per_s), "two_tok_per_s": round(two_per_s),
            "two_over_one": round(two_per_s / one_per_s, 3), "server_share": round(statistics.median(shares), 3),
            "runs": found}  # fmt: skip


async def _tokens_per_s_of(servers: Sequence[Live]) -> float:
    """Of the same requests, divided among these servers."""
    each = STREAMS // len(servers)
    began_s = time.monotonic()
    runs = await asyncio.gather(
        *(closed_loop(one.url, _bodies("tiny")[number :: len(servers)], each) for number, one in enumerate(servers))
    )
    return sum(item.completion_tokens for done, _ in runs for item in done) / (time.monotonic() - began_s)


def agents() -> dict[str, Any]:
    """The share of prompt tokens that are found cached behind the first round."""
    with cluster(2, *AGENT_CACHE) as (server, _):
        routed = asyncio.run(_cached_share([server.url]))
    with live_server(*AGENT_CACHE) as one, live_server(*AGENT_CACHE) as other:
        in_turn = asyncio.run(_cached_share([one.url, other.url]))
    return {"part": "agents", "cached_share_routed": round(routed, 3), "cached_share_in_turn": round(in_turn, 3)}


async def _cached_share(urls: Sequence[str]) -> float:
    """Of all agents together; the requests go to the addresses in turn."""
    prompt = cached = num_sent = 0

    async def live(number: int) -> None:
        nonlocal prompt, cached, num_sent
        messages = [
            {"role": "system", "content": words(SHARED_WORDS, 1)},
            {"role": "user", "content": f"Agent {number}. {words(OWN_WORDS, number + 2)}"},
        ]
        for round_number in range(ROUNDS):
            num_sent += 1
            body = {"model": "toolwire-demo", "messages": messages, "max_tokens": REPLY_TOKENS, "temperature": 0}
            client = clients[num_sent % len(clients)]
            async with places:
                done = await exchange(client, body)
            if round_number:
                prompt += done.prompt_tokens
                cached += done.cached_tokens
            messages.append({"role": "assistant", "content": done.text})
            messages.append({"role": "user", "content": words(ROUND_WORDS, number * ROUNDS + round_number)})

    clients, places = [connect(url) for url in urls], asyncio.Semaphore(AT_ONCE)
    try:
        await asyncio.gather(*(live(number) for number in range(AGENTS)))
    finally:
        for client in clients:
            await client.close()
    return cached / prompt


def killed() -> dict[str, Any]:
    """Streams in the middle of which one of two engines is killed, against what they would have been."""
    options = ("--dtype", "float32")
    bodies = requests(STREAMS)
    with live_server(*options) as local:
        expected = asyncio.run(stream_all(local, bodies, None))
    with cluster(2, *options) as (server, engines):
        found = asyncio.run(stream_all(server, bodies, engines[0].process.kill))
    same = sum(
        (one.text, one.logprobs, one.usage) == (whole.text, whole.logprobs, whole.usage)
        for one, whole in zip(found, expected, strict=True)
    )
    return {"part": "killed", "streams": STREAMS, "complete": sum(one.end == "complete" for one in found), "same": same,
            "longest_pause_s": round(max(one.longest_pause_s for one in found), 2)}  # fmt: skip


def main() -> None:
    """Print one line a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args()
    for part in chosen.parts.split(","):
        match part:
            case "throughput":
                found = throughput(chosen.repeat)
            case "servers":
                found = servers(chosen.repeat)
            case "agents":
                found = agents()
            case "killed":
                found = killed()
            case _:
                parser.error(f"{part} is none of {', '.join(PARTS)}")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
