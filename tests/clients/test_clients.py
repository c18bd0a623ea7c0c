"""Every client, run as a user would run it, against a real server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT, Live


def run(*command: str, text: str = "", **environment: str) -> str:
    """Return the standard output of a command that must exit with 0."""
    ended = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **environment}
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def client(live: Live, name: str, *options: str, text: str = "") -> str:
    """Return the standard output of `python -m clients.NAME`."""
    return run(sys.executable, "-m", f"clients.{name}", "--url", f"{live.url}/v1", *options, text=text)


def test_a_tool_call_its_result_and_the_answer(live: Live) -> None:
    lines = client(live, "tool_call").splitlines()
    assert lines[0].startswith('get_weather({"city": "Oslo"')
    assert '"temperature"' in lines[0]
    assert lines[-1] not in ("", "None")


def test_arguments_are_streamed_in_pieces(live: Live) -> None:
    output = client(live, "streaming")
    pieces, call = output.splitlines()[0], output.splitlines()[1]
    assert pieces.count("|") > 2
    assert call == f"call: get_weather({pieces.replace('|', '')})"
    assert "tokens read" in output


def test_concurrent_requests_each_get_their_own_reply(live: Live) -> None:
    lines = client(live, "asynchronous").splitlines()
    assert len(lines) == 8
    assert all("get_weather({" in line for line in lines)


def test_parallel_calls_are_run_and_their_results_returned(live: Live) -> None:
    lines = client(live, "parallel_calls").splitlines()
    calls = [line for line in lines if " -> " in line]
    assert [city in line for city, line in zip(("Paris", "Rome"), calls, strict=True)] == [True, True]


def test_a_structured_reply_is_an_object(live: Live) -> None:
    assert client(live, "structured_output").startswith("city=")


def test_the_tool_loop_ends_with_text(live: Live) -> None:
    output = client(live, "tool_loop", "--ask", "What is the weather in Rome?")
    assert "get_weather(" in output.splitlines()[0]
    assert output.splitlines()[-1].strip()


def test_chat_runs_functions_of_a_file(live: Live) -> None:
    """`toolwire chat` end to end: the command starts the client, the client loads the tools, the calls are shown."""
    tools = ("--tools", str(ROOT / "clients" / "example_tools.py"))
    command = (sys.executable, "-m", "server", "chat", "--url", f"{live.url}/v1", *tools)
    output = run(*command, text="/tools\nWhat is the weather in Paris?\n/reset\nHello!\n/quit\nnever sent\n")
    assert "get_time" in output
    assert 'get_weather({"city": "Paris"' in output
    assert '  = {"city": "Paris"' in output


def test_chat_reports_an_unreachable_server_in_one_line(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "server", "chat", "--url", "http://127.0.0.1:9/v1")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.strip() == "no server answers at http://127.0.0.1:9/v1; start one with: toolwire serve"


def test_chat_has_its_own_help() -> None:
    assert "--tools" in run(sys.executable, "-m", "server", "chat", "--help")


def test_node_streams_a_tool_loop(live: Live) -> None:
    output = run("node", "clients/node/tool_loop.mjs", f"{live.url}/v1", "What is the weather in Berlin?")
    assert output.startswith('get_weather({"city": "Berlin"')
    assert output.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["models", "tool_call", "stream", "tool_result"])
def test_curl_scripts(live: Live, name: str) -> None:
    output = run(str(ROOT / "clients" / "curl" / f"{name}.sh"), live.url)
    match name:
        case "models":
            assert json.loads(output)["data"][0]["id"] == "toolwire-demo"
        case "tool_call":
            assert json.loads(output)["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
        case "tool_result":
            assert json.loads(output)["choices"][0]["message"]["content"]
        case "stream":
            events = [line for line in output.splitlines() if line.startswith("data: ")]
            assert events[-1] == "data: [DONE]"
            assert len(events) > 5
