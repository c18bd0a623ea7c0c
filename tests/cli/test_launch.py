"""`toolwire launch`: the program is started with what points it at the server, and faults are one line."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.cli.launch import PROGRAMS, read_arguments
from tests.contract.requests import MODEL
from tests.live import ROOT, Live

FAKE = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}))
"""


def launch(folder: Path, *arguments: str, module: str = "server.cli.launch") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Programs that print how they were started."""
    for name in PROGRAMS:
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_is_pointed_at_the_server(live: Live, folder: Path, program: str) -> None:
    result = launch(folder, program, "--url", f"{live.url}/v1", "--key", "secret", "-p", "Hello")
    started: dict[str, Any] = json.loads(result.stdout)
    everything = json.dumps(started)
    assert started["arguments"][-2:] == ["-p", "Hello"]
    assert live.url in everything and MODEL in everything
    assert "secret" in json.dumps(started["environment"]) and "secret" not in json.dumps(started["arguments"])


def test_claude_code_has_the_address_without_v1_and_one_model(live: Live, folder: Path) -> None:
    started = json.loads(launch(folder, "claude", "--url", live.url).stdout)
    environment = started["environment"]
    assert environment["ANTHROPIC_BASE_URL"] == live.url and environment["ANTHROPIC_API_KEY"] == ""
    assert environment["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == MODEL and started["arguments"] == ["--model", MODEL]


def test_programs_know_the_window_of_the_model(live: Live, folder: Path) -> None:
    """Claude Code took a window of a million tokens, and opencode none: neither compacted a conversation in time."""
    environment = json.loads(launch(folder, "claude", "--url", live.url).stdout)["environment"]
    assert environment["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "8192"
    assert environment["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "1024"
    environment = json.loads(launch(folder, "opencode", "--url", live.url).stdout)["environment"]
    provider = json.loads(environment["OPENCODE_CONFIG_CONTENT"])["provider"]["toolwire"]
    assert provider["models"][MODEL]["limit"] == {"context": 8192, "output": 1024}


@pytest.mark.parametrize(
    ("sent", "own"),
    [
        (["exec", "hello"], ["exec", "hello"]),
        (["--", "exec", "hello", "--url"], ["exec", "hello", "--url"]),  # as Ollama's users write it
        (["exec", "--", "--weird"], ["exec", "--", "--weird"]),
        (["--k", "v", "--ur", "w"], ["--k", "v", "--ur", "w"]),  # no abbreviations of our options
        (["--model", "other", "-m", "x"], ["-m", "x"]),
        ([], []),
    ],
)
def test_arguments_that_are_not_known_are_the_programs(sent: list[str], own: list[str]) -> None:
    assert read_arguments(["codex", "--key", "k", *sent])[1] == own


def test_the_command_itself_keeps_what_separates_the_arguments(live: Live, folder: Path) -> None:
    """`toolwire launch` lost a `--` on the way to its module. An address needs no scheme."""
    sent = ("launch", "codex", "--url", live.url.removeprefix("http://"), "exec", "--", "--weird")
    assert json.loads(launch(folder, *sent, module="server").stdout)["arguments"][-3:] == ["exec", "--", "--weird"]


def test_faults_say_what_to_do(live: Live, folder: Path) -> None:
    absent = launch(folder, "claude", "--url", "http://127.0.0.1:9")
    assert absent.returncode == 1 and "start one with: toolwire serve" in absent.stderr
    for address in ("http://[::1", live.url + "/docs/x"):
        other = launch(folder, "claude", "--url", address)
        assert other.returncode == 1 and len(other.stderr.splitlines()) == 1, other.stderr
    unknown = launch(folder, "claude", "--url", live.url, "--model", "other")
    assert unknown.stderr == f"{live.url} does not serve the model 'other'; it serves: {MODEL}\n"
    (folder / "qwen").unlink()
    missing = launch(folder, "qwen")
    assert missing.returncode == 1 and "npm install -g @qwen-code/qwen-code" in missing.stderr


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": [{"id": "m"}]}', b""])
def test_another_program_that_answers_is_no_traceback(folder: Path, body: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request).start()
        result = launch(folder, "claude", "--url", f"http://127.0.0.1:{server.server_port}")
    assert result.returncode == 1 and "is not toolwire" in result.stderr and len(result.stderr.splitlines()) == 1
