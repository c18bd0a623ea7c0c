"""`toolwire launch`: the program is started with what points it at the server, and faults are one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.cli.launch import PROGRAMS
from tests.contract.requests import MODEL
from tests.live import ROOT, Live

FAKE = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}))
"""


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "server.cli.launch", *arguments]
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


def test_faults_say_what_to_do(folder: Path) -> None:
    absent = launch(folder, "claude", "--url", "http://127.0.0.1:9")
    assert absent.returncode == 1 and "start one with: toolwire serve" in absent.stderr
    (folder / "qwen").unlink()
    missing = launch(folder, "qwen")
    assert missing.returncode == 1 and "npm install -g @qwen-code/qwen-code" in missing.stderr
