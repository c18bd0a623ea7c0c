"""What leaves the server as JSON: chunks, whole replies, errors. Field order is the order on the wire.

A field that is `UNSET` is not sent at all; None is sent as null. Clients tell the two apart.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

Finish = Literal["stop", "length", "tool_calls", "function_call"]


class TopLogprob(msgspec.Struct):
    """An alternative at one place."""

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


class FunctionPart(msgspec.Struct):
    """The name only in a call's first chunk; the arguments' pieces joined are JSON."""

    arguments: str
    name: str | UnsetType = UNSET


class FunctionHeader(msgspec.Struct):
    """The first chunk's function, and the legacy `function_call`."""

    name: str
    arguments: str


class CustomPart(msgspec.Struct):
    """Free text of a custom tool."""

    input: str
    name: str | UnsetType = UNSET


class CallDelta(msgspec.Struct):
    """The header of a call has id, type and name; every later piece only index and text."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function", "custom"] | UnsetType = UNSET
    function: FunctionPart | FunctionHeader | UnsetType = UNSET
    custom: CustomPart | UnsetType = UNSET


class ChunkDelta(msgspec.Struct):
    """Exactly one of: the role, a thought, text, a piece of a call, nothing (then the finish reason stands)."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET
    function_call: FunctionPart | FunctionHeader | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """What one choice gains in this chunk."""

    index: int
    delta: ChunkDelta
    logprobs: Logprobs | None = None
    finish_reason: Finish | None = None


class PromptDetails(msgspec.Struct):
    """Prompt tokens that the prefix cache held."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(msgspec.Struct):
    """Written tokens that were thoughts."""

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
    """What is to be known about a call beyond OpenAI's fields (extension)."""

    choice: int
    index: int
    flags: list[str] = []
    raw: str = ""
    logprobs: list[ChatCompletionTokenLogprob] = []


class MissedToolCallNote(msgspec.Struct):
    """A choice whose thoughts named a tool, or that is blank, and that ended without a call (extension)."""

    choice: int
    named: list[str]
    blank: bool


class Notes(msgspec.Struct, omit_defaults=True):
    """The `toolwire` object (extension): absent when there is nothing to say."""

    calls: list[CallNote] = []
    dropped_messages: int = 0
    uncalled: list[MissedToolCallNote] = []


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


class FunctionCall(msgspec.Struct):
    """A call of a function tool: its arguments are a string that holds JSON."""

    id: str
    function: FunctionHeader
    type: Literal["function"] = "function"


class CustomInput(msgspec.Struct):
    """A call of a custom tool: free text."""

    name: str
    input: str


class CustomCall(msgspec.Struct):
    """A call of a custom tool."""

    id: str
    custom: CustomInput
    type: Literal["custom"] = "custom"


class ReplyMessage(msgspec.Struct):
    """The assistant's message; `tool_calls` is absent, never empty or null, when nothing was called."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    annotations: list[Any] = []
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[FunctionCall | CustomCall] | UnsetType = UNSET
    function_call: FunctionHeader | UnsetType = UNSET


class ReplyChoice(msgspec.Struct):
    """One whole choice."""

    index: int
    message: ReplyMessage
    logprobs: Logprobs | None
    finish_reason: Finish


class ChatCompletion(msgspec.Struct):
    """The whole answer to a request without `stream`."""

    id: str
    created: int
    model: str
    choices: list[ReplyChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | None = None
    toolwire: Notes | UnsetType = UNSET
