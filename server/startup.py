"""The parts that a server and an offline chat are both made of: a checkpoint that was read, a door to its engine."""

from collections.abc import Callable

import msgspec

from server.backends.child import Child
from server.backends.local import EngineCommand, ProcessBackend
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import locate
from server.errors import CannotStart
from server.messages import Progress, Ready
from server.self_test import self_test
from server.settings import Settings


def open_checkpoint(settings: Settings) -> Checkpoint:
    """The checkpoint that the settings name, read and self-tested. Raises CannotStart."""
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
    engine: Child,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_ready: Callable[[Ready], None] = lambda _: None,
) -> ProcessBackend:
    """The engine's door for this checkpoint; `engine` waits for its order, which is given by `start`.

    `on_ready` hears of every engine that has come up, also of one that was started again.
    """
    order = {
        "checkpoint": str(checkpoint.folder),
        "max_model_len": settings.model.max_model_len,  # 0: as much of the model's own as memory holds
        "engine": settings.engine,
        "stop_ids": checkpoint.stop_ids,  # they may end any constraint
    }
    return ProcessBackend(EngineCommand(msgspec.json.encode(order).decode()), on_progress, engine, on_ready)
