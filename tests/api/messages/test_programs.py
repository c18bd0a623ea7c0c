"""Requests in the shape that programs send: every field and type as it came, their prose replaced by ours.

In a file of requests, `~306` stands for 306 characters of prose.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.checkpoint.checkpoint import Checkpoint
from tests.api.conftest import MODEL, Serve
from tests.api.messages.sdk import folded, stream_events
from tests.backends.scripted import Script
from tests.checkpoints import tiny_checkpoint

PROSE = "Read the file before you change it, and say which of the tests failed. "
CALL = '<tool_call>\n{"name": "Bash", "arguments": {"command": "cat note.txt", "description": "Show it"}}\n</tool_call>'


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Qwen's vocabulary and template, with a window for what such programs send."""
    return replace(Checkpoint.open(tiny_checkpoint("qwen3")), max_model_len=32768)


def expanded(value: Any) -> Any:
    """The value with prose in the place of its lengths."""
    if isinstance(value, dict):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"~\d+", value):
        length = int(value[1:])
        return (PROSE * (length // len(PROSE) + 1))[:length]
    return value


def requests_of(program: str) -> list[dict[str, Any]]:
    """The program's requests, one after the other; their tools are the same in each."""
    recorded = json.loads((Path(__file__).parent / f"{program}.json").read_text(encoding="utf-8"))
    return [expanded({**one, "tools": recorded["tools"], "model": MODEL}) for one in recorded["requests"]]


async def test_a_session_of_claude_code(serve: Serve, reply: Callable[..., Script]) -> None:
    """A call, its result, text. The second prompt goes on where the first one ended, so it is served from the cache."""
    first, second = requests_of("claude_code")
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-2099-01-01,b-2099-01-01", "x-app": "cli"}
    prompts, messages = [], []
    for body, text in ((first, CALL), (second, "It says hello.")):
        async with serve(reply(text)) as served:
            response = await served.http.post("/v1/messages?beta=true", json=body, headers=headers)
            assert response.status_code == 200, response.text
            messages.append(folded(stream_events(response.text)))
            prompts.append(served.backend.asked[0].token_ids)
    assert [message["stop_reason"] for message in messages] == ["tool_use", "end_turn"]
    assert messages[0]["content"][0]["input"] == {"command": "cat note.txt", "description": "Show it"}
    assert prompts[1][: len(prompts[0])] == prompts[0], "a line that is new in each request is left out"
