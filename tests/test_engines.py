"""Engines elsewhere, as real processes of the built-in model: `toolwire engine` behind `toolwire serve`."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.engine_faults import Streamed, requests, stream_all
from server.backends.protocol import PROTOCOL
from server.checkpoint.locate import BUILT_IN_FOLDER
from server.cli.banner import EXAMPLE_TOOL
from server.cli.engines import change_file
from server.offline import Chat
from tests.backends.remote_engines import foreign_server
from tests.backends.test_remote import Handle, sends, welcomes
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
    with Chat("tiny", engine=(cluster.engines[0].url,), engine_key=KEY) as chat:
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


def other_checkpoint(folder: Path, part: str) -> Path:
    """A copy of the built-in model that differs in this part."""
    copy = folder / part
    shutil.copytree(BUILT_IN_FOLDER, copy)
    if part == "weights":
        with (copy / "model.safetensors").open("r+b") as file:  # where a fingerprint has one of its samples
            file.seek((copy / "model.safetensors").stat().st_size // 2)
            file.write(bytes(64))
        return copy
    path = copy / {"config.json": "config.json", "vocabulary": "tokenizer.json"}[part]
    content = json.loads(path.read_text(encoding="utf-8"))
    if part == "vocabulary":
        added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        content["added_tokens"].append({"id": 2048, "content": "a token more", **added})
    else:
        content["rms_norm_eps"] = 1e-5
    path.write_text(json.dumps(content), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    "part",
    [
        "vocabulary",
        pytest.param("config.json", marks=pytest.mark.long),
        pytest.param("weights", marks=pytest.mark.long),
    ],
)
def test_an_engine_of_another_checkpoint_is_refused(cluster: Cluster, tmp_path: Path, part: str) -> None:
    """Its ids would be decoded by another vocabulary, or its replies be another model's."""
    model = other_checkpoint(tmp_path, part)
    ended = run(
        "serve", "--port", "0", "--model", str(model), "--no-self-test", "--engine", cluster.engines[1].url,
        "--engine-key", KEY,
    )  # fmt: skip
    assert ended.returncode == 2
    assert f"it serves another checkpoint: its {part}" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        (welcomes(protocol=PROTOCOL - 1), f"it speaks protocol {PROTOCOL - 1}, this server {PROTOCOL}"),
        pytest.param(sends(b"\xff\xfe"), "it is no toolwire engine of this version", marks=pytest.mark.long),
    ],
)
async def test_an_engine_that_speaks_something_else_is_refused(handle: Handle, words: str) -> None:
    """By the real command: one line, and the exit code of a mistake at the start."""
    async with foreign_server(handle) as url:
        ended = await asyncio.to_thread(run, "serve", "--port", "0", "--no-self-test", "--engine", url)
    assert ended.returncode == 2
    assert words in ended.stderr and "Traceback" not in ended.stderr


@contextmanager
def cut_off(target: str, num_bytes: int) -> Iterator[str]:
    """The address of a proxy that ends its only connection after this number of bytes from the engine."""
    host, _, port = target.removeprefix("http://").partition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def forward() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection((host, int(port))) as engine:
                threading.Thread(target=_copy, args=(client, engine), daemon=True).start()
                left = num_bytes
                while left > 0 and (data := engine.recv(min(left, 4096))):
                    client.sendall(data)
                    left -= len(data)

        threading.Thread(target=forward, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(4096):
            target.sendall(data)


def test_a_connection_that_stops_in_the_middle_of_a_reply_loses_none(cluster: Cluster) -> None:
    """Behind the engine's greeting, heartbeats and the first tokens of 8 replies; they go on at the other engine."""
    bodies = requests(8)
    _, second = cluster.engines
    with cut_off(second.url, 12_000) as cut:
        addresses = ("--engine", cut, "--engine", second.url)
        with live_server(*addresses, "--no-self-test", TOOLWIRE_ENGINE_KEY=KEY) as server:
            wait_for_states(server, **{cut: "up", second.url: "up"})
            found = asyncio.run(stream_all(server, bodies, None))
            assert engines_of(server)[cut]["state"] == "unreachable", "it was to be cut off"
    whole = asyncio.run(stream_all(cluster.server, bodies, None))
    assert [one.end for one in found] == ["complete"] * 8
    assert [number for number in range(8) if _others(found[number], whole[number])] == []
