"""What streams cost that are open and silent: python -m benchmarks.idle

A server with as many places as streams writes to all of them; then its engine is halted (SIGSTOP), as if a very long
prompt held it up, so that nothing but pings goes out; then as many again ask and wait to be admitted. CPU seconds and
resident memory of the API process are taken over the same time without a stream, with the open ones, and with both.
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

SETTLE_S = 3.0
BODY = {
    "model": "toolwire-demo",
    "messages": [{"role": "user", "content": "Hello!"}],
    "stream": True,
    "max_tokens": 1900,
    "ignore_eos": True,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of the API process, over `seconds`."""

    state: str
    seconds: float
    cpu_s: float
    rss_mib: float
    pings: int


class Crowd:
    """Clients that read and say nothing; what they have read so far."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.begun = asyncio.Semaphore(0)
        self.pings = 0

    async def listen(self) -> None:
        """One stream, until it is cancelled."""
        num_lines = 0
        async with self._http.stream("POST", CHAT, json=BODY) as reply:
            async for line in reply.aiter_lines():
                num_lines += line.startswith("data: ")
                if num_lines == 3 and line.startswith("data: "):
                    self.begun.release()
                self.pings += line == ": ping"


async def measure(server: Live, streams: int, seconds: float) -> list[Cost]:
    """Without a stream, with open ones, and with as many again that wait."""
    engine = server.engine()
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=httpx.Limits()) as http:
        await http.post(CHAT, json=BODY | {"stream": False, "max_tokens": 8})  # what is loaded once is loaded
        crowd = Crowd(http)
        costs = [await _cost("none", server, seconds, crowd)]
        readers = [asyncio.create_task(crowd.listen()) for _ in range(streams)]
        for _ in range(streams):
            await crowd.begun.acquire()
        engine.send_signal(signal.SIGSTOP)
        try:
            costs.append(await _cost(f"{streams} open", server, seconds, crowd))
            readers += [asyncio.create_task(crowd.listen()) for _ in range(streams)]
            costs.append(await _cost(f"{streams} open, {streams} waiting", server, seconds, crowd))
        finally:
            engine.send_signal(signal.SIGCONT)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    return costs


async def _cost(state: str, server: Live, seconds: float, crowd: Crowd) -> Cost:
    await asyncio.sleep(SETTLE_S)
    process, pings, began_s = psutil.Process(server.process.pid), crowd.pings, time.monotonic()
    before = process.cpu_times()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    rss_mib = process.memory_info().rss / (1 << 20)
    return Cost(state, round(time.monotonic() - began_s, 1), round(cpu_s, 2), round(rss_mib, 1), crowd.pings - pings)


def main() -> None:
    """Measure and print."""
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
