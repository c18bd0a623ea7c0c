"""Structs of Messages replies: the whole message and the events of a stream. Field order is the order on the wire."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.api.chat.wire import Notes

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class ThinkingTokens(msgspec.Struct):
    """Output tokens that were thoughts."""

    thinking_tokens: int


class MessageUsage(msgspec.Struct):
    """Tokens of the whole request; `input_tokens` are those of the prompt that were not found in the cache."""

    input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class MessageText(msgspec.Struct, tag_field="type", tag="text"):
    """Text meant for the user."""

    text: str


class MessageThinking(msgspec.Struct, tag_field="type", tag="thinking"):
    """Thoughts. The signature is opaque to clients, who send the block back as it is."""

    thinking: str
    signature: str


class MessageToolUse(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call; `input` is the JSON object that the model wrote."""

    id: str
    name: str
    input: msgspec.Raw


MessageBlock = MessageText | MessageThinking | MessageToolUse


class MessageReply(msgspec.Struct, tag_field="type", tag="message"):
    """A whole reply, or its head at the start of a stream."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[MessageBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    toolwire: Notes | UnsetType = UNSET


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """First event: the message without its content, with the usage of its prompt."""

    message: MessageReply


class ContentBlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """A block begins, empty."""

    index: int
    content_block: MessageBlock


class BlockText(msgspec.Struct, tag_field="type", tag="text_delta"):
    """The next piece of a text."""

    text: str


class BlockThinking(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """The next piece of thoughts."""

    thinking: str


class BlockSignature(msgspec.Struct, tag_field="type", tag="signature_delta"):
    """The signature of thoughts, whole; last in its block."""

    signature: str


class BlockInput(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """The next piece of a call's input; the pieces joined are one JSON object."""

    partial_json: str


class ContentBlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """A block grows."""

    index: int
    delta: BlockText | BlockThinking | BlockSignature | BlockInput


class ContentBlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class StopDelta(msgspec.Struct):
    """The end of a message; without a reason where it has not ended."""

    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The last event but one, with the usage of the whole request; or a delta of the trace, with the usage so far."""

    delta: StopDelta
    usage: MessageUsage
    toolwire: Notes | UnsetType = UNSET


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The last event."""


MessageEvent = MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop


class TokensCount(msgspec.Struct):
    """Length of a request's prompt."""

    input_tokens: int
    toolwire: Notes | UnsetType = UNSET


class AnthropicErrorDetails(msgspec.Struct):
    """Why a request is refused, for programs that go on without what is listed."""

    error_code: str
    unsupported: list[str]


class AnthropicError(msgspec.Struct):
    """Kind and text of an error."""

    type: str
    message: str
    details: AnthropicErrorDetails | UnsetType = UNSET


class AnthropicErrorBody(msgspec.Struct, tag_field="type", tag="error"):
    """Envelope of an error, as a body and as an event of a stream."""

    error: AnthropicError
    request_id: str


class AnthropicModel(msgspec.Struct, tag_field="type", tag="model"):
    """A model that requests may name; its window holds input and output together."""

    id: str
    display_name: str
    created_at: str
    max_input_tokens: int
    max_tokens: int
    lifecycle: Literal["active"] = "active"


class AnthropicModelList(msgspec.Struct):
    """All models that requests may name, on one page."""

    data: list[AnthropicModel]
    first_id: str
    last_id: str
    has_more: bool = False
