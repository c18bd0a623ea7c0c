"""One kind of hostile use: requests to a running server, and what was wrong with the replies."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.malformed import CHAT, Malformed, Tolerance, fault_in, request_bytes, send_raw
from tests.live import Live

SENDERS = 8
WEATHER = "What is the weather in Paris?"


@dataclass(frozen=True, slots=True)
class Scale:
    """Size of a run."""

    malformed: int = 6_000
    messages: int = 10_000
    conversations: int = 10_000
    crowd: int = 300
    rounds: int = 3
    connections: int = 200
    megabytes: int = 48
    wait_s: float = 40.0  # longest wait until the server closes what a client keeps open


SHORT = Scale(malformed=200, messages=400, conversations=92, crowd=32, rounds=1, connections=40, megabytes=24)


@dataclass(slots=True)
class Outcome:
    """Number of requests that were sent, and the faults in the replies."""

    requests: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A name and the requests. Those with `is_short` are part of `make test`."""

    name: str
    run: Callable[[Live, Scale, int], Awaitable[Outcome]]
    is_short: bool = True


def chat_body(**fields: Any) -> dict[str, Any]:
    """Return a short chat request with these fields."""
    messages = [{"role": "user", "content": WEATHER}]
    return {"model": "toolwire-demo", "messages": messages, "max_tokens": 16, "temperature": 0} | fields


def with_tool(parameters: Any, **fields: Any) -> dict[str, Any]:
    """Return a chat request whose only tool has this schema and must be called."""
    function = {"name": "look", "description": "Look.", "parameters": parameters}
    return chat_body(tools=[{"type": "function", "function": function}], tool_choice="required") | fields


def post(kind: str, body: Any, path: str = CHAT, tolerance: Tolerance = "reply") -> Malformed:
    """Return a POST of this JSON, or of these bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Malformed(kind, request_bytes(raw, path), tolerance)


async def send_all(server: Live, requests: Iterable[Malformed], outcome: Outcome, at_once: int = SENDERS) -> Outcome:
    """Send the requests, this many at a time, and check each reply. Servers answer; they neither hang nor fail."""
    waiting = iter(requests)

    async def sender() -> None:
        for request in waiting:
            outcome.requests += 1
            try:
                fault = fault_in(request, await send_raw(server.url, request))
            except TimeoutError:
                fault = "no reply"
            except OSError as error:
                fault = f"no connection: {error}"
            if fault:
                outcome.faults.append(f"{request.kind}: {fault}")

    await asyncio.gather(*(sender() for _ in range(at_once)))
    return outcome
