"""The API over a scripted backend: real checkpoint files, prompt builder and routes, given token ids."""

import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api.app import create_app
from server.api.logs import configure_logging
from server.api.responses.state import ResponsesState, state_of
from server.checkpoint.checkpoint import Checkpoint
from server.errors import ServeError
from server.messages import Generate, Pulse
from server.prompt.builder import PromptBuilder
from server.settings import ApiSettings, Settings
from server.store.database import DAY_S, Database
from server.store.response_store import ResponseStore
from tests.backends.scripted import Script, ScriptedBackend, deltas
from tests.checkpoints import tiny_checkpoint

MODEL = "org/tiny"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@dataclass(frozen=True, slots=True)
class Served:
    """An app, a client of it, and the scripted backend behind it."""

    app: FastAPI
    http: httpx.AsyncClient
    backend: ScriptedBackend
    checkpoint: Checkpoint

    async def chat(self, **fields: Any) -> httpx.Response:
        """A chat request; what is not given is one user message."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text of ids, control tokens shown."""
        return self.checkpoint.tokenizer.decode(token_ids, skip_special_tokens=False)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Qwen's real vocabulary and template."""
    return Checkpoint.open(tiny_checkpoint("qwen3"))


@pytest.fixture
def ids_of(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """Model text -> the ids that a model would write."""
    return lambda text: list(checkpoint.tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture
def reply(checkpoint: Checkpoint, ids_of: Callable[[str], list[int]]) -> Callable[..., Script]:
    """The script of a reply with this text, ended by the model's stop id."""

    def write(text: str, finish: str = "stop", step: int = 1) -> Script:
        ids = ids_of(text)
        return deltas([*ids, checkpoint.stop_ids[0]] if finish == "stop" else ids, finish, step)

    return write


@pytest.fixture
def serve(checkpoint: Checkpoint) -> Serve:
    """Makes an app whose backend replays `script`, or what `script` returns for a request."""

    @asynccontextmanager
    async def make(
        script: Script | Callable[[Generate], Script] = (),
        pulse: Pulse | ServeError | None = None,
        state: ResponsesState | None = None,
        **api: Any,
    ) -> AsyncIterator[Served]:
        settings = Settings(api=replace(ApiSettings(), **api))
        write = script if callable(script) else _always(script)
        backend = ScriptedBackend(write) if pulse is None else ScriptedBackend(write, pulse)
        app = create_app(settings, checkpoint, PromptBuilder(checkpoint, settings), backend, MODEL, state=state)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Served(app, http, backend, checkpoint)

    return make


@pytest.fixture
def state(tmp_path: Path) -> Iterator[ResponsesState]:
    """Kept responses, in a store on SQLite."""
    database = Database(f"sqlite:///{tmp_path / 'kept.sqlite'}", DAY_S, 1 << 26)
    yield state_of(ResponseStore(database, 1 << 26))
    database.close()


def _always(script: Sequence[Any]) -> Callable[[Generate], Script]:
    return lambda _: script


def events_of(text: str) -> list[str]:
    """The data of each event of a stream."""
    assert text.endswith("data: [DONE]\n\n")
    frames = [frame for frame in text.split("\n\n") if frame]
    assert all(frame.startswith("data: ") for frame in frames)
    return [frame.removeprefix("data: ") for frame in frames][:-1]


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Lines logged after `configure_logging` with the fixture's parameters; the root logger is restored afterwards."""
    root, names = logging.getLogger(), ("toolwire", "toolwire.prompts")
    before = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]
    configure_logging(**request.param)
    out = io.StringIO()
    root.handlers[0].setStream(out)  # type: ignore[attr-defined]
    yield out
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)
