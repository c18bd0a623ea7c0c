"""Memory close above the model, other processes that take and give it back, and a mixture of requests over HTTP.

    python -m benchmarks.soak_memory [--model FOLDER] [--requests 500] [--clients 16] [--spare-mib 400] [--grab]
                                     [--write FILE]

The server and the process that competes with it share one cgroup (version 1 or 2) whose limit is the server's own
memory after loading plus --spare-mib, so what one takes the other lacks, and who exceeds it is killed by the kernel.
With --grab the other process allocates as fast as it can write, and more than the server can give back: then the
kernel may kill it or the engine, which must restart, and running requests may end with an error.
Where no cgroup can be made it says so and ends with 2. Exit code 1 if the engine died, a request was lost, or a
refusal was anything but a 400, 429 or 503 in shape.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.soak_group import CannotLimit, Group

MIB = 1 << 20
START_TIMEOUT_S = 300.0
REPLY_TIMEOUT_S = 900.0  # on a machine that does other things as well
REFUSALS = (400, 429, 503)
UNDER_GRAB = (*REFUSALS, 500)  # to requests that ran when the kernel killed it twice
COMPETITOR = """
import os, random, sys, time
rng, pause_s = random.Random(7), float(sys.argv[2])
while True:
    time.sleep(rng.choice((1.0, 4.0)))
    if child := os.fork():  # the kernel may kill it
        os.waitpid(child, 0)
        rng.random()
        continue
    held = []
    for _ in range(int(sys.argv[1]) // rng.choice((2, 3, 4) if pause_s else (1, 2))):
        held.append(bytearray(b"x") * (1 << 20))
        time.sleep(pause_s)
    time.sleep(rng.choice((1.0, 3.0)))
    os._exit(0)
"""


@dataclass(slots=True)
class Outcome:
    """What came of the requests."""

    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    levels: Counter[str] = field(default_factory=Counter)


def question(rng: random.Random, model: str, context: int) -> dict[str, Any]:
    """Short and long prompts, several choices, logprobs, streams; a few that can never fit."""
    length = rng.choice((5, 5, 5, 5, 30, 30, 30, 30, 30, 200, 200, min(1000, context // 4)))
    words = " ".join(rng.choice(("river", "stone", "seven", "green", "paper")) for _ in range(length))
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"Say something about: {words}"}],
        "max_tokens": rng.choice((1, 8, 16, 32, 64)),
        "temperature": rng.choice((0, 0.7, 1.0)),
        "top_p": rng.choice((0.5, 0.95, 1.0)),
        "stream": rng.random() < 0.5,
        "ignore_eos": rng.random() < 0.5,
    }
    if rng.random() < 0.3:
        body["n"] = rng.choice((2, 4))
    if rng.random() < 0.3:
        body["logprobs"], body["top_logprobs"] = True, rng.choice((0, 5, 20))
    if rng.random() < 0.03:  # can never fit
        body["messages"][0]["content"] *= 1 + 2 * context // length
    return body


def exchange(http: httpx.Client, body: dict[str, Any], refusals: tuple[int, ...] = REFUSALS) -> str:
    """How one request ended; raises ValueError where that is not in shape."""
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        raw = response.read()
    if response.status_code != 200:
        error = json.loads(raw)["error"]
        if response.status_code not in refusals or not error["message"] or "code" not in error:
            raise ValueError(f"{response.status_code}: {raw[:200]!r}")
        if response.status_code == 429 and "retry-after" not in response.headers:
            raise ValueError("429 without Retry-After")
        return f"{response.status_code} {error['code']}"
    if not body["stream"]:
        choices = json.loads(raw)["choices"]
        if len(choices) != body.get("n", 1) or not all(choice["finish_reason"] for choice in choices):
            raise ValueError(f"a reply without its choices: {raw[:200]!r}")
        return "200"
    frames = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    if frames[-1:] != ["[DONE]"]:
        raise ValueError(f"a stream without its end: {frames[-1:]}")
    chunks = [json.loads(frame) for frame in frames[:-1]]
    if faults := [chunk["error"] for chunk in chunks if "error" in chunk]:
        return f"stream ended by {faults[0].get('code')}"
    ended = [choice for chunk in chunks for choice in chunk["choices"] if choice.get("finish_reason")]
    if len(ended) != body.get("n", 1):
        raise ValueError(f"{len(ended)} of {body.get('n', 1)} choices ended")
    return "200"


def play(url: str, options: argparse.Namespace) -> Outcome:
    """Send all requests from the clients, each with its own connection, and record the memory level meanwhile."""
    requests, clients, refusals = options.requests, options.clients, UNDER_GRAB if options.grab else REFUSALS
    outcome, over = Outcome(), threading.Event()
    listed = httpx.get(f"{url}/v1/models").json()["data"][0]
    context = int(listed.get("max_model_len", 2048))

    def client(number: int) -> None:
        rng = random.Random(f"{options.seed}/{number}")
        with httpx.Client(base_url=url, timeout=REPLY_TIMEOUT_S) as http:
            for _ in range(requests // clients + (number < requests % clients)):
                try:
                    outcome.ends[exchange(http, question(rng, listed["id"], context), refusals)] += 1
                except (ValueError, KeyError, httpx.HTTPError) as error:
                    outcome.faults.append(f"{type(error).__name__}: {error}")

    def look() -> None:
        while not over.wait(0.2):
            try:
                outcome.levels[httpx.get(f"{url}/v1/memory", timeout=60).json().get("level", "away")] += 1
            except (httpx.HTTPError, KeyError) as error:
                outcome.faults.append(f"GET /v1/memory: {type(error).__name__}: {error}")
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    over.set()
    watcher.join()
    return outcome


@contextmanager
def serving(model: str, group: Group) -> Iterator[tuple[str, psutil.Process]]:
    """A server inside the group; its address and process."""
    options = ["--port", "0", "--no-self-test", "--max-running", "32", "--max-batch-tokens", "512", "--max-queue", "64"]
    command = [sys.executable, "-m", "server", "serve", "--model", model, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    group.add(process.pid)
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "listening on" in line:
                ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        if not ready.wait(START_TIMEOUT_S):
            raise RuntimeError("the server did not start:\n" + "".join(lines))
        url = next(line for line in lines if "listening on" in line).split("listening on ")[1].strip()
        until_ready(url)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def until_ready(url: str) -> None:
    """Wait until the engine answers, for as long as a start may take."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while httpx.get(f"{url}/ready", timeout=60).status_code != 200 and time.monotonic() < deadline_s:
        time.sleep(0.2)


def engine_of(server: psutil.Process) -> psutil.Process:
    """The engine process of this server."""
    return next(child for child in server.children() if "server.engine" in child.cmdline())


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak_memory", description=__doc__)
    parser.add_argument("--model", default="tiny", help="checkpoint folder, tiny (the default) or smollm2")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--spare-mib", type=int, default=400, help="limit above what the server holds after loading")
    parser.add_argument("--grab", action="store_true", help="the competitor takes its memory in one go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help="file for the figures, as JSON")
    options = parser.parse_args()
    try:
        with Group() as group:
            figures = _run(options, group)
    except CannotLimit as error:
        print(f"no cgroup can be made here: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures, indent=1))
    if options.write:
        options.write.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def _run(options: argparse.Namespace, group: Group) -> dict[str, Any]:
    limit = _memory_after_loading(options.model, group) + options.spare_mib * MIB
    group.limit(limit)
    began_s = time.monotonic()
    with serving(options.model, group) as (url, server):
        engine = engine_of(server)
        competitor = subprocess.Popen(
            [sys.executable, "-c", COMPETITOR, str(options.spare_mib), "0" if options.grab else "0.03"]
        )
        group.add(competitor.pid)
        try:
            outcome = play(url, options)
        finally:
            competitor.kill()
            competitor.wait()
        until_ready(url)
        alive = engine.is_running() and engine == engine_of(server)
        memory = httpx.get(f"{url}/v1/memory").json()
        preempted = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if "preemptions_total " in line]
    answered = sum(outcome.ends.values())
    return {
        "passed": answered == options.requests
        and not outcome.faults
        and (options.grab or (alive and not group.kills())),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "command": "python -m benchmarks.soak_memory " + " ".join(sys.argv[1:]),
        "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
        "limit_mib": limit // MIB,
        "spare_mib": options.spare_mib,
        "seconds": round(time.monotonic() - began_s, 1),
        "requests": options.requests,
        "clients": options.clients,
        "ends": dict(outcome.ends.most_common()),
        "faults": outcome.faults[:20],
        "engine_alive": alive,
        "killed_by_the_kernel": group.kills(),
        "levels_seen": dict(outcome.levels.most_common()),
        "preemptions": preempted[0].split()[-1] if preempted else None,
        "ooms": memory.get("ooms"),
        "last_events": [text for _, text in memory.get("events", [])][-12:],
    }


def _memory_after_loading(model: str, group: Group) -> int:
    """What server and engine hold once they are ready, in the group that they will share."""
    with serving(model, group) as (url, _):
        httpx.get(f"{url}/v1/memory")
        return group.used()


if __name__ == "__main__":
    sys.exit(main())
