"""A client that reads a stream while others attack, in a process of its own: python -m tests.hostile.victim URL.

Prints `begun` once its stream has begun. When its input is closed it prints its measurements as one line of JSON.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from benchmarks.malformed import request_bytes
from tests.hostile.scenario import chat_body

HEALTH_INTERVAL_S = 0.05
RETRY_S = 0.2
TIMEOUT_S = 60.0
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Seen:
    """Measurements of one victim, in seconds. `largest_first_s` is the longest wait for the begin of a stream."""

    largest_gap_s: float = 0.0
    largest_first_s: float = 0.0
    largest_health_s: float = 0.0
    chunks: int = 0
    health_checks: int = 0
    ends: dict[str, int] = field(default_factory=dict)


async def read_streams(address: tuple[str, int], seen: Seen) -> None:
    """Read one stream after the other for ever."""
    body = json.dumps(chat_body(stream=True, max_tokens=7000, ignore_eos=True)).encode()
    while True:
        end = await read_stream(address, request_bytes(body), seen)
        seen.ends[end] = seen.ends.get(end, 0) + 1
        if end != "done":
            await asyncio.sleep(RETRY_S)


async def read_stream(address: tuple[str, int], request: bytes, seen: Seen) -> str:
    """Read a stream, with the time between its chunks, and return how it ended."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        return "no connection"
    began_s = last_s = time.perf_counter()
    tail = b""
    is_first = True
    try:
        writer.write(request)
        while data := await reader.read(1 << 16):
            tail = (tail + data)[-400:]
            if b"data:" not in data:
                continue
            elapsed_s, last_s = time.perf_counter() - last_s, time.perf_counter()
            if is_first:
                seen.largest_first_s = max(seen.largest_first_s, last_s - began_s)
                is_first = False
                print("begun", flush=True)
            else:
                seen.largest_gap_s = max(seen.largest_gap_s, elapsed_s)
            seen.chunks += 1
    except OSError:
        return "connection lost"
    finally:
        writer.close()
    if b"[DONE]" in tail and b'"error"' not in tail:
        return "done"
    return "error: " + tail[-200:].decode(errors="replace")


async def poll_health(address: tuple[str, int], seen: Seen) -> None:
    """Request /health for ever; a connection that fails counts as `TIMEOUT_S`."""
    while True:
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(HEALTH)
                is_ok = (await reader.read(-1)).startswith(b"HTTP/1.1 200")
                writer.close()
        except (OSError, TimeoutError):
            is_ok = False
        elapsed_s = time.perf_counter() - began_s if is_ok else TIMEOUT_S
        seen.largest_health_s = max(seen.largest_health_s, elapsed_s)
        seen.health_checks += 1
        await asyncio.sleep(HEALTH_INTERVAL_S)


async def watch(url: str) -> Seen:
    """Measure until the input is closed."""
    parts = urlsplit(url)
    address, seen = (str(parts.hostname), int(parts.port or 80)), Seen()
    tasks = [asyncio.create_task(work(address, seen)) for work in (read_streams, poll_health)]
    stopped = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    return seen


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(watch(sys.argv[1])))), flush=True)
