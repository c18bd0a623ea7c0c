"""Load of many concurrent clients, 40 % of which disconnect early, and of clients that send one byte a second."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

CHAT = "/v1/chat/completions"
TIMEOUT_S = 120.0
DISCONNECT_SHARE = 0.4
CITIES = ("Paris", "Rome", "Oslo", "Madrid", "Berlin", "Vienna", "Prague", "Dublin")
BUSY = (429, 503)


@dataclass(slots=True)
class Report:
    """Number of exchanges by how they ended, and the malformed replies."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def random_request(rng: random.Random) -> dict[str, Any]:
    """Return the body of a chat, with or without tools, streamed or not, short or long."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"name": "get_weather", "description": "Get the current weather for a city", "parameters": parameters}
    body: dict[str, Any] = {
        "model": "toolwire-demo",
        "messages": [{"role": "user", "content": f"What is the weather in {rng.choice(CITIES)}?"}],
        "max_tokens": rng.choice((1, 20, 60, 200)),
        "stream": rng.random() < 0.7,
    }
    if rng.random() < 0.7:
        body["tools"] = [{"type": "function", "function": tool}]
        body["tool_choice"] = rng.choice(("auto", "auto", "required"))
    elif rng.random() < 0.5:
        body["ignore_eos"] = True
    if rng.random() < 0.2:
        body["n"] = 2
    return body


async def crowd(url: str, clients: int, seconds: float, seed: int, key: str = "any") -> Report:
    """Run a closed loop for `seconds`: each client sends its next request when its last exchange has ended."""
    report = Report()
    until_s = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, limits=limits) as http:

        async def client(number: int) -> None:
            rng = random.Random(f"{seed}/{number}")
            while time.monotonic() < until_s:
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        report.ends[await exchange(http, random_request(rng), rng)] += 1
                except (MalformedReply, httpx.HTTPError, TimeoutError) as error:
                    report.faults.append(f"{type(error).__name__}: {error}")

        await asyncio.gather(*(client(number) for number in range(clients)))
    return report


class MalformedReply(Exception):
    """A reply that breaks the API's format."""


async def exchange(http: httpx.AsyncClient, body: dict[str, Any], rng: random.Random) -> str:
    """Send one request, read it to its end or disconnect, and return how it ended. Raises MalformedReply."""
    disconnects = rng.random() < DISCONNECT_SHARE
    if disconnects and not body["stream"]:
        try:
            async with asyncio.timeout(rng.random() * 0.3):
                await http.post(CHAT, json=body)
        except TimeoutError:
            return "disconnected before the reply"
        return "complete"
    if not body["stream"]:
        reply = await http.post(CHAT, json=body)
        if reply.status_code in BUSY:
            return _check_busy(reply.status_code, reply.headers, reply.content)
        _check_whole(reply.status_code, reply.content, body)
        return "complete"
    return await _streamed(http, body, rng.randint(0, 30) if disconnects else None)


async def _streamed(http: httpx.AsyncClient, body: dict[str, Any], disconnect_after: int | None) -> str:
    data: list[str] = []
    async with http.stream("POST", CHAT, json=body) as reply:
        if reply.status_code in BUSY:
            return _check_busy(reply.status_code, reply.headers, await reply.aread())
        if reply.status_code != 200:
            raise MalformedReply(f"{reply.status_code}: {(await reply.aread())[:300]!r}")
        if disconnect_after == 0:
            return "disconnected before the first event"
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                data.append(line.removeprefix("data: "))
            if disconnect_after is not None and len(data) >= disconnect_after:
                return "disconnected in the stream"
    return check_stream(data, body.get("n", 1))


def check_stream(data: list[str], n: int = 1) -> str:
    """Return `complete`, or `error event` if one ended the stream. Raises MalformedReply."""
    if not data or data[-1] != "[DONE]":
        raise MalformedReply(f"the stream ended without [DONE], after {data[-1:]}")
    chunks = [json.loads(text) for text in data[:-1]]
    if chunks and "error" in chunks[-1]:
        return "error event"
    finishes = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    if sorted(choice["index"] for choice in finishes) != list(range(n)):
        raise MalformedReply(f"{len(finishes)} finish reasons for {n} choices")
    if len({chunk["id"] for chunk in chunks}) != 1:
        raise MalformedReply("the id changed within a stream")
    return "complete"


def _check_whole(status: int, content: bytes, body: dict[str, Any]) -> None:
    if status != 200:
        raise MalformedReply(f"{status}: {content[:300]!r}")
    choices = json.loads(content)["choices"]
    if len(choices) != body.get("n", 1) or not all(choice["finish_reason"] for choice in choices):
        raise MalformedReply(f"choices: {choices}")


def _check_busy(status: int, headers: httpx.Headers, content: bytes) -> str:
    if "retry-after" not in headers or "error" not in json.loads(content):
        raise MalformedReply(f"{status} without Retry-After: {content[:300]!r}")
    return f"busy {status}"


async def slow_loris(url: str, clients: int, stop: asyncio.Event) -> None:
    """Open connections that send their headers, or their body, one byte a second until `stop` is set."""
    address = urlsplit(url)
    whole = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n".encode() + b" " * 500

    async def drip(number: int) -> None:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            position = 0 if number % 2 else whole.index(b"\r\n\r\n") + 4  # half of them in the body
            writer.write(whole[:position])
            while not stop.is_set():
                writer.write(whole[position : position + 1])
                await writer.drain()
                position += 1
                await asyncio.wait({asyncio.ensure_future(stop.wait())}, timeout=1.0)
        except OSError:
            return  # the server closed the connection
        finally:
            writer.close()

    await asyncio.gather(*(drip(number) for number in range(clients)))
