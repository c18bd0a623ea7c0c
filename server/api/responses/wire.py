"""Structs of the Responses API sent to clients: items, the response, and the events of its stream.

A field that is `UNSET` is not sent at all; None is sent as null.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.api.chat.wire import ChatCompletionTokenLogprob, Notes

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """Text of a message. `logprobs` have the exact bytes of its tokens."""

    text: str
    annotations: list[Any] = []
    logprobs: list[ChatCompletionTokenLogprob] = []


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    """Text of a thought."""

    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text"):
    """The same text, where a summary was requested."""

    text: str


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    """Text for the user."""

    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """A thought. `encrypted_content` carries it through clients that keep no `content`."""

    id: str
    status: ItemStatus
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    encrypted_content: str | UnsetType = UNSET


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    """A call of a function tool; `arguments` is JSON."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str = ""
    namespace: str | UnsetType = UNSET


class CustomCallItem(msgspec.Struct, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool; `input` is free text or of the tool's grammar."""

    id: str
    call_id: str
    name: str
    input: str = ""
    namespace: str | UnsetType = UNSET


class CompactionItem(msgspec.Struct, tag_field="type", tag="compaction"):
    """A summary in an opaque form; sent back it stands for the items that it summarizes."""

    id: str
    encrypted_content: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem | CustomCallItem


class InputDetails(msgspec.Struct):
    """Prompt tokens found in the prefix cache; writing to it has no price."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """Generated tokens that were thoughts."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseFault(msgspec.Struct):
    """The error that ended a response."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    """The limit that ended a response."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ConversationReference(msgspec.Struct):
    """The conversation that a response belongs to."""

    id: str


class ResponseObject(msgspec.Struct, kw_only=True, tag_field="object", tag="response"):
    """A response, under way or ended. What the request said is given back; `store` says whether it is kept."""

    id: str
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: bool = False
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    conversation: ConversationReference | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt_cache_key: str | None = None
    reasoning: Mapping[str, Any] = {}
    safety_identifier: str | None = None
    service_tier: Literal["default"] = "default"
    store: bool = False
    temperature: float = 1.0
    text: Mapping[str, Any] = {}
    tool_choice: str | Mapping[str, Any] = "auto"
    tools: Sequence[Mapping[str, Any]] = ()
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: Mapping[str, str] = {}
    toolwire: Notes | UnsetType = UNSET


class CompactedResponse(msgspec.Struct, kw_only=True, tag_field="object", tag="response.compaction"):
    """A shorter form of a conversation: the user's messages, then one compaction item."""

    id: str
    created_at: int
    output: list[Mapping[str, Any]]
    usage: ResponseUsage
    toolwire: Notes | UnsetType = UNSET


class StreamEvent(msgspec.Struct, tag_field="type"):
    """One event of a stream; `sequence_number` counts from 0 without a gap."""

    sequence_number: int


class ResponseCreated(StreamEvent, tag="response.created"):
    """The first event."""

    response: ResponseObject


class ResponseQueued(StreamEvent, tag="response.queued"):
    """A background response waits for its turn."""

    response: ResponseObject


class ResponseInProgress(StreamEvent, tag="response.in_progress"):
    """The engine has admitted the response."""

    response: ResponseObject


class ResponseCompleted(StreamEvent, tag="response.completed"):
    """The last event."""

    response: ResponseObject


class ResponseIncomplete(StreamEvent, tag="response.incomplete"):
    """The last event of a response that a limit ended, or its client (`cancelled`)."""

    response: ResponseObject


class ResponseFailed(StreamEvent, tag="response.failed"):
    """The last event of a response that an error ended."""

    response: ResponseObject


EndEvent = ResponseCompleted | ResponseIncomplete | ResponseFailed


class OutputItemAdded(StreamEvent, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: OutputItem


class OutputItemDone(StreamEvent, tag="response.output_item.done"):
    """An item is complete."""

    output_index: int
    item: OutputItem


class ItemEvent(StreamEvent):
    """An event of one item."""

    output_index: int
    item_id: str


class ContentPartAdded(ItemEvent, tag="response.content_part.added"):
    """The part of a message or of a thought begins."""

    part: OutputText | ReasoningText
    content_index: int = 0


class ContentPartDone(ItemEvent, tag="response.content_part.done"):
    """The part is complete."""

    part: OutputText | ReasoningText
    content_index: int = 0


class DeltaTopLogprob(msgspec.Struct):
    """A likely token at one position."""

    token: str
    logprob: float


class DeltaLogprob(msgspec.Struct):
    """One token of a piece of text."""

    token: str
    logprob: float
    top_logprobs: list[DeltaTopLogprob]


class TextDelta(ItemEvent, tag="response.output_text.delta"):
    """A piece of text."""

    delta: str
    logprobs: list[DeltaLogprob] = []
    content_index: int = 0


class TextDone(ItemEvent, tag="response.output_text.done"):
    """The whole text."""

    text: str
    logprobs: list[DeltaLogprob] = []
    content_index: int = 0


class ReasoningTextDelta(ItemEvent, tag="response.reasoning_text.delta"):
    """A piece of a thought."""

    delta: str
    content_index: int = 0


class ReasoningTextDone(ItemEvent, tag="response.reasoning_text.done"):
    """The whole thought."""

    text: str
    content_index: int = 0


class SummaryPartAdded(ItemEvent, tag="response.reasoning_summary_part.added"):
    """The summary of a thought begins."""

    part: SummaryText
    summary_index: int = 0


class SummaryPartDone(ItemEvent, tag="response.reasoning_summary_part.done"):
    """The summary is complete."""

    part: SummaryText
    summary_index: int = 0


class SummaryTextDelta(ItemEvent, tag="response.reasoning_summary_text.delta"):
    """A piece of a summary."""

    delta: str
    summary_index: int = 0


class SummaryTextDone(ItemEvent, tag="response.reasoning_summary_text.done"):
    """The whole summary."""

    text: str
    summary_index: int = 0


class ArgumentsDelta(ItemEvent, tag="response.function_call_arguments.delta"):
    """A piece of a call's arguments."""

    delta: str


class ArgumentsDone(ItemEvent, tag="response.function_call_arguments.done"):
    """The arguments, whole."""

    arguments: str


class CustomInputDelta(ItemEvent, tag="response.custom_tool_call_input.delta"):
    """A piece of a custom call's input."""

    delta: str


class CustomInputDone(ItemEvent, tag="response.custom_tool_call_input.done"):
    """The input, whole."""

    input: str


class TraceGained(StreamEvent, tag="toolwire:trace"):
    """What the trace of a request that asks for it has gained (extension, as Open Responses has its types named)."""

    toolwire: Notes


class StreamFault(StreamEvent, tag="error"):
    """An unhandled exception, which ends a stream without its response."""

    code: str | None
    message: str
    param: str | None
