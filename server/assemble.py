"""The parts that a server and an offline chat are both made of: a checkpoint that was read, a door to its engine."""

from collections.abc import Callable

import msgspec

from server.backend.process import EngineCommand, ProcessBackend
from server.chat.checkpoint import Checkpoint
from server.chat.selftest import self_test
from server.errors import CannotStart
from server.locate import locate
from server.messages import Progress
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
    settings: Settings, checkpoint: Checkpoint, on_progress: Callable[[Progress], None] = lambda _: None
) -> ProcessBackend:
    """The engine's door for this checkpoint; nothing is started yet."""
    order = {
        "checkpoint": str(checkpoint.folder),
        "max_model_len": checkpoint.max_model_len,
        "engine": settings.engine,
        "stop_ids": checkpoint.stop_ids,  # they may end any constraint
    }
    return ProcessBackend(EngineCommand(msgspec.json.encode(order).decode()), on_progress)
