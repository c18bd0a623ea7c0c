"""Streaming clients of a server, which record how every request ended: python -m benchmarks.stream_clients URL MODEL.

Closed loop: each client sends its next request when its last one has ended, until the standard input ends; running
requests are then read to their end. Prints one JSON line for each request. Needs httpx alone, so that it runs wherever
the server does; several processes of it load a server that one cannot.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import uvloop

TIMEOUT_S = 120.0
LONGEST_WAIT_S = 2.0  # after a shed request, whatever its Retry-After says
WORDS = ("the", "server", "reads", "one", "token", "after", "another", "and", "writes", "what", "it", "has", "learned")
COMPLETE, SHED = "complete", "shed"


@dataclass(frozen=True, slots=True)
class Ended:
    """One request: when it began, seconds to its first text and to its end, tokens, and how it ended.

    `end` is `complete`, `shed STATUS` (429 or 503 with a Retry-After), or says what was wrong.
    """

    began_s: float  # since the epoch
    first_s: float | None
    seconds: float
    completion_tokens: int
    end: str


def request(rng: random.Random, model: str, prompt_words: int, most_tokens: int) -> dict[str, Any]:
    """Body of a streamed chat of which the number of tokens is known."""
    text = " ".join(rng.choice(WORDS) for _ in range(prompt_words))
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": rng.randint(max(1, most_tokens // 5), most_tokens),
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def exchange(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[Ended, float]:
    """Send one request and read it to its end; also returns the seconds to wait before the next one."""
    began_s, began = time.time(), time.perf_counter()
    first_s: float | None = None
    tokens, end, wait_s = 0, "", 0.0
    finish: str | None = None
    is_done = False
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                text = (await reply.aread()).decode(errors="replace")
                wait = reply.headers.get("retry-after")
                is_shed = reply.status_code in (429, 503) and wait is not None
                end = f"{SHED} {reply.status_code}" if is_shed else f"status {reply.status_code}: {text[:200]}"
                wait_s = min(float(wait or 0.0), LONGEST_WAIT_S)
            else:
                async for line in reply.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        is_done = True
                        continue
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        end = f"error event: {json.dumps(chunk['error'])[:200]}"
                        break
                    tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                    for choice in chunk["choices"]:
                        finish = choice["finish_reason"] or finish
                        if first_s is None and (choice["delta"].get("content") or choice["delta"].get("reasoning")):
                            first_s = time.perf_counter() - began
    except (httpx.HTTPError, ValueError) as error:
        end = f"{type(error).__name__}: {error}"[:200]
    seconds = time.perf_counter() - began
    end = end or _fault(finish, tokens, body["max_tokens"], is_done=is_done) or COMPLETE
    return Ended(began_s, first_s, seconds, tokens, end), wait_s


def _fault(finish: str | None, tokens: int, asked: int, *, is_done: bool) -> str:
    if not is_done:
        return "the stream ended without [DONE]"
    if finish != "length" or tokens != asked:
        return f"finish {finish} after {tokens} of {asked} tokens"
    return ""


async def run(options: argparse.Namespace) -> None:
    """Run the clients until the standard input ends."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, sys.stdin.read).add_done_callback(lambda _: stop.set())
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.streams)
    async with httpx.AsyncClient(base_url=options.url, timeout=TIMEOUT_S, limits=limits) as http:

        async def client(number: int) -> None:
            rng = random.Random(f"{options.seed}/{number}")
            while not stop.is_set():
                body = request(rng, options.model, options.prompt_words, options.most_tokens)
                ended, wait_s = await exchange(http, body)
                print(json.dumps(asdict(ended)), flush=True)
                if wait_s:
                    await asyncio.sleep(wait_s)

        await asyncio.gather(*(client(number) for number in range(options.streams)))


def main(argv: list[str] | None = None) -> None:
    """Run the clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompt-words", type=int, default=300)
    parser.add_argument("--most-tokens", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    uvloop.run(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
