"""Checkpoint and backend built from the settings, for the server and for offline chat."""

from collections.abc import Callable
from functools import partial

import msgspec

from server.backends.base import Backend
from server.backends.engine_list import EngineList
from server.backends.engine_process import EngineProcess
from server.backends.local import EngineCommand, LocalBackend
from server.backends.routing import RoutingBackend
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.fingerprint import fingerprint
from server.checkpoint.locate import locate
from server.errors import CannotStart
from server.messages import Progress, Ready
from server.self_test import self_test
from server.settings import Settings


def open_checkpoint(settings: Settings) -> Checkpoint:
    """The checkpoint of the settings, read and self-tested. Raises CannotStart."""
    checkpoint = read_checkpoint(settings)
    if settings.model.self_test and (faults := self_test(checkpoint)):
        lines = "; ".join(str(fault) for fault in faults)
        raise CannotStart(f"the self-test of tool calls failed (--no-self-test serves anyway): {lines}")
    return checkpoint


def read_checkpoint(settings: Settings) -> Checkpoint:
    """The checkpoint of the settings, without its weights where engines are elsewhere. Raises CannotStart."""
    model = settings.model
    return Checkpoint.open(
        locate(model.model, weights=not settings.remote.is_used),
        chat_template=model.chat_template,
        dialect=model.dialect,
        generation_config=model.generation_config,
        max_model_len=model.max_model_len,
    )


def build_local_backend(
    settings: Settings,
    checkpoint: Checkpoint,
    engine: EngineProcess,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_ready: Callable[[Ready], None] = lambda _: None,
    on_loss: Callable[[str], None] | None = None,
) -> LocalBackend:
    """A backend for this checkpoint over the process `engine`, to which its `start` sends the configuration.

    `on_ready` is called for every engine that becomes ready, restarted ones included, `on_loss` for every one that
    dies.
    """
    config = {
        "checkpoint": str(checkpoint.path),
        "max_model_len": settings.model.max_model_len,  # 0: the model's own length, or what memory holds of it
        "engine": settings.engine,
        "stop_ids": checkpoint.stop_ids,  # they may end any constraint
    }
    command = EngineCommand(
        msgspec.json.encode(config).decode(), seed=settings.engine.seed, timeout_s=settings.engine.engine_timeout_s
    )
    return LocalBackend(command, on_progress, engine, on_ready, on_loss)


def build_backend(
    settings: Settings,
    checkpoint: Checkpoint,
    engine: EngineProcess | None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_ready: Callable[[Ready], None] = lambda _: None,
) -> Backend:
    """A backend over the process `engine`, or without one over the engines elsewhere. Raises CannotStart."""
    if engine is not None:
        return build_local_backend(settings, checkpoint, engine, on_progress, on_ready)
    from server.backends.connector import connect_engine  # its HTTP clients take a tenth of a second to import

    remote = settings.remote
    return RoutingBackend(
        EngineList(remote.engine, remote.engines_file),
        partial(connect_engine, checkpoint, remote.engine_key),
        fingerprint(checkpoint.path, checkpoint.tokenizer, settings.engine.merge_adapter),
        settings.engine.seed,
        on_progress,
        on_ready,
    )
