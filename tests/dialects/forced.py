"""Forced calls by random weights over HTTP: a real server, the real Qwen vocabulary, every tool, streamed and whole.

    python -m tests.dialects.forced [--tools 200] [--family qwen3] [--out benchmarks/results/forced-calls.json]

With random weights only the grammar makes a reply valid. Temperature 1.5, one seed per tool. Drawn from 150,000 ids of
nearly equal probability, a string would hardly ever end: `logit_bias` makes its end likely enough; it does not override
the mask. In Qwen3-Coder's format four tokens in a row end a string, which no bias makes likely: there strings without a
`maxLength` get one. A call truncated by `max_tokens` counts as unfinished, and the command fails.

The streamed and the complete request of a tool run concurrently, in batches with others. Sums are rounded differently
in other batches, and between ids of nearly equal probability the last bit sometimes decides: where the two replies
differ, both requests are sent again alone and must then agree (`rounded_apart`).
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from server.dialects.base import Tool
from tests.dialects.over_http import Reply, send
from tests.dialects.tools import make_tools
from tests.families import FAMILIES, family_checkpoint
from tests.live import Live, live_server

AT_ONCE = 24
MAX_TOKENS = 3200
THOUGHTS = 12  # tokens of thought before every fourth call, where the family thinks
# Ends of a string and their bias, by which a string has some ten tokens.
ENDINGS: dict[str, tuple[tuple[str, float], ...]] = {
    "hermes": (('"', 15.5),),
    "react": (('"', 20.0),),
    "kimi_k2": (('"', 15.5),),
    "glm4": (('"', 15.5), ("</arg_value>", 15.5)),
    "qwen3_coder": (('"', 24.0), ("\n</parameter>\n", 24.0)),
}
TURN_ENDS = {"qwen3_coder": ("<|im_end|>", 26.0)}  # where a likely line break also begins another call
MAX_STRING_LENGTH = {"qwen3_coder": 40}  # characters of a string that its schema does not bound


@dataclass(slots=True)
class Outcome:
    """Counts of one family."""

    family: str
    dialect: str
    tools: int = 0
    requests: int = 0
    calls: int = 0
    valid: int = 0
    unfinished: int = 0
    streamed_equal: int = 0
    rounded_apart: int = 0
    completion_tokens: int = 0
    longest_tokens: int = 0
    seconds: float = 0.0
    server_cpu_s: float = 0.0


def definition(tool: Tool) -> dict[str, Any]:
    """Return the tool as a client sends it."""
    function: dict[str, Any] = {"name": tool.name, "description": f"Does {tool.name}."}
    return {"type": "function", "function": function | ({"parameters": tool.parameters} if tool.parameters else {})}


def bounded(schema: Any, longest: int) -> Any:
    """Return the schema with `maxLength` on every string that has none; where anything goes, it is such a string."""
    if isinstance(schema, list):
        return [bounded(one, longest) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(properties := schema.get("properties"), dict):
        schema = {**schema, "properties": {name: one or {"type": "string"} for name, one in properties.items()}}
    bound = {"maxLength": longest} if schema.get("type") in ("string", ["string", "null"]) else {}
    return bound | {key: one if key in ("enum", "const") else bounded(one, longest) for key, one in schema.items()}


def tools_for(dialect: str) -> list[Tool]:
    """Return the tools, with bounded strings where the format needs them."""
    tools = make_tools()
    if dialect not in MAX_STRING_LENGTH:
        return tools
    return [replace(tool, parameters=bounded(tool.parameters, MAX_STRING_LENGTH[dialect])) for tool in tools]


def request_for(tools: Sequence[Tool], number: int, bias: dict[str, float], thinks: bool) -> dict[str, Any]:
    """Return the request for one tool; its number decides on named or required, parallel calls and thinking."""
    tool = tools[number]
    beside = [tools[(number + 7) % len(tools)], tools[(number + 31) % len(tools)]] if number % 3 == 0 else []
    named = {"type": "function", "function": {"name": tool.name}}
    thought = thinks and number % 4 == 1
    return {
        "model": "any",
        "messages": [{"role": "user", "content": f"Please use {tool.name}."}],
        "tools": [definition(one) for one in [tool, *beside]],
        "tool_choice": named if number % 2 else "required",
        "parallel_tool_calls": number % 5 == 0,
        "temperature": 1.5,
        "top_p": 1,
        "top_k": 0,
        "seed": number,
        "max_tokens": MAX_TOKENS,
        "logit_bias": bias,
        **({"thinking_budget": THOUGHTS} if thought else {"chat_template_kwargs": {"enable_thinking": False}}),
    }


def endings(tokenizer: Tokenizer, dialect: str) -> dict[str, float]:
    """Return the bias towards the end of a string."""
    ids = [(tokenizer.encode(text, add_special_tokens=False).ids, bias) for text, bias in ENDINGS[dialect]]
    return {str(token_id): bias for several, bias in ids for token_id in several}


def faults(reply: Reply, schemas: dict[str, Any], single: bool) -> list[str]:
    """Return the faults of a forced reply; `schemas` are those of the tools that may be called."""
    found = [] if reply.calls else ["no call"]
    if single and len(reply.calls) > 1:
        found.append("several calls")
    if reply.content:
        found.append(f"text beside the calls: {reply.content!r}")
    if reply.finish != "tool_calls":
        found.append(f"finish_reason {reply.finish}")
    found += [f"flagged {flag}" for flag in reply.flags if flag != "repeated"]
    for name, arguments in reply.calls:
        if name not in schemas:
            found.append(f"calls {name}")
            continue
        try:
            value = json.loads(arguments)
        except ValueError as error:
            found.append(f"{name}: no JSON: {error}")
            continue
        validator = Draft202012Validator(schemas[name], format_checker=Draft202012Validator.FORMAT_CHECKER)
        found += [f"{name}: {error.message[:200]}" for error in validator.iter_errors(value)]
    return found


async def run(server: Live, family: str, numbers: Sequence[int], outcome: Outcome) -> list[str]:
    """Send both requests of each of these tools concurrently and count; return the faults."""
    dialect = FAMILIES[family].dialect
    tools = tools_for(dialect)
    tokenizer = Tokenizer.from_file(str(family_checkpoint(family) / "tokenizer.json"))
    bias = endings(tokenizer, dialect)
    if dialect in TURN_ENDS:
        text, more = TURN_ENDS[dialect]
        bias[str(tokenizer.token_to_id(text))] = more
    bodies = {number: request_for(tools, number, bias, thinks=dialect != "react") for number in numbers}
    gate = asyncio.Semaphore(AT_ONCE)
    begun_s = time.monotonic()
    async with httpx.AsyncClient(base_url=server.url, timeout=1800) as client:

        async def both(number: int) -> tuple[Reply, Reply]:
            async with gate:
                whole, streamed = await asyncio.gather(*(send(client, bodies[number], way) for way in (False, True)))
            return whole, streamed

        pairs = dict(zip(numbers, await asyncio.gather(*map(both, numbers)), strict=True))
        outcome.seconds = round(time.monotonic() - begun_s, 1)
        wrong = []
        for number, pair in pairs.items():
            wrong += count(outcome, bodies[number], pair, {tool.name: tool.parameters or EMPTY for tool in tools})
            if pair[0] != pair[1]:
                wrong += await apart(client, bodies[number], outcome)
    process = psutil.Process(server.process.pid)
    times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    outcome.server_cpu_s = round(sum(spent.user + spent.system for spent in times), 1)
    return [f"{family}: {line}" for line in wrong]


def count(outcome: Outcome, body: dict[str, Any], pair: tuple[Reply, Reply], schemas: dict[str, Any]) -> list[str]:
    """Count both replies to one request; return their faults."""
    named = body["tool_choice"]["function"]["name"] if isinstance(body["tool_choice"], dict) else None
    shown = [definition["function"]["name"] for definition in body["tools"]]
    callable_schemas = {name: schemas[name] for name in shown if named in (None, name)}
    outcome.tools += 1
    outcome.streamed_equal += pair[0] == pair[1]
    wrong = []
    for reply in pair:
        found = faults(reply, callable_schemas, not body["parallel_tool_calls"])
        outcome.requests += 1
        outcome.calls += len(reply.calls)
        outcome.unfinished += reply.finish == "length"
        outcome.valid += not found
        outcome.completion_tokens += reply.tokens
        outcome.longest_tokens = max(outcome.longest_tokens, reply.tokens)
        wrong += [f"{shown[0]}: {'; '.join(found)}: {reply}"] if found else []
    return wrong


async def apart(client: httpx.AsyncClient, body: dict[str, Any], outcome: Outcome) -> list[str]:
    """Repeat both requests alone, after one that fills the prefix cache; return how they differ."""
    await send(client, body, False)
    pair = await send(client, body, False), await send(client, body, True)
    outcome.rounded_apart += pair[0] == pair[1]
    return [] if pair[0] == pair[1] else [f"seed {body['seed']}: whole {pair[0]} and streamed {pair[1]}"]


EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}


@contextmanager
def serve(family: str) -> Iterator[Live]:
    """Start a server of this family, which detects the dialect itself."""
    command = ("--model", str(family_checkpoint(family)), "--served-model-name", "any", "--dtype", "float32")
    with live_server(*command) as server:
        yield server


def main() -> int:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tools", type=int, default=200)
    options.add_argument("--family", choices=list(FAMILIES), action="append")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    outcomes, wrong = [], []
    for family in chosen.family or FAMILIES:
        outcome = Outcome(family, FAMILIES[family].dialect)
        with serve(family) as server:
            found = asyncio.run(run(server, family, range(chosen.tools), outcome))
        outcomes.append(outcome)
        wrong += found
        sys.stdout.write(f"{outcome}\n" + "".join(f"  {line[:600]}\n" for line in found))
    if chosen.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        summary = {
            "command": "python -m tests.dialects.forced",
            "commit": commit.stdout.strip(),
            "temperature": 1.5,
            "at_once": AT_ONCE * 2,
            "families": [asdict(outcome) for outcome in outcomes],
            "faults": wrong,
        }
        chosen.out.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
