"""Many replies at once, a third of them aborted: none holds a word of another, and each stream equals its whole."""

import asyncio
import json
import random
from typing import Any

import httpx

from benchmarks.malformed import CHAT
from tests.hostile.scenario import Outcome, Scale, Scenario, with_tool
from tests.live import Live

TIMEOUT_S = 120.0


def word_of(number: int) -> str:
    """Return the word that only request `number` may hold."""
    return f"Zq{number:05}xv"


def request_of(number: int, stream: bool) -> dict[str, Any]:
    """Return a request whose reply must hold its word, by its schema."""
    word = word_of(number)
    schema = {"type": "object", "properties": {"word": {"enum": [word]}}, "required": ["word"]}
    messages = [{"role": "user", "content": f"Look for {word}."}]
    return with_tool(schema, messages=messages, stream=stream, max_tokens=60)


async def cross_talk(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send rounds of requests at once; a third of the clients leave before the end."""
    outcome = Outcome()
    rng = random.Random(seed)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S, limits=limits) as http:
        for start in range(0, scale.rounds * scale.crowd, scale.crowd):
            plans = [(number, number % 3 == 0, rng.random() * 0.5) for number in range(start, start + scale.crowd)]
            replies = await asyncio.gather(*(reply_text(http, *plan) for plan in plans), return_exceptions=True)
            for (number, is_aborted, _), reply in zip(plans, replies, strict=True):
                outcome.requests += 1
                outcome.faults += [] if is_aborted else faults_of(number, reply)
    return outcome


def faults_of(number: int, reply: str | BaseException) -> list[str]:
    """Return what is wrong with a reply that was read to its end."""
    if isinstance(reply, BaseException):
        return [f"{type(reply).__name__}: {reply}"]
    if reply == "busy":
        return []
    arguments = f'{{"word":"{word_of(number)}"}}'
    return [] if reply.replace(" ", "") == arguments else [f"request {number} was answered {reply[:200]!r}"]


async def reply_text(http: httpx.AsyncClient, number: int, is_aborted: bool, after_s: float) -> str:
    """Return the arguments of the call; as a stream for two of three requests."""
    body = request_of(number, stream=number % 3 != 1)
    if is_aborted:
        try:
            async with asyncio.timeout(after_s):
                return await _read(http, body)
        except TimeoutError:
            return ""
    return await _read(http, body)


async def _read(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    reply = await http.post(CHAT, json=body)
    if reply.status_code in (429, 503):
        return "busy"
    if not body["stream"]:
        calls = reply.json()["choices"][0]["message"]["tool_calls"]
        return "".join(call["function"]["arguments"] for call in calls)
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    return "".join(call["function"].get("arguments") or "" for call in calls)


CROSS_TALK = Scenario("cross-talk, a third aborted", cross_talk)
