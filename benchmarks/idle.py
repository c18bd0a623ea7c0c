"""Cost of open streams that send nothing but pings: python -m benchmarks.idle

A server that runs as many sequences as there are streams writes to all of them; then its engine is stopped (SIGSTOP),
so that only pings are sent; then as many clients again wait to be admitted. CPU seconds and resident memory of the API
process are measured over the same time without streams, with the open streams, and with both.
"""

import argparse
import asyncio
import json
import signal
import time
from dataclasses import asdict, dataclass

import httpx
import psutil

from benchmarks.crowd import CHAT
from benchmarks.peers import machine
from tests.live import Live, live_server

STABILIZE_S = 3.0
BODY = {
    "model": "toolwire-demo",
    "messages": [{"role": "user", "content": "Hello!"}],
    "stream": True,
    "max_tokens": 1900,
    "ignore_eos": True,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of the API process over `seconds`."""

    state: str
    seconds: float
    cpu_s: float
    rss_mib: float
    pings: int


class Readers:
    """Clients that read streams and count the pings."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.begun = asyncio.Semaphore(0)
        self.pings = 0

    async def read_stream(self) -> None:
        """Read one stream until cancelled."""
        num_lines = 0
        async with self._http.stream("POST", CHAT, json=BODY) as reply:
            async for line in reply.aiter_lines():
                num_lines += line.startswith("data: ")
                if num_lines == 3 and line.startswith("data: "):
                    self.begun.release()
                self.pings += line == ": ping"


async def measure(server: Live, streams: int, seconds: float) -> list[Cost]:
    """Measure without streams, with open ones, and with as many again that wait."""
    engine = server.engine()
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=httpx.Limits()) as http:
        await http.post(CHAT, json=BODY | {"stream": False, "max_tokens": 8})  # loads what is loaded on first use
        readers = Readers(http)
        costs = [await _cost("none", server, seconds, readers)]
        tasks = [asyncio.create_task(readers.read_stream()) for _ in range(streams)]
        for _ in range(streams):
            await readers.begun.acquire()
        engine.send_signal(signal.SIGSTOP)
        try:
            costs.append(await _cost(f"{streams} open", server, seconds, readers))
            tasks += [asyncio.create_task(readers.read_stream()) for _ in range(streams)]
            costs.append(await _cost(f"{streams} open, {streams} waiting", server, seconds, readers))
        finally:
            engine.send_signal(signal.SIGCONT)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return costs


async def _cost(state: str, server: Live, seconds: float, readers: Readers) -> Cost:
    await asyncio.sleep(STABILIZE_S)
    process, pings, began_s = psutil.Process(server.process.pid), readers.pings, time.monotonic()
    before = process.cpu_times()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    rss_mib = process.memory_info().rss / (1 << 20)
    return Cost(state, round(time.monotonic() - began_s, 1), round(cpu_s, 2), round(rss_mib, 1), readers.pings - pings)


def main() -> None:
    """Measure and print one JSON line a state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    print(json.dumps(machine()))
    with live_server("--max-running", str(options.streams)) as server:
        for cost in asyncio.run(measure(server, options.streams, options.seconds)):
            print(json.dumps(asdict(cost)), flush=True)


if __name__ == "__main__":
    main()
