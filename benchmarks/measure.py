"""Measurements of one running server: the workloads of each checkpoint, every figure named with its unit.

Figures whose names end in `_s`, `_ms` and `_mib` are better when lower, all others when higher. If a server cannot run
a workload, its figures are left out and the reason is printed.
"""

import statistics
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from benchmarks.load import open_loop, summarise, words
from benchmarks.servers import RunningServer
from benchmarks.workloads import chat, forced_call, is_valid, run_agents, run_chats

Figures = dict[str, float]
Workload = Callable[[RunningServer, int], Awaitable[Figures]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Workloads of one checkpoint: `repeated` ones run several times for a median, `once` and `streams` by count."""

    repeated: tuple[Workload, ...]
    once: tuple[Workload, ...]
    streams: tuple[int, ...]
    requests_per_stream: int = 2

    def only(self, names: Collection[str]) -> "Plan":
        """Return the plan restricted to workloads of these names; `streams` names all workloads of that kind."""
        repeated, once = (
            tuple(workload for workload in some if getattr(workload, "__name__", "") in names)
            for some in (self.repeated, self.once)
        )
        return replace(self, repeated=repeated, once=once, streams=self.streams if "streams" in names else ())


async def decode_at_128(server: RunningServer, number: int) -> Figures:
    """Measure one stream of 128 tokens after a prompt of about 128."""
    return await _decode(server, number, 128)


async def decode_at_2000(server: RunningServer, number: int) -> Figures:
    """Measure one stream of 128 tokens after a prompt of about 2000."""
    return await _decode(server, number, 2000)


async def _decode(server: RunningServer, number: int, size: int) -> Figures:
    done, wall_s = await run_chats(server.url, [_body(server, size - 15, 128, 10 * size + number)], 1)
    summary = summarise(done, wall_s, 1)
    return {
        f"decode_at_{size}_tok_per_s": summary.decode_per_s,
        f"decode_at_{size}_gap_p50_ms": summary.gap_p50_ms,
        f"decode_at_{size}_gap_p99_ms": summary.gap_p99_ms,
    }


async def first_token(server: RunningServer, number: int) -> Figures:
    """Measure a new prompt of about 2000 tokens, then another with the same first 1900."""
    head = words(1880, 77 + number) + f" [{number}] "
    cold, _ = await run_chats(server.url, [_body(server, 90, 8, 300 + number, head)], 1)
    warm, _ = await run_chats(server.url, [_body(server, 90, 8, 400 + number, head)], 1)
    return {
        "first_token_2000_cold_s": cold[0].first_token_s,
        "first_token_2000_known_1900_s": warm[0].first_token_s,
    }


async def forced(server: RunningServer, number: int) -> Figures:
    """Measure a named call with five arguments among twenty cached tools, from sending to its end."""
    done = await forced_call(server.url, server.model, number)
    if not is_valid(done.text):
        raise RuntimeError(f"no valid call: {done.text[:80]!r} ({done.finish})")
    return {"forced_call_s": done.total_s}


async def at_a_rate(server: RunningServer, number: int) -> Figures:
    """Measure forty requests at random times, one a second, each of 100 tokens in and 32 out."""
    bodies = [_body(server, 85, 32, 900 + index) for index in range(40)]
    summary = summarise(*await open_loop(server.url, bodies, per_s=1.0), streams=0)
    return {
        "one_a_second_first_token_p50_s": summary.first_token_s,
        "one_a_second_first_token_p99_s": summary.first_token_p99_s,
        "one_a_second_gap_p99_ms": summary.gap_p99_ms,
    }


async def forced_agents(server: RunningServer, number: int) -> Figures:
    """Measure four concurrent agents with ten forced calls each."""
    return await _agents(server, number, forced=True)


async def free_agents(server: RunningServer, number: int) -> Figures:
    """Measure four concurrent agents of ten rounds each in which the model decides whether to call."""
    return await _agents(server, number, forced=False)


async def _agents(server: RunningServer, number: int, *, forced: bool) -> Figures:
    name = "agents_forced" if forced else "agents_auto"
    names = range(8 * number + 4 * forced, 8 * number + 4 * forced + 4)  # new ones: earlier agents are cached
    runs, wall_s = await run_agents(server.url, server.model, names, forced=forced)
    rounds = [seconds for run in runs for seconds in run.round_s]
    if not rounds:
        raise RuntimeError("no valid call in any round")
    return {
        f"{name}_round_s": statistics.median(rounds),
        f"{name}_first_argument_s": statistics.median(s for run in runs for s in run.first_argument_s),
        f"{name}_valid_share": len(rounds) / sum(run.rounds for run in runs),
        f"{name}_cached_share": sum(run.cached_tokens for run in runs) / sum(run.prompt_tokens for run in runs),
        f"{name}_tok_per_s": sum(run.completion_tokens for run in runs) / wall_s,
    }


PLANS: dict[str, Plan] = {
    "0.6B": Plan((decode_at_128, decode_at_2000, first_token, forced), (at_a_rate, forced_agents), (8, 16, 64)),
    "tiny": Plan((), (), (32,), 4),
    "hybrid": Plan((decode_at_128, first_token), (), (8,)),
    "built-in": Plan((decode_at_128, forced, forced_agents, free_agents), (), (32,), 4),
}


async def measure(server: RunningServer, plan: Plan, repeat: int) -> Figures:
    """Run every workload of the plan on one running server and return medians of `repeat` runs."""
    figures: Figures = {"start_s": server.start_s}
    await run_chats(server.url, [_body(server, 50, 16, 999)], 1)  # warm-up
    for workload in plan.repeated:
        figures |= await _median(server, workload, repeat)
    for count in plan.streams:
        figures |= await _median(
            server, _streams(count, plan.requests_per_stream if count <= 32 else 1), repeat if count <= 32 else 1
        )
    for workload in plan.once:
        figures |= await _median(server, workload, 1)
    figures["memory_mib"] = server.memory_mib()
    return figures


def _body(server: RunningServer, prompt_words: int, max_tokens: int, seed: int, head: str = "") -> dict[str, Any]:
    body = chat(server.model, prompt_words, max_tokens, seed, head)
    return {name: value for name, value in body.items() if name not in server.refuses}


def _streams(count: int, requests_each: int) -> Workload:
    async def run(server: RunningServer, number: int) -> Figures:
        bodies = [_body(server, 100, 128, 5000 + count * 100 + i) for i in range(count * requests_each)]
        summary = summarise(*await run_chats(server.url, bodies, count), count)
        return {
            f"streams_{count}_tok_per_s": summary.throughput_per_s,
            f"streams_{count}_gap_p50_ms": summary.gap_p50_ms,
            f"streams_{count}_gap_p99_ms": summary.gap_p99_ms,
        }

    return run


async def _median(server: RunningServer, workload: Workload, repeat: int) -> Figures:
    try:
        runs = [await workload(server, number) for number in range(repeat)]
    except (RuntimeError, ValueError, TimeoutError, aiohttp.ClientError) as error:
        print(f"  {server.name}: {getattr(workload, '__name__', workload)}: {error!r}", file=sys.stderr)
        return {}
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}
