"""One response being written: its events, its frames, and what is done before its last event is sent."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgspec
from msgspec import UNSET

from server.api.chat.wire import Notes
from server.api.errors import ApiError, encode
from server.api.middleware.request_log import prompt_logger
from server.api.responses.memory import Item
from server.api.responses.to_reply import ResponseWriter
from server.api.responses.to_request import MappedResponse
from server.api.responses.wire import EndEvent, ResponseObject, StreamEvent, StreamFault, TraceGained
from server.api.sse import PING
from server.chat_request import ChatRequest
from server.errors import PromptTooLong, ServeError
from server.notes import Note
from server.reply.trace import fold_trace
from server.service import ChoiceEvent, Generation, RequestObserver

SILENCE_S = 60.0  # before the first item, after which an event says that the response is still being written
# Keeps a response; returns why it could not be kept, or "".
Keep = Callable[[ResponseObject], Awaitable[str]]


class ResponseFrames:
    """Named events without a last frame: `response.completed` and its like are the end."""

    def __init__(self) -> None:
        self.ping = PING
        self.end = b""
        self._last: StreamEvent | None = None

    def frame(self, event: msgspec.Struct) -> bytes:
        """One event under its own name."""
        assert isinstance(event, StreamEvent), "a stream of a response has no other events"
        self._last = event
        return frame_of(event)

    def error(self, error: ApiError, request_id: str) -> bytes:
        """An unhandled exception; what `response.failed` has said is not said again."""
        if isinstance(self._last, EndEvent):
            return b""
        number = 0 if self._last is None else self._last.sequence_number + 1
        return frame_of(StreamFault(number, error.code, error.message, error.param))


def frame_of(event: StreamEvent) -> bytes:
    """The frame of an event."""
    name = str(type(event).__struct_config__.tag)
    return b"event: " + name.encode() + b"\ndata: " + encode(event) + b"\n\n"


class ResponsePlan:
    """A request for a response, and how it is answered.

    `keep` None: the response is not kept with its last event. `items` are those that its request brought, as they are
    kept, `earlier` those that it continues.
    """

    def __init__(
        self,
        mapped: MappedResponse,
        stream: bool,
        keep: Keep | None,
        items: Sequence[Item] = (),
        earlier: Sequence[Item] = (),
    ) -> None:
        self.request: ChatRequest = mapped.request
        self.stream = stream
        self.framing = ResponseFrames()
        self.response = mapped.response
        self.response.store = keep is not None or self.response.background
        self.items = items
        self.earlier = earlier
        self._generates = True
        self._writer = ResponseWriter(mapped.response, mapped.style)
        self._keep = keep

    @property
    def snapshot(self) -> ResponseObject:
        """The response as far as it is written."""
        return self._writer.snapshot

    def compute_prompt_only(self) -> None:
        """Have the prompt computed for later requests, and nothing written."""
        self._generates = False
        self.request = replace(self.request, max_tokens=1)

    def observers(self) -> Sequence[RequestObserver]:
        """None: the log of replies is written with the last event."""
        return ()

    def refused(self, error: ServeError) -> Sequence[StreamEvent]:
        """Clients compact their conversation when a stream says that it is too long."""
        if not isinstance(error, PromptTooLong):
            return ()
        return [*self._writer.open(), self._writer.fail(error)]

    async def events(self, generation: Generation) -> AsyncGenerator[list[StreamEvent], None]:
        """The events. A reply that fails ends with `response.failed`, and then raises its ServeError.

        While a long prompt is computed `response.in_progress` is repeated: Codex ends a stream that brings no event for
        five minutes, and comments are none to it.
        """
        try:
            yield [*self._writer.open(), *self._traced(generation)]
            async with aclosing(generation.events()) as arrivals:
                first = asyncio.ensure_future(anext(arrivals, []))
                try:
                    while not (await asyncio.wait({first}, timeout=SILENCE_S))[0]:
                        yield [self._writer.go_on()]
                    if written := self._written(generation, first.result()):
                        yield written
                finally:
                    first.cancel()
                    await asyncio.gather(first, return_exceptions=True)
                async for events in arrivals:
                    if written := self._written(generation, events):
                        yield written
            yield [await self._ended(self._close(generation))]
        except ServeError as error:
            yield [await self._ended(self._writer.fail(error, generation.usage))]
            raise
        finally:
            await generation.aclose()

    def encode(self, events: Sequence[StreamEvent], generation: Generation) -> bytes:
        """JSON of the response, which the last event holds, with its trace, which is not kept."""
        last = events[-1]
        assert isinstance(last, EndEvent), "the last event holds the response"
        gained = [event.toolwire.trace_delta for event in events if isinstance(event, TraceGained)]
        if deltas := [delta for delta in gained if delta is not None]:
            last = _with_notes(last, msgspec.structs.replace(_notes_of(last), trace=fold_trace(deltas)))
        return encode(last.response)

    def queue(self) -> Sequence[StreamEvent]:
        """The events of a background response before it begins."""
        return self._writer.queue()

    def fail(self, error: ServeError) -> EndEvent:
        """The last event of a background response that `error` ended."""
        return self._writer.fail(error)

    def cancel(self) -> EndEvent:
        """The last event of a background response that its client cancelled."""
        return self._writer.cancel()

    def _traced(self, generation: Generation) -> list[StreamEvent]:
        """The event of what the trace has gained, where it has."""
        delta, prepared = generation.take_trace(), generation.prepared
        return [] if delta is None else [self._writer.show_trace(delta, prepared.notes, prepared.dropped_messages)]

    def _written(self, generation: Generation, events: Sequence[ChoiceEvent]) -> list[StreamEvent]:
        written = self._traced(generation)
        if self._generates:
            written += [one for event in events for one in self._writer.feed(event)]
        return written

    def _close(self, generation: Generation) -> EndEvent:
        prepared, usage = generation.prepared, generation.usage
        if not self._generates:
            usage = replace(usage, completion_tokens=0, reasoning_tokens=0)
        return self._writer.close(usage, prepared.notes, prepared.dropped_messages)

    async def _ended(self, event: EndEvent) -> EndEvent:
        """The last event, once its response is kept, or with the reason why it is not."""
        response = event.response
        prompt_logger.info("reply", extra={"output": [msgspec.to_builtins(item) for item in response.output]})
        if self._keep is not None and (fault := await self._keep(response)):
            return not_kept(event, fault)
        return event


def not_kept(event: EndEvent, fault: str) -> EndEvent:
    """The last event of a response with a note that it could not be kept."""
    notes = _notes_of(event)
    note = Note("not_kept", "store", f"the response could not be kept: {fault}")
    return _with_notes(event, msgspec.structs.replace(notes, notes=[*notes.notes, note]))


def _notes_of(event: EndEvent) -> Notes:
    notes = event.response.toolwire
    return Notes() if notes is UNSET else notes


def _with_notes(event: EndEvent, notes: Notes) -> EndEvent:
    return type(event)(event.sequence_number, msgspec.structs.replace(event.response, toolwire=notes))
