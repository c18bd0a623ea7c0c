"""The whole house, end to end: the command, the printed curl, the openai SDK, faults and the way out."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.live import ROOT, Live, live_server

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}
QUESTION = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]


def engine_of(server: Live) -> psutil.Process:
    """The engine process of a running server."""
    children = psutil.Process(server.process.pid).children()
    return next(child for child in children if "server.engine" in child.cmdline())


def test_the_printed_curl_can_be_pasted_and_calls_a_tool(live: Live) -> None:
    text = live.output()
    for wanted in ("URL", "Model", "Device", "Context", "KV cache"):
        assert wanted in text
    curl = text[text.index("curl ") :].split("}'\n")[0] + "}'"
    reply = subprocess.run(["bash", "-c", curl + " -sS"], capture_output=True, text=True, timeout=60)
    message = json.loads(reply.stdout)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "get_weather"
    assert "Paris" in message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
def test_the_sdk_gets_a_tool_call_whole_and_streamed_alike(live: Live, choice: object) -> None:
    asked = {"model": "toolwire-demo", "messages": QUESTION, "tools": [WEATHER], "tool_choice": choice}
    asked["temperature"] = 0
    whole = live.client().chat.completions.create(**asked).choices[0]  # type: ignore[call-overload]
    assert whole.finish_reason == "tool_calls"
    call = whole.message.tool_calls[0].function
    assert call.name == "get_weather"
    assert json.loads(call.arguments)["unit"] in ("celsius", "fahrenheit")
    with live.client().chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.arguments == call.arguments


def test_choice_none_gives_text(live: Live) -> None:
    reply = live.client().chat.completions.create(
        model="toolwire-demo", messages=QUESTION, tools=[WEATHER], tool_choice="none", max_tokens=64
    )  # type: ignore[call-overload]
    assert reply.choices[0].message.tool_calls is None
    assert "<tool_call>" not in (reply.choices[0].message.content or "")


def test_models_health_and_ready(live: Live) -> None:
    assert [model.id for model in live.client().models.list()] == ["toolwire-demo"]
    assert live.client().models.retrieve("toolwire-demo").id == "toolwire-demo"
    assert httpx.get(f"{live.url}/health").status_code == 200
    assert httpx.get(f"{live.url}/ready").status_code == 200


def test_a_taken_port_is_one_line(live: Live) -> None:
    port = live.url.rsplit(":", 1)[1]
    ended = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", port], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ended.returncode == 2
    assert f"127.0.0.1:{port}" in ended.stderr and "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_model_that_does_not_fit_is_refused_before_loading(tmp_path: Path) -> None:
    """Weights of a terabyte by their headers: the server must say so instead of being killed while it loads."""
    for file in (ROOT / "server" / "demo_model").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config.update(hidden_size=65536, intermediate_size=262144, num_hidden_layers=200)
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = 1 << 40
    header = json.dumps(
        {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    )
    with (tmp_path / "model.safetensors").open("wb") as file_out:
        file_out.write(len(header).to_bytes(8, "little") + header.encode())
        file_out.truncate(8 + len(header) + size)
    ended = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", "0", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert ended.returncode == 2
    assert "memory" in ended.stderr or "fit" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_processes_cleanly(number: signal.Signals) -> None:
    with live_server() as server:
        engine = engine_of(server)
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        engine.wait(10)
        assert "Traceback" not in server.output()


def test_a_killed_api_process_leaves_no_engine_behind() -> None:
    with live_server() as server:
        engine = engine_of(server)
        server.process.kill()
        engine.wait(15)


def test_a_killed_engine_is_told_to_running_requests_and_restarted() -> None:
    with live_server() as server:
        failure: list[openai.APIError] = []
        begun = threading.Event()

        def read() -> None:
            asked = {"model": "toolwire-demo", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
            try:
                extra = {"ignore_eos": True}
                for _ in server.client().chat.completions.create(**asked, max_tokens=4000, extra_body=extra):  # type: ignore[call-overload]
                    begun.set()
            except openai.APIError as error:
                failure.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(30)
        os.kill(engine_of(server).pid, signal.SIGKILL)
        reader.join(30)
        assert failure and "engine" in str(failure[0])
        statuses = set()
        for _ in range(400):
            statuses.add(httpx.get(f"{server.url}/ready").status_code)
            if statuses == {200, 503} or (503 in statuses and 200 in statuses):
                break
            time.sleep(0.05)
        assert 503 in statuses
        deadline_s = time.monotonic() + 60
        while httpx.get(f"{server.url}/ready").status_code != 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        reply = server.client().chat.completions.create(model="toolwire-demo", messages=QUESTION, tools=[WEATHER])  # type: ignore[list-item]
        assert reply.choices[0].finish_reason in ("tool_calls", "stop")


def test_sigterm_lets_a_running_stream_finish() -> None:
    with live_server() as server:
        stream = server.client().chat.completions.create(
            model="toolwire-demo",
            messages=[{"role": "user", "content": "Hello!"}],
            stream=True,
            max_tokens=300,
            extra_body={"ignore_eos": True},
        )
        chunks = iter(stream)
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert finishes[-1] == "length"
        assert server.process.wait(30) == 0


def test_a_second_start_is_refused_while_the_first_serves_but_a_free_port_is_found() -> None:
    """`--port 0` must tell the port that was taken."""
    with live_server() as first, live_server() as second, socket.socket() as probe:
        assert first.url != second.url
        port = int(second.url.rsplit(":", 1)[1])
        probe.connect(("127.0.0.1", port))
