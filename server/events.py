"""Events of one choice of a reply: reasoning, text and calls, then one end; without tokens or JSON frames.

A reply is `(Thought | Text | Call)* Ended`, where a call is `CallOpened CallArguments* CallClosed`, never interleaved
with anything else, and the indices of calls count up from 0.
"""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls"]
Flag = Literal[
    "repaired",  # the model's text was not valid in its format, but unambiguous
    "truncated",  # the reply ended inside the call
    "invalid",  # the arguments do not satisfy the tool's schema
    "repeated",  # the same call was repeated: the reply was ended here
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
    """The next piece of the call's arguments. The pieces joined are one JSON object (or free text if custom)."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallClosed:
    """The call is complete. `raw` is the model's text of it if a flag is set."""

    index: int
    flags: tuple[Flag, ...] = ()
    raw: str = ""


@dataclass(frozen=True, slots=True)
class MissedToolCall:
    """A choice that could have called a tool and stopped by itself without a call."""

    named: tuple[str, ...]  # the tools that its reasoning names, in order
    blank: bool  # it has no text either


@dataclass(frozen=True, slots=True)
class Ended:
    """The choice has ended. `uncalled` is set if it has no call although its reasoning names a tool, or no text.

    `stop` is the stop string of the request that ended it.
    """

    finish: FinishReason
    uncalled: MissedToolCall | None = None
    stop: str | None = None


ParserEvent = Text | CallOpened | CallArguments | CallClosed
Event = Thought | Text | CallOpened | CallArguments | CallClosed | Ended
