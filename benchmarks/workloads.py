"""The workloads that every server is driven with, in the same words: chat streams and an agent's tool loop."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.load import Exchange, closed_loop, exchange, words

NUM_TOOLS = 20
ROUNDS = 10
NOUNS = (
    "order", "customer", "invoice", "ticket", "shipment", "refund", "product", "review", "coupon", "account",
    "session", "report", "campaign", "contract", "supplier", "warehouse", "payment", "message", "meeting", "task",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AgentRun:
    """One agent's loop of tool calls. A round is one request whose reply is one finished, valid call."""

    round_s: tuple[float, ...]
    first_argument_s: tuple[float, ...]
    valid: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def chat(model: str, prompt_words: int, max_tokens: int, seed: int, head: str = "") -> dict[str, Any]:
    """A greedy request whose reply runs to `max_tokens`."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": head + words(prompt_words, seed)}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def make_tools(count: int = NUM_TOOLS) -> list[dict[str, Any]]:
    """Tools of enums, booleans and bounded numbers, so that no server's grammar can idle on white space."""
    tools = []
    for noun in NOUNS[:count]:
        properties = {
            "action": {"type": "string", "enum": ["create", "read", "update", "delete"]},
            "priority": {"type": "integer", "minimum": 1, "maximum": 9},
            "status": {"type": "string", "enum": ["open", "pending", "closed"]},
            "notify": {"type": "boolean"},
            "channel": {"type": "string", "enum": ["email", "phone", "chat", "letter"]},
        }
        parameters = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        function = {
            "name": f"handle_{noun}",
            "description": f"Creates, reads, updates or deletes one {noun} and tells those who must know of it.",
            "parameters": parameters,
        }
        tools.append({"type": "function", "function": function})
    return tools


async def run_chats(url: str, bodies: Sequence[dict[str, Any]], streams: int) -> tuple[list[Exchange], float]:
    """A closed loop over chat requests."""
    return await closed_loop(url, bodies, streams)


async def run_agents(url: str, model: str, *, agents: int, forced: bool) -> tuple[list[AgentRun], float]:
    """`agents` tool loops at once, each ten rounds with the same twenty tools; runs and seconds in all."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        began_s = time.perf_counter()
        runs = await asyncio.gather(*(_agent(client, model, number, forced) for number in range(agents)))
        return list(runs), time.perf_counter() - began_s


async def forced_call(url: str, model: str, seed: int) -> Exchange:
    """One named call with five arguments, streamed."""
    body = _call_body(model, [{"role": "user", "content": f"Handle the order, please. {words(20, seed)}"}], forced=True)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        return await exchange(client, body)


def is_valid(arguments: str) -> bool:
    """Whether a call's arguments are complete JSON with all five fields."""
    try:
        return len(json.loads(arguments)) == 5
    except (json.JSONDecodeError, TypeError):
        return False


def _call_body(model: str, messages: list[dict[str, Any]], *, forced: bool) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": f"handle_{NOUNS[0]}"}}
    return {
        "model": model,
        "messages": messages,
        "tools": make_tools(),
        "tool_choice": named if forced else "auto",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 160,
        "chat_template_kwargs": {"enable_thinking": False},
    }


async def _agent(client: httpx.AsyncClient, model: str, number: int, forced: bool) -> AgentRun:
    messages: list[dict[str, Any]] = [
        {
            "role": "system",
            "content": f"You are agent {number} of a shop. Handle what the user asks for with the tools.",
        },
        {"role": "user", "content": "Handle the order: update it with priority 3, notify by email, set it to pending."},
    ]
    seconds, firsts, done = [], [], []
    valid = 0
    for index in range(ROUNDS):
        began_s = time.perf_counter()
        reply = await exchange(client, _call_body(model, messages, forced=forced))
        seconds.append(time.perf_counter() - began_s)
        firsts.append(reply.first_token_s)
        done.append(reply)
        valid += is_valid(reply.text)
        call = {"name": f"handle_{NOUNS[0]}", "arguments": reply.text if is_valid(reply.text) else "{}"}
        identity = f"call_{number}_{index}"
        messages.append(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": identity, "type": "function", "function": call}],
            }
        )
        messages.append(
            {"role": "tool", "tool_call_id": identity, "content": f"done, step {index} of the order is next"}
        )
    return AgentRun(
        tuple(seconds),
        tuple(firsts),
        valid,
        sum(one.prompt_tokens for one in done),
        sum(one.cached_tokens for one in done),
        sum(one.completion_tokens for one in done),
    )
