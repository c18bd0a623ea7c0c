"""The internal form of a chat request: the only form behind every surface. Knows no HTTP and no surface's JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from server.dialects.base import Choice, ResponseFormat, Tool
from server.messages import Generate, Sampling
from server.notes import Note

Thinking = Literal["off", "open", "may_open"]  # how a reply begins


@dataclass(frozen=True, slots=True)
class SystemMessage:
    """Instructions, from `system` and `developer` alike."""

    text: str


@dataclass(frozen=True, slots=True)
class UserMessage:
    """What the user writes."""

    text: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class PastCall:
    """A call in the history; `arguments` as they were sent: JSON text, an object, none, or a custom tool's text."""

    id: str
    name: str
    arguments: str | Mapping[str, Any] | None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """An earlier reply."""

    text: str = ""
    reasoning: str | None = None
    calls: tuple[PastCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolMessage:
    """The result of the call `call_id`."""

    text: str
    call_id: str
    name: str | None = None


Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt without a conversation: token ids, and texts in which nothing is a control token, in their order.

    `stop_ids` end the reply beside the checkpoint's own.
    """

    parts: tuple[str | tuple[int, ...], ...]
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request for one or more replies.

    Every call in `messages` has an id and is followed by its results, in the order of the calls. `tool_definitions`
    are the client's tool objects, key order kept, for the template; `tools` are the same tools as dialects need them.
    `sampling` None fields were already filled from the checkpoint's defaults; `max_tokens` None means what the window
    leaves, of text at most the server's default. With `raw_prompts` there are no messages, and each has `n` replies,
    which begin with the prompt where `prompt_logprobs`, the number of alternatives of each of its tokens, is set.
    """

    id: str
    messages: Sequence[Message]
    sampling: Sampling
    max_tokens: int | None = None
    tool_definitions: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Tool] = ()
    choice: Choice = field(default_factory=Choice)
    answer: ResponseFormat | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    thinking: bool | None = None  # None: what the template does by itself
    thinking_budget: int | None = None  # tokens
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    on_overflow: Literal["refuse", "drop-oldest"] | None = None  # None: the server's setting
    must_answer: bool = False  # the reply may not end without text or a call
    cache_salt: str = ""  # cached prefixes are shared by requests with the same salt only
    notes: tuple[Note, ...] = ()  # of the surface that read the request
    raw_prompts: tuple[RawPrompt, ...] = ()
    prompt_logprobs: int | None = None
    trace: bool = False  # the reply says how its tokens came about
    session: tuple[tuple[str, str], ...] = ()  # headers that name the client's session
    model: str = ""  # as the client wrote it
    adapter: str = ""  # that answers; empty: the base model alone

    @property
    def answers_result(self) -> bool:
        """Whether the last message is the result of a call."""
        return bool(self.messages) and isinstance(self.messages[-1], ToolMessage)

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that the reply may call."""
        if self.choice.mode == "none":
            return []
        return [tool for tool in self.tools if self.choice.allowed is None or tool.name in self.choice.allowed]


@dataclass(frozen=True, slots=True)
class PartTokens:
    """Prompt tokens of one part: `system`, `tools`, `tools[i]:name`, `messages[i]`, or `template` for the rest."""

    part: str
    tokens: int


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A prompt ready for the engine, and what decoding its replies needs.

    `thinking` says how a reply begins: "off" with text, "open" inside a think block that the prompt opened,
    "may_open" with an optional think block that the model itself opens. `call_ids` open a call, inside a think block
    as well, and so do `call_markers` where the vocabulary has no such token.
    """

    generates: tuple[Generate, ...]  # one a choice, those of one prompt together
    prompt_tokens: int  # of all prompts
    thinking: Thinking
    max_text_tokens: int | None = None  # of the answer's text, beside the limit of the whole reply
    dropped_messages: int = 0
    notes: tuple[Note, ...] = ()  # of the request and of every stage that prepared it, for the reply
    call_ids: tuple[int, ...] = ()
    call_markers: tuple[str, ...] = ()
    num_prompts: int = 1
