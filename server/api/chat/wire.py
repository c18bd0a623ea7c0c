"""Structs sent to clients: chunks and whole replies. Field order is the order on the wire.

A field that is `UNSET` is not sent at all; None is sent as null. Clients tell the two apart.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.notes import Note
from server.reply.trace import RequestTrace, TraceDelta

Finish = Literal["stop", "length", "tool_calls", "function_call"]


class TopLogprob(msgspec.Struct):
    """A likely token at one position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatCompletionTokenLogprob(msgspec.Struct):
    """One token of the reply. `token` shows bytes that are no whole character as U+FFFD; `bytes` are exact."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct):
    """Tokens of the content, in order."""

    content: list[ChatCompletionTokenLogprob]
    refusal: None = None


class FunctionDelta(msgspec.Struct, kw_only=True):
    """Name in a call's first chunk only; the pieces of `arguments` joined are JSON."""

    name: str | UnsetType = UNSET
    arguments: str


class CustomDelta(msgspec.Struct, kw_only=True):
    """Name in a call's first chunk only; the pieces of `input` joined are the text."""

    name: str | UnsetType = UNSET
    input: str


class CallDelta(msgspec.Struct):
    """First chunk of a call with id, type and name; later ones with index and a piece of text only."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function", "custom"] | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET
    custom: CustomDelta | UnsetType = UNSET


class ChunkDelta(msgspec.Struct):
    """Exactly one of: role, reasoning, text, a piece of a call; nothing where the finish reason is set."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """What one choice gains in this chunk."""

    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


class PromptDetails(msgspec.Struct):
    """Prompt tokens found in the prefix cache."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(msgspec.Struct):
    """Generated tokens that were reasoning."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of the whole request; the prompt counts once however many choices there are."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class CallNote(msgspec.Struct, omit_defaults=True):
    """Flags, raw text and logprobs of one call (extension)."""

    choice: int
    index: int
    flags: list[str] = []
    raw: str = ""
    logprobs: list[ChatCompletionTokenLogprob] = []


class MissedToolCallNote(msgspec.Struct):
    """A choice whose reasoning named a tool, or that is blank, and that ended without a call (extension)."""

    choice: int
    named: list[str]
    blank: bool


class Notes(msgspec.Struct, omit_defaults=True):
    """The `toolwire` object (extension): absent when there is nothing to report. `notes` are the request's.

    Where the request asks for its trace, whole replies have `trace`, and streams `trace_delta`, which add up to it.
    """

    calls: list[CallNote] = []
    dropped_messages: int = 0
    uncalled: list[MissedToolCallNote] = []
    notes: list[Note] = []
    trace: RequestTrace | None = None
    trace_delta: TraceDelta | None = None


def traced(delta: TraceDelta, notes: Sequence[Note], dropped_messages: int, calls: list[CallNote]) -> Notes:
    """The `toolwire` object of what a trace has gained, with the notes on calls that closed since the one before.

    The first one says what is noted of the request, too.
    """
    if delta.is_first:
        return Notes(calls, dropped_messages, notes=list(notes), trace_delta=delta)
    return Notes(calls, trace_delta=delta)


def noted(notes: Sequence[Note]) -> Notes | UnsetType:
    """The `toolwire` object of a reply that has no more to report than these notes."""
    return Notes(notes=list(notes)) if notes else UNSET


class ChatCompletionChunk(msgspec.Struct):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET
    toolwire: Notes | UnsetType = UNSET


class CalledFunction(msgspec.Struct):
    """A function's name and its arguments, a string that holds JSON."""

    name: str
    arguments: str


class FunctionCall(msgspec.Struct, tag_field="type", tag="function"):
    """A call of a function tool."""

    id: str
    function: CalledFunction


class CustomInput(msgspec.Struct):
    """A custom tool's name and its input, free text."""

    name: str
    input: str


class CustomCall(msgspec.Struct, tag_field="type", tag="custom"):
    """A call of a custom tool."""

    id: str
    custom: CustomInput


class ReplyMessage(msgspec.Struct):
    """The assistant's message; `tool_calls` is absent, never empty or null, when nothing was called."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    annotations: list[Any] = []
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[FunctionCall | CustomCall] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET


class ReplyChoice(msgspec.Struct):
    """One whole choice."""

    index: int
    message: ReplyMessage
    logprobs: Logprobs | None
    finish_reason: Finish


class ChatCompletion(msgspec.Struct):
    """Reply to a request without `stream`."""

    id: str
    created: int
    model: str
    choices: list[ReplyChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | None = None
    toolwire: Notes | UnsetType = UNSET
