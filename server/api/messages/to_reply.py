"""Events of one reply -> Anthropic's stream events, and those -> the whole message: one path for both."""

import json
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import assert_never

import jiter
import msgspec
from msgspec import UNSET

from server.api.chat.to_reply import new_id
from server.api.chat.wire import CallNote, MissedToolCallNote, Notes, traced
from server.api.messages.conversation import signature_of
from server.api.messages.wire import (
    BlockInput,
    BlockSignature,
    BlockText,
    BlockThinking,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    MessageBlock,
    MessageDelta,
    MessageEvent,
    MessageReply,
    MessageStart,
    MessageStop,
    MessageText,
    MessageThinking,
    MessageToolUse,
    MessageUsage,
    StopDelta,
    StopReason,
    ThinkingTokens,
)
from server.events import CallArguments, CallClosed, CallOpened, Ended, Event, Text, Thought
from server.reply.trace import TraceDelta, fold_trace
from server.service import ChoiceEvent, Generation, TokenUsage

EMPTY_INPUT = msgspec.Raw(b"{}")


@dataclass(frozen=True, slots=True)
class MessageStyle:
    """How a reply is to be written, as the request says."""

    model: str
    max_tokens: int
    omits_thoughts: bool = False  # the signature alone carries them


@dataclass(slots=True)
class MessageWriter:
    """Events of one reply -> events of its stream. One block is open at a time, and blocks follow each other.

    `cut_by_window`: the window left fewer tokens than the request allowed, so a reply cut for length was cut by it.
    """

    style: MessageStyle
    cut_by_window: bool = False
    notes: Notes = field(default_factory=Notes)
    _block: MessageBlock | None = field(default=None, init=False)
    _index: int = field(default=-1, init=False)
    _pieces: list[str] = field(default_factory=list, init=False)  # of the open block's thoughts or arguments
    _ended: Ended | None = field(default=None, init=False)
    _untraced_notes: list[CallNote] = field(
        default_factory=list, init=False
    )  # which no event of the trace has said yet

    def open(self, usage: TokenUsage) -> list[MessageEvent]:
        """The head of the message."""
        head = MessageReply(f"msg_{new_id()}", "assistant", self.style.model, [], None, None, usage_of(usage))
        return [MessageStart(head)]

    def feed(self, event: Event) -> list[MessageEvent]:
        """The events that this one becomes."""
        match event:
            case Text(text):
                return [*self._in_block(MessageText("")), self._delta(BlockText(text))]
            case Thought(text):
                opened = self._in_block(MessageThinking("", ""))
                self._pieces.append(text)
                return opened if self.style.omits_thoughts else [*opened, self._delta(BlockThinking(text))]
            case CallOpened(_, name):
                return [*self._close_block(), *self._in_block(MessageToolUse(f"toolu_{new_id()}", name, EMPTY_INPUT))]
            case CallArguments(_, text):
                self._pieces.append(text)
                return [self._delta(BlockInput(text))] if text else []
            case CallClosed(index, flags, raw):
                if flags:
                    self.notes.calls.append(CallNote(0, index, list(flags), raw))
                    self._untraced_notes.append(self.notes.calls[-1])
                # Clients parse what the pieces add up to, and an empty text is no JSON.
                empty = not any(self._pieces) and "truncated" not in flags
                return [*([self._delta(BlockInput("{}"))] if empty else []), *self._close_block()]
            case Ended():
                self._ended = event
                if event.uncalled:
                    note = MissedToolCallNote(0, list(event.uncalled.named), event.uncalled.blank)
                    self.notes.uncalled.append(note)
                return self._close_block()
            case _:
                assert_never(event)

    def show_trace(self, delta: TraceDelta, usage: TokenUsage) -> MessageEvent:
        """What the trace has gained: a `message_delta` without a reason to stop, with the usage so far."""
        calls, self._untraced_notes = self._untraced_notes, []
        notes = traced(delta, self.notes.notes, self.notes.dropped_messages, calls)
        return MessageDelta(StopDelta(None, None), usage_of(usage), notes)

    def close(self, usage: TokenUsage) -> list[MessageEvent]:
        """The end of the message, behind its last event."""
        assert self._ended is not None, "a reply ends with Ended"
        delta = StopDelta(self._stop_reason(self._ended), self._ended.stop)
        notes = UNSET if self.notes == Notes() else self.notes
        return [MessageDelta(delta, usage_of(usage), notes), MessageStop()]

    def _stop_reason(self, ended: Ended) -> StopReason:
        if ended.finish == "tool_calls":
            return "tool_use"
        if ended.finish == "length":
            return "model_context_window_exceeded" if self.cut_by_window else "max_tokens"
        return "end_turn" if ended.stop is None else "stop_sequence"

    def _in_block(self, block: MessageBlock) -> list[MessageEvent]:
        """Open this block, unless one of its kind is open."""
        if type(self._block) is type(block):
            return []
        closed = self._close_block()
        self._block = block
        self._index += 1
        return [*closed, ContentBlockStart(self._index, block)]

    def _close_block(self) -> list[MessageEvent]:
        if self._block is None:
            return []
        events: list[MessageEvent] = [ContentBlockStop(self._index)]
        if isinstance(self._block, MessageThinking):
            signature = signature_of("".join(self._pieces), self.style.omits_thoughts)
            events.insert(0, self._delta(BlockSignature(signature)))
        self._block = None
        self._pieces.clear()
        return events

    def _delta(self, delta: BlockText | BlockThinking | BlockSignature | BlockInput) -> ContentBlockDelta:
        return ContentBlockDelta(self._index, delta)


def message_events(generation: Generation, style: MessageStyle) -> AsyncGenerator[list[MessageEvent], None]:
    """The events of the stream, a list for what is sent together. Raises the ServeError that ends the reply."""
    prepared = generation.prepared
    notes = Notes(dropped_messages=prepared.dropped_messages, notes=list(prepared.notes))
    writer = MessageWriter(style, prepared.generates[0].sampling.max_tokens < style.max_tokens, notes)

    def feed(received: ChoiceEvent) -> list[MessageEvent]:
        return writer.feed(received.parsed.event)

    def show_trace(delta: TraceDelta) -> MessageEvent:
        return writer.show_trace(delta, generation.usage)

    return generation.written(writer.open(generation.usage), feed, writer.close, show_trace)


def fold_message(events: Iterable[MessageEvent]) -> MessageReply:
    """The whole message that the events of one stream, all of them, add up to."""
    reply: MessageReply | None = None
    pieces: list[str] = []  # of the open block
    deltas: list[TraceDelta] = []
    for event in events:
        if isinstance(event, MessageStart):
            reply = msgspec.structs.replace(event.message, content=[])
            continue
        assert reply is not None, "a stream begins with message_start"
        match event:
            case ContentBlockStart(_, block):
                reply.content.append(msgspec.structs.replace(block))
                pieces = []
            case ContentBlockDelta(_, BlockText(piece) | BlockThinking(piece) | BlockInput(piece)):
                pieces.append(piece)
            case ContentBlockDelta(index, BlockSignature(signature)):
                reply.content[index].signature = signature  # type: ignore[union-attr]
            case ContentBlockStop(index):
                _fill(reply.content[index], "".join(pieces))
            case MessageDelta(delta, usage, notes):
                reply.stop_reason, reply.stop_sequence = delta.stop_reason, delta.stop_sequence
                reply.usage, reply.toolwire = usage, notes
                if notes is not UNSET and notes.trace_delta is not None:
                    deltas.append(notes.trace_delta)
    assert reply is not None, "a stream has events"
    if deltas:
        notes = Notes() if reply.toolwire is UNSET else reply.toolwire
        reply.toolwire = msgspec.structs.replace(notes, trace=fold_trace(deltas))
    return reply


def _fill(block: MessageBlock, written: str) -> None:
    match block:
        case MessageText():
            block.text = written
        case MessageThinking():
            block.thinking = written
        case MessageToolUse():
            block.input = _whole_input(written)


def _whole_input(text: str) -> msgspec.Raw:
    """The input as it was written, or, of a call that was cut off, the members that are complete."""
    try:
        jiter.from_json(text.encode())
    except ValueError:
        members = jiter.from_json(text.encode(), partial_mode=True) if text.strip() else {}
        return msgspec.Raw(json.dumps(members).encode())
    return msgspec.Raw(text.encode())


def usage_of(usage: TokenUsage) -> MessageUsage:
    """Anthropic's usage object."""
    return MessageUsage(
        usage.prompt_tokens - usage.cached_tokens,
        usage.completion_tokens,
        ThinkingTokens(usage.reasoning_tokens),
        usage.cached_tokens,
    )
