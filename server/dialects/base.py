"""What a tool format is: a frozen record of its markers, its parser and its constraint.

Laws, tested for every dialect:
1. any split of the text gives the same events, adjacent ones folded;
2. only the format's own markup disappears; a malformed call comes back as Text, a repairable one is repaired and
   said to be;
3. whatever `constrain` allows, `parser` reads as schema-valid calls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from server.events import ParserEvent
from server.messages import Constraint


@dataclass(frozen=True, slots=True)
class CustomFormat:
    """The grammar of a custom tool's free text."""

    syntax: Literal["lark", "regex"]
    definition: str


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool as a dialect needs it. `parameters` is the JSON Schema as the client sent it, None for no arguments."""

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    custom: bool = False
    format: CustomFormat | None = None  # custom tools only; None is free text


@dataclass(frozen=True, slots=True)
class Choice:
    """What `tool_choice` and `parallel_tool_calls` come to. A named tool is `required` with one allowed name."""

    mode: Literal["none", "auto", "required"] = "auto"
    allowed: frozenset[str] | None = None  # None: every declared tool
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What plain text must be, from `response_format`. `schema` None is any JSON object."""

    schema: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """Everything that constrains one reply. `marker_ids` maps a marker to its token id where it is one token.

    `after_thinking`: a think block may come before, so that line breaks may come first, as models have learnt it.
    `must_answer`: the reply may not end without text or a call.
    """

    tools: Sequence[Tool]
    choice: Choice
    answer: ResponseFormat | None
    marker_ids: Mapping[str, int]
    after_thinking: bool = False
    must_answer: bool = False


class Parser(Protocol):
    """Incremental: nothing emitted is ever taken back, and as little as possible is held back."""

    def feed(self, text: str) -> list[ParserEvent]:
        """Events that the text so far settles."""

    def close(self) -> list[ParserEvent]:
        """The reply is over: whatever was held back comes out."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One tool format.

    `markers` must survive detokenising as text even where they are special tokens. `halts` are strings at which
    generation stops (ReAct's `Observation:`). `parser(tools)` reads replies. `constrain(wanted)` is the grammar
    of a reply, or None where everything is allowed; it raises BadSchema. `shortest(wanted)` is the text of a short
    valid forced call, whose tokens tell how much room a call needs at least. `recognise(template)` tells whether
    a chat template writes this format.
    """

    name: str
    markers: tuple[str, ...]
    halts: tuple[str, ...]
    parser: Callable[[Sequence[Tool]], Parser]
    constrain: Callable[[ConstraintSpec], Constraint | None]
    shortest: Callable[[ConstraintSpec], str]
    recognise: Callable[[str], bool]
