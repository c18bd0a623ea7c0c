"""Load and fault injection against a real server: python -m benchmarks.faults

First, many clients, of which 40 % disconnect early, and then malformed requests, while other clients send one byte a
second; afterwards the server must hold no more blocks, file descriptors and memory than before. Then the faults of
`engine_faults.py`, each in the middle of streams of which every one must complete with the text it would have had, and
SIGTERM while replies are streamed. Exits with 1 and prints the faults if a reply was lost or is another one, a request
hung, something leaked or a reply was malformed.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.crowd import CHAT, check_stream, crowd, slow_loris
from benchmarks.engine_faults import ALL_FAULTS, INJECTED, engine_faults
from benchmarks.malformed import fault_in, malformed, send_raw
from benchmarks.parts import Part
from benchmarks.peers import machine
from tests.live import Live, live_server

RESULTS = Path(__file__).parent / "results"
# A small cache, so that the warm-up touches all of it, and requests must wait and be preempted. In float32 replies are
# the same in every batch, without the compiled kernels as well.
OPTIONS = ("--kv-cache-tokens", "16384", "--dtype", "float32", "--engine-timeout-s", "10")
IDLE_TIMEOUT_S = 30.0
HEARTBEAT_S = 1.5
FD_TOLERANCE = 2  # a keep-alive connection, the file that a metric is read from
BEGIN_TIMEOUT_S = 60.0
END_TIMEOUT_S = 120.0
SENDERS = 16


@dataclass(frozen=True, slots=True)
class Scale:
    """Size of each part of the run."""

    clients: int = 64
    seconds: float = 60.0
    malformed: int = 10_000
    slow_clients: int = 64
    faults: str = ALL_FAULTS
    fault_streams: int = 32
    fault_seconds: float = 0.0  # rounds of faults are repeated for this long
    drained_streams: int = 32
    warm_up_s: float = 120.0  # until the caches of kernels and grammars, and the heaps, have reached their size
    rss_tolerance: float = 0.02


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resources that an idle server holds."""

    api_rss: int
    engine_rss: int
    api_fds: int
    engine_fds: int
    used_blocks: int
    sequences: int
    open_requests: int


def footprint(server: Live) -> Footprint:
    """Wait until nothing runs and every block is free, then measure."""
    deadline_s = time.monotonic() + IDLE_TIMEOUT_S
    time.sleep(HEARTBEAT_S)  # the server's metrics are as old as the engine's last heartbeat
    while True:
        text = httpx.get(f"{server.url}/metrics", timeout=END_TIMEOUT_S).text
        names = ("kv_blocks_used", "sequences_running", "sequences_waiting", "requests_open")
        used, running, waiting, open_requests = (_metric(text, name) for name in names)
        if not (used or running or waiting or open_requests) or time.monotonic() > deadline_s:
            break
        time.sleep(0.5)
    api, engine = psutil.Process(server.process.pid), server.engine()
    rss = (api.memory_info().rss, engine.memory_info().rss)
    return Footprint(*rss, api.num_fds(), engine.num_fds(), used, running + waiting, open_requests)


def _metric(text: str, name: str) -> int:
    found = re.search(rf"^toolwire_{name} (\S+)$", text, re.MULTILINE)
    return int(float(found.group(1))) if found else 0


def leaks(before: Footprint, after: Footprint, rss_tolerance: float) -> list[str]:
    """Return what the server holds in excess of `before`."""
    found = []
    for name in ("api_rss", "engine_rss"):
        was, now = getattr(before, name), getattr(after, name)
        if now > was * (1 + rss_tolerance):
            found.append(f"{name} grew from {was >> 20} to {now >> 20} MiB")
    for name in ("api_fds", "engine_fds"):
        was, now = getattr(before, name), getattr(after, name)
        if now > was + FD_TOLERANCE:
            found.append(f"{name} grew from {was} to {now}")
    if after.used_blocks:
        found.append(f"{after.used_blocks} KV blocks are still held")
    if after.sequences:
        found.append(f"{after.sequences} sequences still run or wait")
    if after.open_requests:
        found.append(f"{after.open_requests} requests are counted as open")
    return found


async def send_malformed(url: str, count: int, seed: int) -> Part:
    """Send `count` malformed requests, `SENDERS` at a time, and check each reply."""
    kinds: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    faults: list[str] = []
    numbers = iter(range(count))

    async def sender() -> None:
        for number in numbers:
            request = malformed(number, seed)
            try:
                reply = await send_raw(url, request)
            except TimeoutError:
                faults.append(f"{request.kind} {number}: no reply")
                continue
            kinds[request.kind] += 1
            statuses[str(reply.status or "closed")] += 1
            if fault := fault_in(request, reply):
                faults.append(f"{request.kind} {number}: {fault}")

    began_s = time.monotonic()
    await asyncio.gather(*(sender() for _ in range(SENDERS)))
    elapsed_s = round(time.monotonic() - began_s, 1)
    return Part("malformed", {"seconds": elapsed_s, "kinds": dict(kinds), "statuses": dict(statuses)}, faults)


async def load_parts(server: Live, scale: Scale, seed: int) -> list[Part]:
    """Run load and malformed requests beside slow clients; afterwards the server must hold what it held before."""
    async with slow_clients(server, scale):  # warm-up: caches, threads and heaps grow to the size this load needs
        await crowd(server.url, scale.clients, scale.warm_up_s, seed)
        await send_malformed(server.url, scale.malformed, seed + 1)
    before = await asyncio.to_thread(footprint, server)
    async with slow_clients(server, scale):
        report = await crowd(server.url, scale.clients, scale.seconds, seed + 2)
        bad = await send_malformed(server.url, scale.malformed, seed + 3)
    ends: dict[str, Any] = {"clients": scale.clients, "seconds": scale.seconds, "ends": dict(report.ends)}
    parts = [Part("crowd", ends, report.faults), bad]
    after = await asyncio.to_thread(footprint, server)
    held = {"before": asdict(before), "after": asdict(after)}
    return [*parts, Part("held afterwards", held, leaks(before, after, scale.rss_tolerance))]


@contextlib.asynccontextmanager
async def slow_clients(server: Live, scale: Scale) -> AsyncIterator[None]:
    """Keep slow clients connected within the block."""
    stop = asyncio.Event()
    sending = asyncio.create_task(slow_loris(server.url, scale.slow_clients, stop))
    yield
    stop.set()
    await sending


async def _open_streams(server: Live, count: int, max_tokens: int, meanwhile: Any) -> Counter[str]:
    """Open `count` long streams, call `meanwhile` once all have begun, and count how they ended."""
    begun = 0
    all_begun = asyncio.Event()
    body = {
        "model": "toolwire-demo",
        "messages": [{"role": "user", "content": "Hello!"}],
        "stream": True,
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }

    async def read(http: httpx.AsyncClient) -> str:
        nonlocal begun
        data: list[str] = []
        async with http.stream("POST", CHAT, json=body) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    data.append(line.removeprefix("data: "))
                    begun += len(data) == 2  # the role, then the first text
                    if begun == count:
                        all_begun.set()
        return check_stream(data)

    async with httpx.AsyncClient(base_url=server.url, timeout=END_TIMEOUT_S, limits=httpx.Limits()) as http:
        readers = [asyncio.create_task(read(http)) for _ in range(count)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(all_begun.wait(), BEGIN_TIMEOUT_S)
        meanwhile()
        _, hanging = await asyncio.wait(readers, timeout=END_TIMEOUT_S)
        for reader in hanging:
            reader.cancel()
        ends = await asyncio.gather(*readers, return_exceptions=True)
    counts = Counter(end if isinstance(end, str) else f"{type(end).__name__}: {end}" for end in ends)
    return counts if begun >= count else counts + Counter({f"only {begun} had begun": 1})


def drained(server: Live, streams: int) -> Part:
    """Send SIGTERM: running streams must finish, the exit code must be 0, and no process may be left."""
    engine, num_logged = server.engine(), len(server.output())
    ends = asyncio.run(_open_streams(server, streams, 150, lambda: server.process.send_signal(signal.SIGTERM)))
    began_s = time.monotonic()
    code = server.process.wait(30)
    faults = [f"a stream ended with {end}" for end in ends if end != "complete"]
    faults += [] if code == 0 else [f"exit code {code}"]
    faults += ["the engine outlived the server"] if engine.is_running() else []
    faults += ["a traceback was logged"] if "Traceback" in server.output()[num_logged:] else []
    seconds = round(time.monotonic() - began_s, 2)
    return Part("SIGTERM", {"streams": streams, "ends": dict(ends), "ended_after_s": seconds}, faults)


def run_parts(scale: Scale, seed: int) -> Iterator[Part]:
    """Run all parts on one server, so that a fault of one shows in the next."""
    with live_server(*OPTIONS, PYTHONPATH=str(INJECTED)) as server:
        yield from asyncio.run(load_parts(server, scale, seed))
        yield from fault_rounds(server, scale)
        yield drained(server, scale.drained_streams)


def fault_rounds(server: Live, scale: Scale) -> Iterator[Part]:
    """Rounds of every fault of the engine until the time is over; the last must leave what the first two left."""
    began_s = time.monotonic()
    before: Footprint | None = None
    for number in itertools.count(1):
        yield from engine_faults(server, scale.fault_streams, scale.faults)
        if number == 2:
            before = footprint(server)
        if time.monotonic() - began_s >= scale.fault_seconds:
            break
    if before is not None and number > 2:
        after = footprint(server)
        held = {"rounds": number, "before": asdict(before), "after": asdict(after)}
        yield Part("held after the faults", held, leaks(before, after, scale.rss_tolerance))


def main() -> None:
    """Run, print, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in asdict(Scale()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--name", default="", help="write benchmarks/results/NAME.json")
    options = vars(parser.parse_args())
    name, seed = options.pop("name"), options.pop("seed")
    parts = []
    for part in run_parts(Scale(**options), seed):
        parts.append(part)
        print(f"{part.name}: {json.dumps(part.figures)}", flush=True)
        for fault, count in Counter(part.faults).most_common(20):
            print(f"  FAULT {count} x {fault}")
    if name:
        result = {
            "command": "python -m benchmarks.faults " + " ".join(sys.argv[1:]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "seed": seed,
            "parts": [asdict(part) | {"faults": dict(Counter(part.faults).most_common(20))} for part in parts],
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(part.faults for part in parts))


if __name__ == "__main__":
    main()
