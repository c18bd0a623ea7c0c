"""Engines elsewhere, as real processes of the built-in model: `toolwire engine` behind `toolwire serve`."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.engine_faults import Streamed, requests, stream_all
from server.cli.banner import EXAMPLE_TOOL
from server.cli.engines import change_file
from server.offline import Chat
from tests.live import ROOT, Live, live_engine, live_server

# In float32 replies are the same in every batch, and so on every engine.
OPTIONS = ("--dtype", "float32", "--kv-cache-tokens", "16384")
KEY = "a key of engines"
STREAMS = 32


@dataclass(frozen=True, slots=True)
class Cluster:
    """A server, its engines, and the file that lists them."""

    server: Live
    engines: list[Live]
    file: Path
    start_engine: Callable[[], Live]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as running:

        def start_engine() -> Live:
            return running.enter_context(live_engine(*OPTIONS, TOOLWIRE_ENGINE_KEY=KEY))

        engines = [start_engine(), start_engine()]
        file = tmp_path_factory.mktemp("engines") / "engines.txt"
        for engine in engines:
            change_file(file, "add", engine.url)
        server = running.enter_context(live_server("--engines-file", str(file), TOOLWIRE_ENGINE_KEY=KEY))
        yield Cluster(server, engines, file, start_engine)


def engines_of(server: Live) -> dict[str, dict[str, Any]]:
    """Each engine by its address, as the server reports it."""
    return {one["url"]: one for one in httpx.get(f"{server.url}/v1/engines").json()["data"]}


def wait_for_states(server: Live, **states: str) -> None:
    """Wait until the engines are as stated; the names are their addresses."""

    async def poll() -> None:
        for _ in range(600):
            if {url: one["state"] for url, one in engines_of(server).items()} == states:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"the engines are {engines_of(server)}")

    asyncio.run(poll())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of ours, to its end."""
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_tool_calls_logprobs_and_choices_come_from_elsewhere_as_from_here(cluster: Cluster) -> None:
    client = cluster.server.client()
    tools: Any = [EXAMPLE_TOOL]
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    whole = client.chat.completions.create(
        model="toolwire-demo", messages=question, tools=tools, tool_choice="required", temperature=0
    )
    call: Any = whole.choices[0].message.tool_calls[0]  # type: ignore[index]
    assert "city" in json.loads(call.function.arguments)
    stream = client.chat.completions.create(
        model="toolwire-demo", messages=question, tools=tools, tool_choice="required", temperature=0, stream=True
    )
    pieces = [one for chunk in stream for choice in chunk.choices for one in choice.delta.tool_calls or ()]
    assert "".join(one.function.arguments or "" for one in pieces if one.function) == call.function.arguments
    several = client.chat.completions.create(
        model="toolwire-demo",
        messages=question,
        n=3,
        seed=1,
        max_tokens=8,
        logprobs=True,
        top_logprobs=2,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert len(several.choices) == 3
    for choice in several.choices:
        assert choice.logprobs is not None and choice.logprobs.content
        assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content)


def test_a_refusal_of_an_engine_is_the_client_s_error(cluster: Cluster) -> None:
    body = {"model": "toolwire-demo", "messages": [{"role": "user", "content": "x " * 200_000}]}
    reply = httpx.post(f"{cluster.server.url}/v1/chat/completions", json=body, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_rounds_of_a_conversation_find_their_prefix_cached(cluster: Cluster) -> None:
    """In turn, as agents come: by chance every second round would be at the other engine."""
    conversations: list[list[Any]] = [
        [{"role": "system", "content": f"You are agent {k}. " + "Read before you write. " * 20}] for k in range(6)
    ]
    prompt = cached = 0
    for number in range(4):
        for messages in conversations:
            messages.append({"role": "user", "content": f"Step {number}: " + "what is next? " * 8})
            reply = cluster.server.client().chat.completions.create(
                model="toolwire-demo", messages=messages, max_tokens=24, temperature=0
            )
            messages.append({"role": "assistant", "content": reply.choices[0].message.content or ""})
            if number:
                assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
                prompt += reply.usage.prompt_tokens
                cached += reply.usage.prompt_tokens_details.cached_tokens or 0
    assert cached > 0.75 * prompt
    assert all(one["routed"] >= 4 for one in engines_of(cluster.server).values())


def test_the_engines_are_shown_and_counted(cluster: Cluster) -> None:
    shown = run("engines", "list", "--url", cluster.server.url)
    assert shown.returncode == 0 and shown.stdout.count("toolwire") == 2
    assert set(engines_of(cluster.server)) == {engine.url for engine in cluster.engines}
    metrics = httpx.get(f"{cluster.server.url}/metrics").text
    for engine in cluster.engines:
        assert f'toolwire_remote_engine_up{{engine="{engine.url}"}} 1' in metrics
    assert "vllm:num_requests_waiting 0" in metrics
    figures = httpx.get(f"{cluster.engines[0].url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert "toolwire_kv_blocks_total" in figures
    memory = httpx.get(f"{cluster.server.url}/v1/memory").json()
    assert len(memory["devices"]) == 2


def test_offline_chat_computes_elsewhere_too(cluster: Cluster) -> None:
    with Chat(engine=(cluster.engines[0].url,), engine_key=KEY) as chat:
        assert chat.chat([{"role": "user", "content": "Hello!"}], max_tokens=8)["role"] == "assistant"


@pytest.mark.long
def test_every_stream_survives_the_death_of_its_engine(cluster: Cluster) -> None:
    """Killed in the middle of 32 streams; then another engine takes its place while the server runs."""
    first, second = cluster.engines
    bodies = requests(STREAMS)
    with live_server(*OPTIONS) as local:
        expected = asyncio.run(stream_all(local, bodies, None))
    found = asyncio.run(stream_all(cluster.server, bodies, first.process.kill))
    assert [one.end for one in found] == ["complete"] * STREAMS
    assert [number for number in range(STREAMS) if _others(found[number], expected[number])] == []
    metrics = httpx.get(f"{cluster.server.url}/metrics").text
    moved = next(
        line for line in metrics.splitlines() if line.startswith('toolwire_requests_moved_total{progress="begun"')
    )
    assert float(moved.split()[-1]) >= STREAMS // 4
    third = cluster.start_engine()
    change_file(cluster.file, "add", third.url)
    change_file(cluster.file, "remove", first.url)
    wait_for_states(cluster.server, **{second.url: "up", third.url: "up"})
    again = asyncio.run(stream_all(cluster.server, bodies[:8], None))
    assert [number for number in range(8) if _others(again[number], expected[number])] == []


def _others(found: Streamed, expected: Streamed) -> bool:
    return (found.text, found.logprobs, found.usage) != (expected.text, expected.logprobs, expected.usage)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--engine", "10.0.0.5:8100"], "is no address of an engine"),
        (["serve", "--engines-file", "/no/such/file"], "cannot read the list of engines"),
        (["serve", "--engine", "http://127.0.0.1:9", "--max-running", "4"], "--max-running"),
        (["engine", "--listen", "8100"], "is no address"),
        (["engine", "--listen", "0.0.0.0:0"], "--engine-key"),
        (["engine", "--port", "8100"], "No such option"),
        (["engines", "list", "--url", "http://127.0.0.1:9"], "cannot be asked"),
    ],
)
def test_a_mistake_at_the_start_is_told_in_one_line(arguments: list[str], words: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2 and words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_with_another_key_does_not_start(cluster: Cluster) -> None:
    ended = run("serve", "--port", "0", "--engine", cluster.engines[1].url, "--engine-key", "another")
    assert ended.returncode == 2
    assert "no engine can be used" in ended.stderr and "--engine-key" in ended.stderr
