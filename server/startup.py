"""Checkpoint and backend built from the settings, for the server and for offline chat."""

from collections.abc import Callable

import msgspec

from server.backends.engine_process import EngineProcess
from server.backends.local import EngineCommand, LocalBackend
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import locate
from server.errors import CannotStart
from server.messages import Progress, Ready
from server.self_test import self_test
from server.settings import Settings


def open_checkpoint(settings: Settings) -> Checkpoint:
    """The checkpoint of the settings, read and self-tested. Raises CannotStart."""
    model = settings.model
    checkpoint = Checkpoint.open(
        locate(model.model),
        chat_template=model.chat_template,
        dialect=model.dialect,
        generation_config=model.generation_config,
        max_model_len=model.max_model_len,
    )
    if model.self_test and (faults := self_test(checkpoint)):
        lines = "; ".join(str(fault) for fault in faults)
        raise CannotStart(f"the self-test of tool calls failed (--no-self-test serves anyway): {lines}")
    return checkpoint


def build_backend(
    settings: Settings,
    checkpoint: Checkpoint,
    engine: EngineProcess,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_ready: Callable[[Ready], None] = lambda _: None,
) -> LocalBackend:
    """A backend for this checkpoint over the process `engine`, to which its `start` sends the configuration.

    `on_ready` is called for every engine that becomes ready, restarted ones included.
    """
    config = {
        "checkpoint": str(checkpoint.folder),
        "max_model_len": settings.model.max_model_len,  # 0: the model's own length, or what memory holds of it
        "engine": settings.engine,
        "stop_ids": checkpoint.stop_ids,  # they may end any constraint
    }
    command = EngineCommand(
        msgspec.json.encode(config).decode(), seed=settings.engine.seed, timeout_s=settings.engine.engine_timeout_s
    )
    return LocalBackend(command, on_progress, engine, on_ready)
