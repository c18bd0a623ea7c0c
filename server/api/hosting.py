"""API application with its backend and its store, built from the settings: for `toolwire serve`, and for other servers.

Another ASGI server, such as that of Ray Serve, runs `running_app` in its own event loop.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import FastAPI

from server.api.app import create_app
from server.api.logs import configure_logging
from server.api.middleware.auth import ApiKeys, keys_of
from server.api.responses.state import ResponsesState, open_state
from server.backends.base import Backend
from server.backends.engine_process import EngineProcess
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import served_name
from server.checkpoint.shipped import choose_model
from server.errors import CannotStart
from server.messages import Progress, Ready
from server.prompt.builder import PromptBuilder
from server.settings import Settings
from server.startup import build_backend, open_checkpoint


@dataclass(frozen=True, slots=True)
class HostedApi:
    """An application, and what lives as long as it. The caller starts the backend and closes all of it."""

    app: FastAPI
    backend: Backend
    state: ResponsesState
    name: str  # that clients write in `model`

    async def close(self) -> None:
        """Abort what runs, background responses last, and close the store."""
        await self.backend.close()
        await self.state.runs.close()
        await self.state.store.close()


def host_api(
    settings: Settings,
    checkpoint: Checkpoint,
    keys: ApiKeys,
    engine: EngineProcess | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> HostedApi:
    """The application over the process `engine`, or without one over the engines elsewhere. Raises CannotStart."""
    name = served_name(settings.model.model, settings.model.served_model_name)
    builder = PromptBuilder(checkpoint, settings)

    def on_engine_ready(ready: Ready) -> None:
        builder.window.narrow(ready.max_model_len)

    state = open_state(settings.api)
    backend = build_backend(settings, checkpoint, engine, on_progress, on_engine_ready)
    return HostedApi(create_app(settings, checkpoint, builder, backend, name, keys, state), backend, state, name)


def log_as_configured(settings: Settings, keys: ApiKeys) -> None:
    """Write log lines as the settings say, without any key."""
    engine_keys = [settings.remote.engine_key] if settings.remote.engine_key else []
    api = settings.api
    configure_logging(api.log_format, log_prompts=api.log_prompts, secrets=lambda: [*keys.secrets(), *engine_keys])


@contextlib.asynccontextmanager
async def running_app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application for another ASGI server, with a backend that is ready; the engines are elsewhere.

    Raises CannotStart. What the settings say of ports, connections and signals is that server's affair.
    """
    if not settings.remote.is_used:
        raise CannotStart("an application in another server computes elsewhere: name its engines")
    keys = keys_of(settings.api)
    log_as_configured(settings, keys)
    settings = choose_model(settings)
    hosted = host_api(settings, open_checkpoint(settings), keys)
    try:
        await hosted.backend.start()
        yield hosted.app
        await hosted.state.runs.drained(settings.api.drain_timeout_s)
    finally:
        await hosted.close()
