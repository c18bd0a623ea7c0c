"""Workloads that are sent to every server alike: chat streams and an agent's tool loop."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator

from benchmarks.load import Exchange, closed_loop, connect, exchange, words

NUM_TOOLS = 20
ROUNDS = 10
NOUNS = (
    "order", "customer", "invoice", "ticket", "shipment", "refund", "product", "review", "coupon", "account",
    "session", "report", "campaign", "contract", "supplier", "warehouse", "payment", "message", "meeting", "task",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AgentRun:
    """One agent's loop of tool calls. Times are those of the rounds whose reply was one finished, valid call."""

    round_s: tuple[float, ...]
    first_argument_s: tuple[float, ...]
    rounds: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def chat(model: str, prompt_words: int, max_tokens: int, seed: int, head: str = "") -> dict[str, Any]:
    """Return a greedy request whose reply has `max_tokens` tokens."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": head + words(prompt_words, seed)}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


PROPERTIES: dict[str, Any] = {
    "action": {"type": "string", "enum": ["create", "read", "update", "delete"]},
    "priority": {"type": "integer", "minimum": 1, "maximum": 9},
    "status": {"type": "string", "enum": ["open", "pending", "closed"]},
    "notify": {"type": "boolean"},
    "channel": {"type": "string", "enum": ["email", "phone", "chat", "letter"]},
}
PARAMETERS = {
    "type": "object",
    "properties": PROPERTIES,
    "required": list(PROPERTIES),
    "additionalProperties": False,
}


def make_tools(count: int = NUM_TOOLS) -> list[dict[str, Any]]:
    """Return tools of enums, booleans and bounded numbers: no server's grammar can spend tokens on white space."""
    tools = []
    for noun in NOUNS[:count]:
        function = {
            "name": f"update_{noun}",
            "description": f"Update one {noun}.",  # words that the built-in model knows: it decides in `agents_auto`
            "parameters": PARAMETERS,
            "strict": True,  # some servers constrain a forced call to its schema only then
        }
        tools.append({"type": "function", "function": function})
    return tools


async def run_chats(url: str, bodies: Sequence[dict[str, Any]], streams: int) -> tuple[list[Exchange], float]:
    """Run a closed loop over chat requests."""
    return await closed_loop(url, bodies, streams)


async def run_agents(url: str, model: str, names: Sequence[int], *, forced: bool) -> tuple[list[AgentRun], float]:
    """Run one concurrent tool loop for each name, ten rounds with the same twenty tools; runs and total seconds."""
    async with connect(url) as client:
        began_s = time.perf_counter()
        runs = await asyncio.gather(*(_agent(client, model, number, forced) for number in names))
        return list(runs), time.perf_counter() - began_s


async def forced_call(url: str, model: str, seed: int) -> Exchange:
    """Stream one named call with five arguments."""
    body = _call_body(model, [{"role": "user", "content": f"Update the order, please. {words(20, seed)}"}], forced=True)
    async with connect(url) as client:
        return await exchange(client, body)


def is_valid(arguments: str) -> bool:
    """Return whether a call's arguments are complete JSON that is valid against the schema."""
    try:
        return Draft202012Validator(PARAMETERS).is_valid(json.loads(arguments))
    except json.JSONDecodeError:
        return False


def _call_body(model: str, messages: list[dict[str, Any]], *, forced: bool) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": f"update_{NOUNS[0]}"}}
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


async def _agent(client: aiohttp.ClientSession, model: str, number: int, forced: bool) -> AgentRun:
    system = f"You are agent {number} of a shop."
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    seconds, firsts, done = [], [], []
    for index in range(ROUNDS):
        values = f"with priority {1 + index % 9}, with status pending, with channel email and with notify on"
        question = f"Please update the order with action read, {values}."
        messages.append({"role": "user", "content": question})
        began_s = time.perf_counter()
        reply = await exchange(client, _call_body(model, messages, forced=forced))
        done.append(reply)
        valid = is_valid(reply.text)
        if valid:
            seconds.append(time.perf_counter() - began_s)
            firsts.append(reply.first_token_s)
        elif forced:
            break  # this server does not constrain forced calls to the schema: more rounds show nothing
        call = {"name": f"update_{NOUNS[0]}", "arguments": reply.text if valid else "{}"}
        calls = [{"id": f"call_{number}_{index}", "type": "function", "function": call}]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": f"done, step {index}"})
    return AgentRun(
        tuple(seconds),
        tuple(firsts),
        len(done),
        sum(one.prompt_tokens for one in done),
        sum(one.cached_tokens for one in done),
        sum(one.completion_tokens for one in done),
    )
