"""Events of a reply become the events of a response's stream; the last of them holds the whole response."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from server.api.chat.to_reply import ID_LENGTH, logprob_of, new_id
from server.api.chat.wire import CallNote, ChatCompletionTokenLogprob, MissedToolCallNote, Notes, traced
from server.api.errors import error_of
from server.api.responses.wire import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    CustomCallItem,
    CustomInputDelta,
    CustomInputDone,
    DeltaLogprob,
    DeltaTopLogprob,
    EndEvent,
    FunctionCallItem,
    IncompleteDetails,
    InputDetails,
    ItemStatus,
    MessageItem,
    OutputDetails,
    OutputItem,
    OutputItemAdded,
    OutputItemDone,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseFault,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseObject,
    ResponseQueued,
    ResponseUsage,
    StreamEvent,
    SummaryPartAdded,
    SummaryPartDone,
    SummaryText,
    SummaryTextDelta,
    SummaryTextDone,
    TextDelta,
    TextDone,
    TraceGained,
)
from server.errors import Busy, PromptTooLong, Rejected, ServeError, ShuttingDown
from server.events import CallArguments, CallClosed, CallOpened, Ended, Text, Thought
from server.notes import Note
from server.reply.decoder import ScoredToken
from server.reply.trace import TraceDelta
from server.service import ChoiceEvent, TokenUsage

RESPONSE = "resp_"


@dataclass(frozen=True, slots=True)
class ShownTool:
    """A tool as the client knows it; `namespace` "" is none."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class ResponseStyle:
    """How a response is to be written, as its request says.

    `names` are the tools in namespaces by the names that the model sees. `seal` makes the opaque form of a thought.
    """

    logprobs: bool = False
    summary: bool = False
    names: Mapping[str, ShownTool] = field(default_factory=dict)
    seal: Callable[[str], str] | None = None


@dataclass(slots=True)
class _OpenItem:
    item: OutputItem
    pieces: list[str] = field(default_factory=list)
    logprobs: list[ChatCompletionTokenLogprob] = field(default_factory=list)


class ResponseWriter:
    """Writes one response: events of the reply in, events of the stream out.

    One item is open at a time; text, a thought or a call that follows another kind closes the item before it.
    """

    def __init__(self, response: ResponseObject, style: ResponseStyle) -> None:
        self._response = response
        self._style = style
        self._next_number = 0
        self._num_items = 0
        self._open: _OpenItem | None = None
        self._output: list[OutputItem] = []
        self._notes = Notes()
        self._untraced_notes: list[CallNote] = []  # which no event of the trace has said yet
        self._limited = False

    @property
    def snapshot(self) -> ResponseObject:
        """The response as far as it is written: its complete items."""
        return msgspec.structs.replace(self._response, output=list(self._output))

    def queue(self) -> list[StreamEvent]:
        """The events of a background response that has not begun."""
        self._response = msgspec.structs.replace(self._response, status="queued")
        return [ResponseCreated(self._number(), self._response), ResponseQueued(self._number(), self._response)]

    def open(self) -> list[StreamEvent]:
        """The events before the first item, without those of `queue`."""
        self._response = msgspec.structs.replace(self._response, status="in_progress")
        events: list[StreamEvent] = []
        if self._next_number == 0:
            events = [ResponseCreated(self._number(), self._response)]
        return [*events, ResponseInProgress(self._number(), self._response)]

    def go_on(self) -> ResponseInProgress:
        """An event that says nothing new, before the first item."""
        return ResponseInProgress(self._number(), self._response)

    def feed(self, received: ChoiceEvent) -> list[StreamEvent]:
        """The events of one event of the reply."""
        event, tokens = received.parsed.event, received.parsed.tokens
        match event:
            case Text(text):
                return self._write_text(text, tokens)
            case Thought(text):
                return self._write_thought(text)
            case CallOpened(_, name, custom):
                return self._open_call(name, custom)
            case CallArguments(_, text):
                return self._write_call(text)
            case CallClosed():
                return self._close_call(event)
            case Ended():
                return self._end(event)

    def show_trace(self, delta: TraceDelta, notes: Sequence[Note], dropped_messages: int) -> StreamEvent:
        """The event of what the trace has gained; with the first one comes what is noted of the request."""
        calls, self._untraced_notes = self._untraced_notes, []
        return TraceGained(self._number(), traced(delta, notes, dropped_messages, calls))

    def close(self, usage: TokenUsage, notes: Iterable[Note], dropped_messages: int) -> EndEvent:
        """The last event, with the whole response. The reply has ended."""
        all_notes = Notes(self._notes.calls, dropped_messages, self._notes.uncalled, list(notes))
        response = msgspec.structs.replace(
            self._response,
            status="incomplete" if self._limited else "completed",
            completed_at=None if self._limited else int(time.time()),
            incomplete_details=IncompleteDetails() if self._limited else None,
            output=self._output,
            usage=usage_of(usage),
            toolwire=all_notes if all_notes != Notes() else UNSET,
        )
        kind = ResponseIncomplete if self._limited else ResponseCompleted
        return kind(self._number(), response)

    def fail(self, error: ServeError, usage: TokenUsage | None = None) -> ResponseFailed:
        """The last event of a reply that `error` ended; complete items are kept."""
        response = msgspec.structs.replace(
            self._response,
            status="failed",
            error=fault_of(error),
            output=self._output,
            usage=usage and usage_of(usage),
        )
        return ResponseFailed(self._number(), response)

    def cancel(self) -> ResponseIncomplete:
        """The last event of a background response that its client cancelled; OpenAI's events have none of its own."""
        return ResponseIncomplete(self._number(), msgspec.structs.replace(self.snapshot, status="cancelled"))

    def _new_item_id(self, prefix: str) -> str:
        """An id that names the response, so that references are found without an index."""
        self._num_items += 1
        return item_id(prefix, self._response.id, self._num_items - 1)

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number - 1

    @property
    def _index(self) -> int:
        return len(self._output)

    def _write_text(self, text: str, tokens: tuple[ScoredToken, ...]) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        one = self._open
        if one is None or not isinstance(one.item, MessageItem):
            events = self._begin(MessageItem(self._new_item_id("msg"), "in_progress"))
            one = self._current()
            events.append(ContentPartAdded(self._number(), self._index, one.item.id, OutputText("")))
        one.pieces.append(text)
        delta = TextDelta(self._number(), self._index, one.item.id, text)
        if self._style.logprobs:
            logprobs = [logprob_of(token) for token in tokens]
            one.logprobs += logprobs
            delta.logprobs = _in_delta(logprobs)
        events.append(delta)
        return events

    def _write_thought(self, text: str) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        one = self._open
        if one is None or not isinstance(one.item, ReasoningItem):
            events = self._begin(ReasoningItem(self._new_item_id("rs"), "in_progress"))
            one = self._current()
            item_id = one.item.id
            events.append(ContentPartAdded(self._number(), self._index, item_id, ReasoningText("")))
            if self._style.summary:
                events.append(SummaryPartAdded(self._number(), self._index, item_id, SummaryText("")))
        one.pieces.append(text)
        events.append(ReasoningTextDelta(self._number(), self._index, one.item.id, text))
        if self._style.summary:
            events.append(SummaryTextDelta(self._number(), self._index, one.item.id, text))
        return events

    def _open_call(self, name: str, custom: bool) -> list[StreamEvent]:
        shown = self._style.names.get(name, ShownTool("", name))
        namespace = shown.namespace or UNSET
        call_id = f"call_{new_id()}"
        if custom:
            return self._begin(CustomCallItem(self._new_item_id("ctc"), call_id, shown.name, namespace=namespace))
        item = FunctionCallItem(self._new_item_id("fc"), "in_progress", call_id, shown.name, namespace=namespace)
        return self._begin(item)

    def _write_call(self, text: str) -> list[StreamEvent]:
        if not text:
            return []
        one = self._current()
        one.pieces.append(text)
        kind = CustomInputDelta if isinstance(one.item, CustomCallItem) else ArgumentsDelta
        return [kind(self._number(), self._index, one.item.id, text)]

    def _close_call(self, closed: CallClosed) -> list[StreamEvent]:
        one = self._current()
        truncated = "truncated" in closed.flags
        events: list[StreamEvent] = []
        if isinstance(one.item, FunctionCallItem) and not one.pieces and not truncated:
            events = self._write_call("{}")  # an empty string is no JSON
        if closed.flags:
            note = CallNote(0, closed.index, list(closed.flags), closed.raw)
            self._notes.calls = [*self._notes.calls, note]
            self._untraced_notes.append(note)
        return [*events, *self._finish("incomplete" if truncated else "completed")]

    def _end(self, ended: Ended) -> list[StreamEvent]:
        self._limited = ended.finish == "length"
        events = self._finish("incomplete" if self._limited else "completed")
        has_answer = any(not isinstance(item, ReasoningItem) for item in self._output)
        if not has_answer and not self._limited:  # the turn of the assistant, which said nothing
            events += self._write_text("", ())
            events += self._finish("completed")
        if ended.uncalled is not None:
            self._notes.uncalled = [MissedToolCallNote(0, list(ended.uncalled.named), ended.uncalled.blank)]
        return events

    def _current(self) -> _OpenItem:
        assert self._open is not None, "the reply's events open an item before they write to it"
        return self._open

    def _begin(self, item: OutputItem) -> list[StreamEvent]:
        events = self._finish("completed")
        self._open = _OpenItem(item)
        return [*events, OutputItemAdded(self._number(), self._index, item)]

    def _finish(self, status: ItemStatus) -> list[StreamEvent]:
        """The events that close the open item."""
        if self._open is None:
            return []
        one, text = self._open, "".join(self._open.pieces)
        at = (self._index, one.item.id)
        item: OutputItem
        events: list[StreamEvent]
        match one.item:
            case MessageItem():
                part = OutputText(text, logprobs=one.logprobs)
                item = msgspec.structs.replace(one.item, status=status, content=[part])
                events = [
                    TextDone(self._number(), *at, text, _in_delta(one.logprobs)),
                    ContentPartDone(self._number(), *at, part),
                ]
            case ReasoningItem():
                item, events = self._finish_thought(one.item, text, status)
            case FunctionCallItem():
                item = msgspec.structs.replace(one.item, status=status, arguments=text)
                events = [ArgumentsDone(self._number(), *at, text)]
            case CustomCallItem():
                item = msgspec.structs.replace(one.item, input=text)
                events = [CustomInputDone(self._number(), *at, text)]
        events.append(OutputItemDone(self._number(), self._index, item))
        self._output.append(item)
        self._open = None
        return events

    def _finish_thought(
        self, begun: ReasoningItem, text: str, status: ItemStatus
    ) -> tuple[ReasoningItem, list[StreamEvent]]:
        at = (self._index, begun.id)
        events: list[StreamEvent] = [
            ReasoningTextDone(self._number(), *at, text),
            ContentPartDone(self._number(), *at, ReasoningText(text)),
        ]
        item = msgspec.structs.replace(begun, status=status, content=[ReasoningText(text)])
        if self._style.summary:
            item.summary = [SummaryText(text)]
            events += [
                SummaryTextDone(self._number(), *at, text),
                SummaryPartDone(self._number(), *at, SummaryText(text)),
            ]
        if self._style.seal is not None:
            item.encrypted_content = self._style.seal(text)
        return item, events


def item_id(prefix: str, response_id: str, number: int) -> str:
    """The id of an output's item."""
    return f"{prefix}_{response_id.removeprefix(RESPONSE)}{number:02x}"


def response_of_item(id_: str) -> str:
    """The id of the response that an item of this id belongs to, if it is an output's."""
    return RESPONSE + id_.partition("_")[2][:ID_LENGTH]


def fault_of(error: ServeError) -> ResponseFault:
    """The `error` of a failed response. Clients compact on `context_length_exceeded` and wait for the seconds."""
    if isinstance(error, PromptTooLong):
        return ResponseFault("context_length_exceeded", str(error))
    if isinstance(error, Busy) and not isinstance(error, ShuttingDown):
        wait_s = error_of(error).headers["retry-after"]
        return ResponseFault("rate_limit_exceeded", f"{error}; try again in {wait_s}s")
    if isinstance(error, Rejected):
        return ResponseFault("invalid_prompt", str(error))
    return ResponseFault("server_error", str(error))


def usage_of(usage: TokenUsage) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        InputDetails(usage.cached_tokens),
        usage.completion_tokens,
        OutputDetails(usage.reasoning_tokens),
        usage.prompt_tokens + usage.completion_tokens,
    )


def _in_delta(logprobs: Iterable[ChatCompletionTokenLogprob]) -> list[DeltaLogprob]:
    return [
        DeltaLogprob(one.token, one.logprob, [DeltaTopLogprob(top.token, top.logprob) for top in one.top_logprobs])
        for one in logprobs
    ]
