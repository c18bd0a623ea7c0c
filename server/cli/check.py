"""`toolwire check MODEL`: the self-test of tool calls without loading weights."""

from rich.console import Console

from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.locate import locate
from server.checkpoint.shipped import choose_model
from server.errors import CannotStart
from server.self_test import self_test
from server.settings import ModelSettings, Settings


def check_model(model: str, chat_template: str, dialect: str) -> None:
    """Print dialect, context length and notes of a checkpoint, then run its self-test.

    Raises CannotStart if the checkpoint cannot be read or a case of the self-test fails.
    """
    chosen = choose_model(Settings(ModelSettings(model, chat_template=chat_template, dialect=dialect))).model
    checkpoint = Checkpoint.open(
        locate(chosen.model, weights=False), chosen.chat_template, chosen.dialect, chosen.generation_config
    )
    console = Console(highlight=False)
    console.print(f"dialect {checkpoint.dialect.name}, context {checkpoint.max_model_len:,} tokens")
    for note in checkpoint.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if faults := self_test(checkpoint):
        raise CannotStart("the self-test of tool calls failed:\n" + "\n".join(f"  {fault}" for fault in faults))
    console.print("self-test passed: every call came back as it was sent")
