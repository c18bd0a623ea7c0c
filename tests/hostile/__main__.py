"""Hostile use of a real server: python -m tests.hostile, or `make test-hostile`.

Each scenario runs beside a victim, a client in another process that reads a stream and requests /health. Prints one
table, and exits with 1 if a process died, a reply was wrong, the victim or /health waited too long, or memory stayed.
"""

import argparse
import asyncio
import contextlib
import json
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import httpx
import psutil

from benchmarks.engine_faults import restarts_of
from benchmarks.faults import RESULTS
from benchmarks.peers import machine
from tests.hostile.bombs import BOMBS
from tests.hostile.checkpoints import hostile_checkpoints
from tests.hostile.connections import CONNECTIONS
from tests.hostile.cross_talk import CROSS_TALK
from tests.hostile.scenario import Outcome, Scale, Scenario
from tests.hostile.tokens import fuzz_conversations
from tests.hostile.victim import Seen
from tests.live import Live, live_server

MAX_GAP_S = 0.25
RSS_TOLERANCE = 0.1
SETTLE_S = 10.0
WARM_UP_S = 5.0
MIN_S = 2.0  # beside the victim, so that short scenarios are measured at all
FENCE_BYTES = 3 << 30  # address space that each process may take beyond what it has: a bomb ends it, not the machine
PROCESSES = 2
COLUMNS = ("scenario", "requests", "gap s", "/health s", "MiB before", "MiB after", "died", "fails")


@dataclass(slots=True)
class Row:
    """Measurements of one scenario; `misses` are the bars that it does not hold."""

    scenario: str
    requests: int
    seconds: float
    victim: Seen = field(default_factory=Seen)
    rss_first_mib: int | None = None  # before the first of two runs
    rss_before_mib: int = 0
    rss_after_mib: int = 0
    died: int = 0
    faults: dict[str, int] = field(default_factory=dict)

    def misses(self) -> list[str]:
        """Return the bars that were missed."""
        found = ["died"] if self.died else []
        found += ["gap"] if self.victim.largest_gap_s >= MAX_GAP_S else []
        found += ["health"] if self.victim.largest_health_s >= MAX_GAP_S else []
        found += ["RSS"] if self.rss_after_mib > self.rss_before_mib * (1 + RSS_TOLERANCE) else []
        return found + (["replies"] if self.faults else [])

    def line(self) -> str:
        """Return the row of the table."""
        seen = self.victim
        cells = (
            self.scenario, self.requests, f"{seen.largest_gap_s:.3f}", f"{seen.largest_health_s:.3f}",
            self.rss_before_mib, self.rss_after_mib, self.died, ", ".join(self.misses()),
        )  # fmt: skip
        return "| " + " | ".join(map(str, cells)) + " |"


class Servers:
    """One server for all scenarios, and another after its death."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()
        self._server: Live | None = None

    def get(self) -> Live:
        """Return the running server."""
        if self._server is None or self._server.process.poll() is not None:
            self.close()
            self._server = self._running.enter_context(live_server())
            fence(self._server)
        return self._server

    def close(self) -> None:
        """Stop the server."""
        self._running.close()
        self._server = None


def fence(server: Live) -> None:
    """Limit the address space of a server's processes."""
    for process in family(server):
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY:  # the process that renders has a limit of its own
            limit = process.memory_info().vms + FENCE_BYTES
            resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, hard))


def family(server: Live) -> list[psutil.Process]:
    """Return the processes of a server; none if it died."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(server.process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def rss_mib(server: Live) -> int:
    """Return the resident memory of all processes of a server."""
    total = 0
    for process in family(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total >> 20


@contextlib.contextmanager
def victim(server: Live, seen: Seen) -> Iterator[None]:
    """Read a stream in another process within the block; `seen` gets its measurements."""
    command = [sys.executable, "-m", "tests.hostile.victim", server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            measured = Seen(**json.loads(process.stdout.read().splitlines()[-1]))
            for name, value in asdict(measured).items():
                setattr(seen, name, value)


def observe(server: Live, name: str, run: Callable[[], Awaitable[Outcome]]) -> Row:
    """Run a scenario beside a victim; a second time where memory stayed, which bounded caches may keep once."""
    row = observe_once(server, name, run)
    if "RSS" not in row.misses() or row.died:
        return row
    again = observe_once(server, name, run)
    again.rss_first_mib = row.rss_before_mib
    again.requests += row.requests
    again.seconds = round(again.seconds + row.seconds, 1)
    again.died += row.died
    again.faults = dict(Counter(row.faults) + Counter(again.faults))
    again.victim.largest_gap_s = max(row.victim.largest_gap_s, again.victim.largest_gap_s)
    again.victim.largest_health_s = max(row.victim.largest_health_s, again.victim.largest_health_s)
    return again


def observe_once(server: Live, name: str, run: Callable[[], Awaitable[Outcome]]) -> Row:
    """Run a scenario beside a victim; afterwards wait until memory has come back, or `SETTLE_S`."""
    row = Row(name, 0, 0.0)
    row.rss_before_mib, restarts, began_s = rss_mib(server), restarts_of(server), time.monotonic()
    with victim(server, row.victim):
        outcome = asyncio.run(_awaited(run))
    row.requests, row.faults = outcome.requests, dict(Counter(outcome.faults).most_common(10))
    settled_s = time.monotonic() + SETTLE_S
    while rss_mib(server) > row.rss_before_mib * (1 + RSS_TOLERANCE) and time.monotonic() < settled_s:
        time.sleep(0.5)
    row.rss_after_mib, row.seconds = rss_mib(server), round(time.monotonic() - began_s, 1)
    row.died = 1 if server.process.poll() is not None else _restarts(server) - restarts
    return row


async def _awaited(run: Callable[[], Awaitable[Outcome]]) -> Outcome:
    outcome, _ = await asyncio.gather(run(), asyncio.sleep(MIN_S))
    return outcome


def _restarts(server: Live) -> int:
    try:
        return restarts_of(server)
    except httpx.HTTPError:
        return 1  # a server that answers nothing counts as dead


async def nothing(server: Live, scale: Scale, seed: int) -> Outcome:
    """Wait: the victim alone, for comparison."""
    await asyncio.sleep(WARM_UP_S)
    return Outcome()


def over_http(scale: Scale, seed: int, names: str) -> Iterator[Row]:
    """Run the scenarios on one server."""
    servers = Servers()
    baseline = Scenario("the victim alone", nothing)
    with contextlib.closing(servers):
        for scenario in (baseline, *CONNECTIONS, *BOMBS, CROSS_TALK):
            if names in scenario.name or scenario is baseline:
                server = servers.get()
                yield observe(server, scenario.name, partial(scenario.run, server, scale, seed))


def without_server(scale: Scale, seed: int, names: str) -> Iterator[Row]:
    """Run what needs no server: conversations in two processes, and folders of checkpoints."""
    if names in "control tokens":
        began_s = time.monotonic()
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            share = scale.conversations // PROCESSES + 1
            parts = list(pool.map(fuzz_conversations, [share] * PROCESSES, range(seed, seed + PROCESSES)))
        faults = dict(Counter(fault for part in parts for fault in part.faults).most_common(10))
        yield Row("control tokens", sum(part.requests for part in parts), time.monotonic() - began_s, faults=faults)
    if names in "hostile checkpoints":
        began_s = time.monotonic()
        outcome, died = hostile_checkpoints()
        faults = dict(Counter(outcome.faults))
        yield Row("hostile checkpoints", outcome.requests, time.monotonic() - began_s, died=died, faults=faults)


def main() -> None:
    """Run, print, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--only", default="", help="scenarios whose name holds this text")
    parser.add_argument("--name", default="", help="write benchmarks/results/NAME.json")
    for name, default in asdict(Scale()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    seed, only, name = options.pop("seed"), options.pop("only"), options.pop("name")
    scale, rows = Scale(**options), []
    print(f"seed {seed}\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    for part in (over_http, without_server):
        for row in part(scale, seed, only):
            rows.append(row)
            print(row.line(), flush=True)
            for fault, count in row.faults.items():
                print(f"{row.scenario}: {count} x {fault}", flush=True)
    if name:
        write(name, seed, rows)
    sys.exit(any(row.misses() for row in rows))


def write(name: str, seed: int, rows: list[Row]) -> None:
    """Write the results file."""
    result = {
        "command": "python -m tests.hostile " + " ".join(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "seed": seed,
        "rows": [asdict(row) | {"misses": row.misses()} for row in rows],
    }
    (Path(RESULTS) / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
