"""Simulation of routing: 100 engines, 10,000 agents, the router's real code: python -m benchmarks.routing

`RoutingBackend` and everything beneath it is the server's own, on an event loop whose clock is simulated. An engine
keeps time instead of computing: prompts one after another, as fast as measured, but for the tokens that its cache
holds; then a token a step, which takes longer the more sequences are decoded. Agents of the same kind share a system
prompt and tools; each round adds its reply and the result of a tool, after the pause that the tool takes. Some engines
are lost in the middle. One line of JSON a policy.
"""

import argparse
import asyncio
import itertools
import json
import logging
import random
import selectors
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.backends.engine_list import EngineList
from server.backends.prefix_index import FINE_BLOCK, PrefixIndex, choose_by_prefix, num_tokens, prefix_hashes
from server.backends.protocol import FromRemote, ToRemote
from server.backends.remote import EngineLost, RemoteEngine
from server.backends.routing import RoutingBackend
from server.checkpoint.fingerprint import Fingerprint
from server.messages import Abort, Delta, Generate, Ready, Sampling

MODEL = Fingerprint("simulated", "simulated", "simulated")
VOCABULARY = 1 << 30


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Times of one engine: a model of 0.6B on two cores, from the table in docs/performance.md."""

    prefill_tokens_per_s: float = 312.0  # 2,000 tokens in 6.4 s
    step_s: float = 0.040
    step_per_sequence_s: float = 0.0047  # 50 ms with one stream, 98 with 16, 344 with 64
    cache_tokens: int = 400_000


@dataclass(frozen=True, slots=True)
class Crowd:
    """The agents and what they do."""

    engines: int = 100
    agents: int = 10_000
    kinds: int = 20  # of system prompts with tools
    rounds: int = 8
    system_tokens: int = 1_200
    task_tokens: int = 400
    result_tokens: int = 150
    reply_tokens: int = 60
    pause_s: float = 150.0  # mean, between a reply and the next round
    lost_engines: int = 5


@dataclass(slots=True)
class Figures:
    """What the agents saw. Cached tokens are those of rounds behind the first."""

    first_token_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    complete: int = 0
    failed: int = 0


class SimulatedClock(selectors.DefaultSelector):
    """Selector that does not wait: it moves the clock to the time of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What threads have reported; else the time passes at once."""
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self.now_s += timeout
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Event loop on that clock."""

    def __init__(self) -> None:
        self._clock = SimulatedClock()
        super().__init__(self._clock)

    def time(self) -> float:
        """The simulated time."""
        return self._clock.now_s


class TimedEngine:
    """A Connection whose engine keeps time."""

    kind = "simulated"
    fingerprint = MODEL

    def __init__(self, times: ServiceTimes) -> None:
        self.ready = Ready("simulated", "none", VOCABULARY, 1 << 20, times.cache_tokens // 32, 32, 0, 0.0)
        self._times = times
        self._cache = PrefixIndex(times.cache_tokens // FINE_BLOCK)
        self._free_s = 0.0  # when the last prompt that it has will be computed
        self._num_decoding = 0
        self._inbox: asyncio.Queue[FromRemote | EngineLost] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._is_lost = False

    def send(self, message: ToRemote) -> None:
        """Begin a request at the simulated time."""
        match message:
            case Abort():  # no agent leaves
                return
            case Generate():
                hashes = prefix_hashes(message.token_ids, message.cache_salt)
                cached = num_tokens(self._cache.match(hashes))
                self._cache.insert(hashes)
                uncached = len(message.token_ids) + len(message.reply_ids) - cached
                begins_s = max(self._free_s, self._loop.time())
                self._free_s = begins_s + uncached / self._times.prefill_tokens_per_s
                self._loop.call_at(self._free_s, self._prefilled, message, cached)

    async def receive(self) -> list[FromRemote]:
        """The next message."""
        item = await self._inbox.get()
        if isinstance(item, EngineLost):
            raise item
        return [item]

    async def close(self) -> None:
        """Nothing is sent any more."""
        self._is_lost = True

    def lose(self) -> None:
        """End as a machine does that loses its power."""
        if not self._is_lost:
            self._is_lost = True
            self._inbox.put_nowait(EngineLost("simulated"))

    def _prefilled(self, request: Generate, cached: int) -> None:
        self._num_decoding += 1
        step_s = self._times.step_s + self._times.step_per_sequence_s * self._num_decoding
        left = request.sampling.max_tokens - len(request.reply_ids)
        self._put(Delta(request.id, [1], None, "length" if left == 1 else None, cached))
        # The second id at once: a request that may have killed an engine is on trial until then, and others wait. Then
        # two messages for the rest, so that some replies are lost in the middle.
        if left > 2:
            self._loop.call_later(step_s, self._put, Delta(request.id, [1]))
        rest = left - 2 if left > 2 else left - 1
        half = rest // 2
        if half:
            self._loop.call_later((1 + half) * step_s, self._put, Delta(request.id, [1] * half))
        self._loop.call_later((left - 1) * step_s, self._finished, request, rest - half)

    def _finished(self, request: Generate, left: int) -> None:
        self._num_decoding -= 1
        if left:
            self._put(Delta(request.id, [1] * left, None, "length"))
        self._cache.insert(prefix_hashes([*request.token_ids, *[1] * request.sampling.max_tokens]))

    def _put(self, message: Delta) -> None:
        if not self._is_lost:
            self._inbox.put_nowait(message)


def round_robin() -> Callable[[Sequence[RemoteEngine], Sequence[bytes]], RemoteEngine]:
    """Each engine in turn."""
    turn = itertools.count()
    return lambda engines, hashes: engines[next(turn) % len(engines)]


def least_loaded(engines: Sequence[RemoteEngine], hashes: Sequence[bytes]) -> RemoteEngine:
    """The engine with the fewest requests."""
    return min(engines, key=lambda one: one.load)


POLICIES: Mapping[str, Callable[[], Any]] = {
    "round robin": round_robin,
    "least loaded": lambda: least_loaded,
    "prefix": lambda: choose_by_prefix,
}


class Agent:
    """One agent: its conversation, a token id of its own behind the part that its kind shares."""

    def __init__(self, number: int, crowd: Crowd) -> None:
        self._number = number
        self._crowd = crowd

    def prompt(self, rounds_before: int) -> list[int]:
        """The token ids of a round's prompt."""
        crowd, own = self._crowd, self._number + 1_000
        ids = [self._number % crowd.kinds + 2] * crowd.system_tokens + [own] * crowd.task_tokens
        for _ in range(rounds_before):
            ids += [1] * crowd.reply_tokens + [own] * crowd.result_tokens
        return ids

    async def live(self, backend: RoutingBackend, draw: random.Random, figures: Figures) -> None:
        """Every round of it."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(draw.uniform(0, self._crowd.pause_s))
        for number in range(self._crowd.rounds):
            token_ids = self.prompt(number)
            request = Generate(f"{self._number}/{number}", token_ids, Sampling(self._crowd.reply_tokens, seed=0))
            began_s, cached, num_written = loop.time(), 0, 0
            async for delta in backend.generate(request):
                if not num_written and delta.token_ids:
                    figures.first_token_s.append(loop.time() - began_s)
                num_written += len(delta.token_ids)
                cached = delta.cached or cached
            if num_written == self._crowd.reply_tokens:
                figures.complete += 1
            else:
                figures.failed += 1
            if number:
                figures.prompt_tokens += len(token_ids)
                figures.cached_tokens += cached
            await asyncio.sleep(draw.expovariate(1 / self._crowd.pause_s))


async def simulate(policy: str, crowd: Crowd, times: ServiceTimes, seed: int) -> dict[str, Any]:
    """Run the crowd with this policy; returns the figures."""
    engines: dict[str, TimedEngine] = {}

    async def connect(url: str) -> TimedEngine:
        if url in engines:
            raise EngineLost("it is gone")
        engines[url] = TimedEngine(times)
        return engines[url]

    urls = [f"http://engine-{number}" for number in range(crowd.engines)]
    backend = RoutingBackend(EngineList(urls), connect, MODEL, choose=POLICIES[policy]())
    await backend.start()
    await asyncio.sleep(1.0)
    draw, figures = random.Random(seed), Figures()
    agents = [
        asyncio.create_task(Agent(number, crowd).live(backend, random.Random(draw.random()), figures))
        for number in range(crowd.agents)
    ]
    if crowd.lost_engines:
        await asyncio.sleep(crowd.pause_s * crowd.rounds / 2)
        for url in urls[: crowd.lost_engines]:
            engines[url].lose()
    await asyncio.gather(*agents)
    routed = [one.routed for one in backend.engines()][crowd.lost_engines :]
    await backend.close()
    ordered = sorted(figures.first_token_s)
    return {
        "policy": policy,
        "cached_share": round(figures.cached_tokens / figures.prompt_tokens, 3),
        "first_token_p50_s": round(statistics.median(ordered), 2),
        "first_token_p99_s": round(ordered[int(0.99 * len(ordered))], 2),
        "rounds": figures.complete,
        "not_complete": figures.failed,
        "moved": backend.counts.moved["begun"] + backend.counts.moved["not begun"],
        "most_over_mean": round(max(routed) / statistics.mean(routed), 2),
        "simulated_s": round(asyncio.get_running_loop().time()),
    }


def main() -> None:
    """Print one line a policy."""
    usual = Crowd()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default=",".join(POLICIES), help="default: %(default)s")
    parser.add_argument("--engines", type=int, default=usual.engines)
    parser.add_argument("--agents", type=int, default=usual.agents)
    parser.add_argument("--rounds", type=int, default=usual.rounds)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    crowd = Crowd(
        engines=chosen.engines,
        agents=chosen.agents,
        rounds=chosen.rounds,
        lost_engines=chosen.engines // 20,
    )
    for policy in chosen.policies.split(","):
        began_s = time.perf_counter()
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            found = runner.run(simulate(policy, crowd, ServiceTimes(), chosen.seed))
        print(json.dumps({**found, "took_s": round(time.perf_counter() - began_s)}), flush=True)


if __name__ == "__main__":
    main()
