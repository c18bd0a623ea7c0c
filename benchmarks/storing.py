"""Measure the time that keeping a response adds to its end: python -m benchmarks.storing [--responses 500].

The real store writes responses of two sizes to an SQLite file, once with an idle event loop and once beside streams
that keep it busy; each line is one of the four. The call that is timed is what a client waits for: its
response is durable then. Run it on an idle machine.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop
from starlette.datastructures import State

from server.api.responses.memory import ClientMemory
from server.api.responses.wire import MessageItem, OutputText, ResponseObject
from server.store.database import DAY_S, Database
from server.store.response_store import ResponseStore

SIZES = (2_000, 28_000)  # characters of text
NUM_STREAMS = 16
MAX_BYTES = 1 << 30
PAUSE_S = 0.005  # between two responses


def response_of(number: int, size: int) -> ResponseObject:
    """A complete response with `size` characters of text."""
    id_ = f"resp_{number:024d}"
    message = MessageItem(f"msg_{number:024d}00", "completed", content=[OutputText("word " * (size // 5))])
    return ResponseObject(id=id_, created_at=0, status="completed", model="m", output=[message])


async def keep_busy() -> None:
    """Encode events for ever, as the writers of streams do: 0.1 ms of work, then the next stream's turn."""
    event = {"type": "response.output_text.delta", "delta": "word", "sequence_number": 1}
    while True:
        for _ in range(100):
            msgspec.json.encode(event)
        await asyncio.sleep(0.001)


async def time_keeping(store: ResponseStore, first: int, num_responses: int, size: int) -> list[float]:
    """Seconds of each call that keeps a response."""
    memory = ClientMemory(store, State())
    items = [{"type": "message", "role": "user", "id": "msg_1", "content": [{"type": "input_text", "text": "Hi"}]}]
    times = []
    for number in range(first, first + num_responses):
        response = response_of(number, size)
        started_s = time.perf_counter()
        fault = await memory.keep(items, response)
        times.append(time.perf_counter() - started_s)
        assert not fault, fault
        await asyncio.sleep(PAUSE_S)
    return times


async def measure(num_responses: int) -> None:
    """Print a line for each size and load."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'responses.sqlite'}", DAY_S, MAX_BYTES)
        store = ResponseStore(database, MAX_BYTES)
        first = 0
        for num_streams in (0, NUM_STREAMS):
            streams = [asyncio.create_task(keep_busy()) for _ in range(num_streams)]
            for size in SIZES:
                times = await time_keeping(store, first, num_responses, size)
                first += num_responses
                cuts = statistics.quantiles(times, n=100)
                print(
                    f"{size // 1000:>3} KB beside {num_streams:>2} streams: p50 {cuts[49] * 1000:.2f} ms, "
                    f"p95 {cuts[94] * 1000:.2f} ms, p99 {cuts[98] * 1000:.2f} ms, most {max(times) * 1000:.2f} ms",
                    flush=True,
                )
            for stream in streams:
                stream.cancel()
        await store.close()


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=500)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(parser.parse_args().responses))


if __name__ == "__main__":
    main()
