"""Interface of a tool format: markers, parser, constraint.

Laws, tested for every dialect:
1. any split of the text gives the same events, adjacent ones folded;
2. only the format's own markup disappears; a malformed call is emitted as Text, a repairable one is repaired and
   flagged;
3. whatever `constrain` allows, `parser` reads as schema-valid calls.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from server.events import ParserEvent
from server.messages import Constraint

PRIORITY = re.compile(r"^([ \t]*[!?]*[A-Za-z_]\w*)\.-?\d+(?=[ \t]*:)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CustomFormat:
    """The grammar of a custom tool's free text."""

    syntax: Literal["lark", "regex"]
    definition: str

    @property
    def lark(self) -> str:
        """The definition without the priorities of its rules and terminals, which the grammar engine does not take.

        They order the ways to read a text, and leave the texts that the grammar allows as they are.
        """
        return PRIORITY.sub(r"\1", self.definition)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool as a dialect needs it. `parameters` is the JSON Schema as the client sent it, None for no arguments.

    `param` is the path of that schema in the request, of a custom tool that of the tool.
    """

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    custom: bool = False
    format: CustomFormat | None = None  # custom tools only; None is free text
    param: str = "tools"


@dataclass(frozen=True, slots=True)
class Choice:
    """Combined `tool_choice` and `parallel_tool_calls`. A named tool is `required` with one allowed name."""

    mode: Literal["none", "auto", "required"] = "auto"
    allowed: frozenset[str] | None = None  # None: every declared tool
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """Constraint on plain text. `schema` None is any JSON object, unless there is a `format`: the text's own grammar.

    `param` is the field of the request that demands it, `place` the path of the schema where that is another.
    """

    schema: Mapping[str, Any] | None = None
    strict: bool = False
    format: CustomFormat | None = None
    param: str = "response_format"
    place: str = ""


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """Inputs of the constraint of one reply. `marker_ids` maps a marker to its token id where it is one token.

    `after_thinking`: a think block may precede, so line breaks may come first, as in the training data.
    `must_answer`: the reply may not end without text or a call.
    """

    tools: Sequence[Tool]
    choice: Choice
    answer: ResponseFormat | None
    marker_ids: Mapping[str, int]
    after_thinking: bool = False
    must_answer: bool = False


class Parser(Protocol):
    """Incremental parser: emitted events are final, and as little text as possible is held back."""

    def feed(self, text: str) -> list[ParserEvent]:
        """Return the events that the text so far determines."""

    def close(self) -> list[ParserEvent]:
        """End the reply and return what was held back."""


class CallId(Protocol):
    """The id by which a format names the tool of the call that is the `index`-th of a conversation."""

    def __call__(self, name: str, index: int, tool_names: Collection[str] = ()) -> str:
        """`tool_names` are those of the request's tools, which are names whatever they look like."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One tool format.

    `markers` must survive detokenising as text even where they are special tokens. `halts` are strings at which
    generation stops (ReAct's `Observation:`). `parser(tools)` reads replies. `constrain(spec)` is the grammar
    of a reply, or None where everything is allowed; it raises BadSchema. `recognise(template)` tells
    whether a chat template writes this format. `call_id` is None where calls have their tool's name. `raw_strings`:
    arguments that are strings are raw text, not JSON.
    """

    name: str
    markers: tuple[str, ...]
    halts: tuple[str, ...]
    parser: Callable[[Sequence[Tool]], Parser]
    constrain: Callable[[ConstraintSpec], Constraint | None]
    recognise: Callable[[str], bool]
    call_id: CallId | None = None
    raw_strings: bool = False
