"""An app over a scripted backend behind uvicorn, as `toolwire serve` runs it: for what httpx's transport lacks."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvicorn

from server.api.app import create_app
from server.api.responses.state import state_of
from server.checkpoint.checkpoint import Checkpoint
from server.cli.serve import http_server
from server.messages import Generate
from server.prompt.builder import PromptBuilder
from server.settings import ApiSettings, Settings
from server.store.response_store import ResponseStore
from tests.api.conftest import MODEL
from tests.backends.scripted import Script, ScriptedBackend


@dataclass(frozen=True, slots=True)
class HttpServed:
    """A running server: its address without a scheme, and what is behind it."""

    address: str
    server: uvicorn.Server
    backend: ScriptedBackend


@contextmanager
def served_over_http(checkpoint: Checkpoint, write: Callable[[Generate], Script], **api: Any) -> Iterator[HttpServed]:
    """The API with `write` as its model, in a thread; it keeps no responses."""
    settings = Settings(api=replace(ApiSettings(), **api))
    backend = ScriptedBackend(write)
    state = state_of(ResponseStore(None), settings=settings.api)
    app = create_app(settings, checkpoint, PromptBuilder(checkpoint, settings), backend, MODEL, state=state)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # clients may connect before uvicorn is up
        server = http_server(app, settings.api)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield HttpServed(f"127.0.0.1:{listener.getsockname()[1]}", server, backend)
        finally:
            server.should_exit = True
            thread.join(30)
