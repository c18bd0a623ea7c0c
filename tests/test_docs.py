"""Commands in the documents, run: a fenced block behind `<!-- run -->` must end with exit code 0.

The address `http://127.0.0.1:8000` in them is replaced by that of the test's own server.
"""

import dataclasses
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.api.chat.schemas import ChatCompletionRequest, StreamOptions
from server.api.chat.wire import CallNote, MissedToolCallNote, Notes
from server.checkpoint.shipped import find_base
from server.settings import GROUPS
from tests.live import MODEL, ROOT, Live, SharedServer
from tests.store.postgres import is_installed, running_postgres

PAGES = ("*.md", "docs/*.md", "docs/internals/*.md", "demo/*.md", "clients/*.md")
DOCUMENTS = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = [
    pytest.param(path.relative_to(ROOT).as_posix(), language, text, id=f"{path.relative_to(ROOT)}-{number}")
    for path in DOCUMENTS
    for number, (language, text) in enumerate(BLOCK.findall(path.read_text(encoding="utf-8")))
]


@pytest.fixture(scope="module")
def default_server() -> Iterator[SharedServer]:
    """What `make serve` serves: SmolLM2 where its base could be fetched, else the tiny model."""
    shared = SharedServer("--model", "auto")
    yield shared
    shared.close()


@pytest.mark.parametrize(("page", "language", "text"), BLOCKS)
def test_a_block_of_the_documents_runs(
    page: str, language: str, text: str, live: Live, default_server: SharedServer, tmp_path: Path
) -> None:
    """A command that a reader pastes must not fail. The README's are sent to the model that a newcomer has."""
    printed = run_block(language, text, default_server.get() if page == "README.md" else live, tmp_path)
    assert '"error"' not in printed


def run_block(language: str, text: str, server: Live, home: Path) -> str:
    """What a block prints; fails unless it ends with exit code 0."""
    script = _with_free_ports(text.replace("http://127.0.0.1:8000", server.url), server.url)
    runners = {"python": [sys.executable, "-c", script], "bash": ["bash", "-ec", script]}
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(home), **MODEL}
    ended = subprocess.run(runners[language], capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_first_requests_of_the_readme_make_the_call_that_it_shows(
    default_server: SharedServer, tmp_path: Path
) -> None:
    """A newcomer's first reply decides whether there is a second. Without its base the tiny model serves."""
    server = default_server.get()
    expected = "toolwire-smollm2" if find_base() else "toolwire-demo"
    assert [model.id for model in server.client().models.list().data] == [expected]
    assert ("serving the tiny model, for want of" in server.output()) is (find_base() is None)
    (_, first), (_, second), *_ = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    (call,) = json.loads(run_block("bash", first, server, tmp_path))["choices"][0]["message"]["tool_calls"]
    shown = re.search(r"print\(call.name, call.arguments\)  # (.*)\n", second)
    assert shown is not None
    assert f"{call['function']['name']} {call['function']['arguments']}" == shown[1]
    assert run_block("python", second, server, tmp_path) == shown[1] + '\n{"city": "Paris"}'


def test_several_servers_share_kept_responses_as_the_page_starts_them(live: Live, tmp_path: Path) -> None:
    """What one of them keeps, another one must find: a proxy may send the next request there."""
    if not is_installed():
        pytest.skip("PostgreSQL (Debian's package `postgresql`) is not installed")
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").split("\n## Several API processes\n")[1]
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    asked = """
until curl -sf http://127.0.0.1:8001/ready && curl -sf http://127.0.0.1:8002/ready; do sleep 0.2; done
id=$(curl -sS --fail http://127.0.0.1:8001/v1/responses -H 'Content-Type: application/json' \\
  -d '{"model": "toolwire-demo", "input": "Hello!", "max_output_tokens": 16}' | grep -o 'resp_[0-9a-zA-Z]*' | head -1)
curl -sS --fail "http://127.0.0.1:8002/v1/responses/$id"
"""
    with running_postgres() as postgres:
        placeholder = "postgresql://USER:PASSWORD@HOST/NAME"
        assert block[1].count(placeholder) == 2
        started = block[1].replace(placeholder, f"'{postgres.url}'")
        printed = run_block("bash", f"trap 'kill $(jobs -p); wait' EXIT\n{started}{asked}", live, tmp_path)
    assert '"completed"' in printed


def _with_free_ports(script: str, ours: str) -> str:
    """The same with free ports for the servers that it starts: what a reader's machine has free, another may not."""
    with ExitStack() as opened:
        for port in sorted(set(re.findall(r"127\.0\.0\.1:(\d+)", script)) - {ours.rpartition(":")[2]}):
            free = opened.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            script = re.sub(rf"(127\.0\.0\.1:|--port ){port}\b", rf"\g<1>{free}", script)
    return script


def test_every_link_between_documents_leads_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_files_named_in_contributing_md_exist() -> None:
    """A guide that names a file which has moved sends its reader on a search."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {path for path in re.findall(r"`((?:server|tests|docs|deploy)/[^`]*)`", text) if "NAME" not in path}
    assert len(named) > 30
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_the_readme_shows_both_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen = text.splitlines()[:60]
    for command in ("make serve", "make test", "docker compose", "curl ", "from openai import OpenAI"):
        assert any(command in line for line in first_screen), command


def test_every_option_is_in_the_table_of_running_md() -> None:
    """An option that only `--help` shows is missed when a deployment is planned."""
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    for kind in GROUPS.values():
        for field in dataclasses.fields(kind):
            off = "no-" if field.default is True else ""
            shown = {"True": "on", "False": "off", "": "", "()": ""}.get(str(field.default), f"`{field.default}`")
            row = f"| `--{off}{field.name.replace('_', '-')}` | {shown} | {field.metadata['help']} |"
            assert row in text, row


def test_every_option_that_security_md_names_exists() -> None:
    """A limit that cannot be changed as the page says is looked for in vain."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    known = {field.name.replace("_", "-") for kind in GROUPS.values() for field in dataclasses.fields(kind)}
    table = text.split("## What a request may cost before it is admitted")[1]
    assert len(re.findall(r"--([a-z-]+[a-z])", table)) >= 8
    assert set(re.findall(r"--([a-z-]+[a-z])", text)) <= known


def test_every_field_of_a_request_and_every_extension_of_a_reply_is_in_api_md() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    fields = {*ChatCompletionRequest.model_fields, *StreamOptions.model_fields}
    notes = {name for kind in (Notes, CallNote, MissedToolCallNote) for name in kind.__struct_fields__}
    extensions = {"reasoning_content", "toolwire", *notes}
    for name in sorted(fields | extensions):
        shown = "prompt_cache_*" if name.startswith("prompt_cache_") else name
        assert re.search(rf"[`.\"]{re.escape(shown)}[`\",.]", text), name
