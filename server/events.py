"""What one choice of a reply is made of: thoughts, text and calls, then one end. Knows no tokens, no JSON frames.

A reply is `(Thought | Text | Call)* Ended`, where a call is `CallOpened CallArguments* CallClosed`, never interleaved
with anything else, and the indices of calls count up from 0.
"""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls"]
Flag = Literal[
    "repaired",  # the model's text was not valid in its format; its meaning was certain and was restored
    "truncated",  # the reply ended inside the call
    "invalid",  # the arguments do not satisfy the tool's schema
    "repeated",  # the same call again and again: the reply was ended here
]


@dataclass(frozen=True, slots=True)
class Text:
    """Text meant for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the think block, without its tags."""

    text: str


@dataclass(frozen=True, slots=True)
class CallOpened:
    """A call begins; its name is final. `custom` calls carry free text instead of JSON arguments."""

    index: int
    name: str
    custom: bool = False


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A further piece of the call's arguments. The pieces joined are one JSON object (or free text if custom)."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallClosed:
    """The call is complete. `raw` is the model's own text of it where a flag is set, so that nothing is lost."""

    index: int
    flags: tuple[Flag, ...] = ()
    raw: str = ""


@dataclass(frozen=True, slots=True)
class MissedToolCall:
    """Of a choice that might have called a tool and ended its turn by itself without a call."""

    named: tuple[str, ...]  # the tools that its thoughts name, first named first
    blank: bool  # there is no text either


@dataclass(frozen=True, slots=True)
class Ended:
    """The choice is over. `uncalled` is set where no call came though its thoughts named a tool, or nothing at all."""

    finish: FinishReason
    uncalled: MissedToolCall | None = None


ParserEvent = Text | CallOpened | CallArguments | CallClosed
Event = Thought | Text | CallOpened | CallArguments | CallClosed | Ended
