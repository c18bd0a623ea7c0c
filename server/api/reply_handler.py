"""Requests for a reply on any surface: body and deadline, the generation, then a stream or one body of its events."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import bad, read_body_object
from server.api.errors import ApiError, RequestRefused, no_such_model
from server.api.metrics import Metrics
from server.api.middleware.auth import salt_of
from server.api.middleware.request_log import prompt_logger
from server.api.middleware.request_spans import RequestSpans
from server.api.served_models import ServedModels
from server.api.session_headers import STATE as SESSION_HEADERS
from server.api.sse import EventStream, Framing, unless_gone
from server.chat_request import ChatRequest, PartTokens
from server.errors import ServeError
from server.notes import Note, bounded
from server.service import ChatService, ChoiceEvent, Generation, Outcome, RequestObserver, until
from server.settings import ApiSettings

BODY_TIMEOUT_S = 60.0
LARGE_BODY = 512  # bytes; larger ones, which may have schemas, are validated off the event loop
TIMEOUT_HEADER = "x-request-timeout"  # seconds; may only shorten the server's own deadline
TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Extension. Seconds that this request may take; only ever shortens the server's own deadline.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
T = TypeVar("T")
E = TypeVar("E", bound=msgspec.Struct)

# The whole reply that the events add up to, as fields of its line in the log of prompts.
Fold = Callable[[Generation, Sequence[ChoiceEvent]], Mapping[str, Any]]


class SentRequest(Protocol):
    """A validated request of a surface."""

    model: str


S = TypeVar("S", bound=SentRequest)
# Validates a body, to the letter or leniently; returns the request and notes. Raises RequestRefused.
Validate = Callable[[dict[str, Any], bool], tuple[S, tuple[Note, ...]]]


class ReplyPlan(Protocol[E]):
    """One validated request of a surface, and how its reply is written.

    `events` are the events of the stream, a list for what is sent together; it raises the ServeError that ends the
    reply, unless the surface has an event for that. `encode` is the body that all of them add up to.
    """

    @property
    def request(self) -> ChatRequest:
        """The internal form."""

    @property
    def stream(self) -> bool:
        """Whether the reply is sent event by event."""

    @property
    def framing(self) -> Framing:
        """The frames of the stream."""

    def observers(self) -> Sequence[RequestObserver]:
        """The surface's own observers, such as the log of its replies."""

    def refused(self, error: ServeError) -> Sequence[E]:
        """The events of a stream that says so where the engine admits no reply; none: the status says it."""

    def events(self, generation: Generation) -> AsyncGenerator[list[E], None]:
        """The events of the reply."""

    def encode(self, events: Sequence[E], generation: Generation) -> bytes:
        """JSON of the whole reply; called off the event loop."""


@dataclasses.dataclass(frozen=True, slots=True)
class PromptCount:
    """Prompt tokens of a request by part, and notes on what of it was read as something else."""

    parts: tuple[PartTokens, ...]
    notes: tuple[Note, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole prompt."""
        return sum(part.tokens for part in self.parts)


class ReplyHandler:
    """Answers requests for replies: what is common to all surfaces."""

    def __init__(self, settings: ApiSettings, models: ServedModels, service: ChatService, metrics: Metrics) -> None:
        self.settings = settings
        self._models = models
        self._service = service
        self.metrics = metrics

    async def answer(self, request: Request, read: Callable[[bytes], Awaitable[ReplyPlan[E]]]) -> Response:
        """The reply to a request whose body `read` validates; `read` raises RequestRefused or a ServeError."""

        async def reply(raw: bytes, deadline_s: float | None) -> Response:
            async with until(deadline_s):
                plan = await read(raw)
            return await self.reply(plan, deadline_s, request.state)

        return await self.handle(request, reply)

    async def handle(self, request: Request, work: Callable[[bytes, float | None], Awaitable[Response]]) -> Response:
        """The result of `work` for the body and deadline of a request; ended where the client leaves before it."""
        deadline_s = self.deadline(request)
        async with until(deadline_s):
            raw = await read_body(request)
        return await unless_gone(request.receive, work(raw, deadline_s))

    async def reply(self, plan: ReplyPlan[E], deadline_s: float | None, state: State) -> Response:
        """The reply of a plan: a stream of events, or one body of them."""
        try:
            generation = await self.start(plan, deadline_s, state)
        except ServeError as error:
            if not plan.stream or not (events := plan.refused(error)):
                raise
            return EventStream(_only(events), self.settings.ping_interval_s, nothing, plan.framing)
        if plan.stream:
            return EventStream(plan.events(generation), self.settings.ping_interval_s, generation.aclose, plan.framing)
        return Response(await self.whole(plan, generation), media_type="application/json")

    async def count(self, request: Request, read: Callable[[bytes], Awaitable[ReplyPlan[E]]]) -> PromptCount:
        """The prompt tokens of a request, without answering it. Raises as `answer`."""
        async with until(self.deadline(request)):
            plan = await read(await read_body(request))
            return PromptCount(await self._service.count(plan.request), bounded(plan.request.notes))

    async def start(self, plan: ReplyPlan[E], deadline_s: float | None, state: State) -> Generation:
        """The admitted generation of a plan, under the salt of the client's key. Raises its first refusal."""
        self.check_model(plan.request.model)  # an adapter may be gone since the request was read
        adapter = self._models.adapter_of(plan.request.model)
        chat_request = dataclasses.replace(plan.request, adapter=adapter) if adapter else plan.request
        if not self.settings.share_cache_between_keys:
            chat_request = dataclasses.replace(chat_request, cache_salt=salt_of(state, chat_request.cache_salt))
        if session := getattr(state, SESSION_HEADERS, ()):
            chat_request = dataclasses.replace(chat_request, session=session)
        observers = [state.place, self.metrics.observe(), RequestSpans(), *plan.observers()]
        return await self._service.start(chat_request, deadline_s, observers)

    async def parse(self, read: Callable[[bytes], T], raw: bytes) -> T:
        """The result of `read(raw)`, off the event loop where the body is large."""
        if len(raw) > LARGE_BODY:
            return await self._service.run(read, raw)
        return read(raw)

    def read(
        self, raw: bytes, validate: Validate[S], prompt: Sequence[str], strict: bool
    ) -> tuple[S, tuple[Note, ...]]:
        """The validated request in a body, and notes on what of it is read as something else. Raises RequestRefused.

        The fields `prompt` go to the log of prompts.
        """
        return self.validated(*read_body_object(raw, strict), validate, prompt, strict)

    def validated(
        self, body: dict[str, Any], notes: tuple[Note, ...], validate: Validate[S], prompt: Sequence[str], strict: bool
    ) -> tuple[S, tuple[Note, ...]]:
        """The same of a body that is parsed already."""
        sent, more = validate(body, strict)
        self.check_model(sent.model)
        prompt_logger.info("prompt", extra={name: body.get(name) for name in prompt})
        return sent, notes + more

    async def whole(self, plan: ReplyPlan[E], generation: Generation) -> bytes:
        """JSON of the whole reply: the fold of the events that a stream sends."""
        events = [event async for step in plan.events(generation) for event in step]
        return await self._service.run(plan.encode, events, generation)

    def check_model(self, name: Any) -> None:
        """Raise RequestRefused (404) for a model that is not served."""
        if not self._models.is_served(name):
            raise RequestRefused(no_such_model(str(name)))

    def deadline(self, request: Request) -> float | None:
        """The end of the request's time on the clock of `time.monotonic`. Raises RequestRefused (400)."""
        limits = [self.settings.request_timeout_s] if self.settings.request_timeout_s else []
        sent = request.headers.get(TIMEOUT_HEADER)
        if sent is not None:
            try:
                limits.append(float(sent))
            except ValueError:
                limits.append(0.0)
            if not 0 < limits[-1] < float("inf"):
                raise bad(f"Invalid header '{TIMEOUT_HEADER}': expected seconds, but got '{sent}'.", None)
        return time.monotonic() + min(limits) if limits else None


class ReplyLog(RequestObserver):
    """Writes the whole reply to the log of prompts when it is complete; `fold` makes it of the events."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._events: list[ChoiceEvent] = []
        self._generation: Generation | None = None

    def admitted(self, generation: Generation) -> None:
        """Keep where the usage is."""
        self._generation = generation

    def received(self, events: Sequence[ChoiceEvent]) -> None:
        """Keep what arrived."""
        self._events += events

    def finished(self, outcome: Outcome, error: ServeError | None) -> None:
        """Write the reply."""
        if outcome == "complete" and self._generation is not None:
            prompt_logger.info("reply", extra=msgspec.to_builtins(self._fold(self._generation, self._events)))


def reply_logs(fold: Fold) -> Sequence[ReplyLog]:
    """The log of a reply, where prompts are logged."""
    return [ReplyLog(fold)] if prompt_logger.isEnabledFor(logging.INFO) else []


async def _only(events: Sequence[E]) -> AsyncGenerator[Sequence[E], None]:
    yield events


async def nothing() -> None:
    """Nothing runs that would have to be released."""


async def read_body(request: Request) -> bytes:
    """The whole body; a client that does not finish it in time is refused (408)."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            # Not `request.body()`, which would keep the bytes for as long as the reply is written.
            return b"".join([piece async for piece in request.stream()])
    except TimeoutError as error:
        text = f"The request body did not arrive within {BODY_TIMEOUT_S:.0f} s."
        raise RequestRefused(ApiError(408, text, code="body_timeout", headers={"connection": "close"})) from error
