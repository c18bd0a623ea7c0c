"""Run one chat request: build the prompt, submit it to the engine, decode the reply into events. Knows no HTTP.

    generation = await service.start(request)       # raises every refusal before anything is answered
    async for events in generation.events(): ...    # a list of what arrives together
    await generation.aclose()                       # always; frees what still runs

Logging, metrics and tracing observe this loop (`RequestObserver`); they are no generators in it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, ParamSpec, Protocol, TypeVar

from server.backends.base import Backend
from server.chat_request import ChatRequest, PartTokens, PreparedRequest
from server.checkpoint.checkpoint import Checkpoint
from server.errors import ConstraintFailed, DeadlinePassed, RequestFailed, ServeError
from server.messages import Delta, Generate, StageTime
from server.notes import Note, NoteKind
from server.prompt.builder import PromptBuilder
from server.reply.decoder import ParsedEvent, ReplyDecoder, ReplyFormat
from server.reply.text import Vocabulary
from server.reply.trace import TraceDelta, TracedVocabulary, TraceRecorder
from server.runtime.worker_pool import WorkerPool

PREPARE_THREADS = 2
P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E")
logger = logging.getLogger("toolwire")
DeltaStream = AsyncGenerator[Delta, None]
Outcome = Literal["complete", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An event of one choice."""

    choice: int
    parsed: ParsedEvent


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of the whole request. `prompt_tokens` counts once, however many choices there are."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


class RequestObserver(Protocol):
    """Notified of one request's progress, in this order; ends with `refused` or `finished`, exactly once.

    Calls come from the event loop in the middle of a reply, so they return at once. They must not raise.
    """

    def started(self) -> None:
        """The prompt is about to be built."""
        return

    def prepared(self) -> None:
        """The prompt is built; the request goes to the engine."""
        return

    def refused(self, error: BaseException) -> None:
        """The request ends without a reply, before or while it waits for admission."""
        return

    def admitted(self, generation: "Generation") -> None:
        """The engine has admitted every choice."""
        return

    def received(self, events: Sequence[ChoiceEvent]) -> None:
        """These events arrived together; never empty."""
        return

    def finished(self, outcome: Outcome, error: ServeError | None) -> None:
        """The reply is over, completely or not."""
        return


class ChatService:
    """Prepares prompts off the event loop and runs them on the backend.

    `prepare` and `count` are the PromptBuilder's; `read` says how the replies to a prepared prompt are decoded.
    `traced` shows the tokens of requests that are traced.
    """

    def __init__(
        self,
        prepare: Callable[[ChatRequest], PreparedRequest],
        count: Callable[[ChatRequest], tuple[PartTokens, ...]],
        read: Callable[[ChatRequest, PreparedRequest], ReplyFormat],
        backend: Backend,
        traced: TracedVocabulary | None = None,
    ) -> None:
        self._traced = traced
        self._prepare = prepare
        self._count = count
        self._read = read
        self._backend = backend
        self._pool = WorkerPool(PREPARE_THREADS, "prepare")
        self._logged_kinds: set[NoteKind] = set()

    async def start(
        self, request: ChatRequest, deadline_s: float | None = None, observers: Sequence[RequestObserver] = ()
    ) -> "Generation":
        """Returns once every choice is admitted; raises the first refusal, and then nothing runs any more.

        `deadline_s` is on the clock of `time.monotonic`.
        """
        for observer in observers:
            observer.started()
        try:
            async with until(deadline_s):
                prepared = await self.run(self._prepare, request)
            self._log_notes(prepared.notes)
            for observer in observers:
                observer.prepared()
            trace = await self._open_trace(request, prepared)
            format = self._read(request, prepared)
            generation = Generation(prepared, format, self._backend.generate, deadline_s, observers, trace)
            await generation.admit()
        except BaseException as error:
            if isinstance(error, ConstraintFailed):
                of_answer = "response_format" if request.answer is None else request.answer.param
                error.param = error.param or ("tools" if request.tools else of_answer)
            for observer in observers:
                observer.refused(error)
            raise
        return generation

    async def _open_trace(self, request: ChatRequest, prepared: PreparedRequest) -> TraceRecorder | None:
        if not request.trace or self._traced is None:
            return None
        return await self.run(TraceRecorder, prepared, self._traced)

    def _log_notes(self, notes: Iterable[Note]) -> None:
        """Log the first note of each kind."""
        for note in notes:
            if note.kind not in self._logged_kinds:
                self._logged_kinds.add(note.kind)
                logger.info(
                    "a request was changed; further ones of this kind are not logged",
                    extra={"kind": note.kind, "param": note.param, "note": note.text},
                )

    async def count(self, request: ChatRequest) -> tuple[PartTokens, ...]:
        """The prompt's tokens by part, without answering."""
        return await self.run(self._count, request)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work(*args)`, computed by the threads that prepare prompts."""
        return await self._pool.run(work, *args, **kwargs)


def build_service(checkpoint: Checkpoint, prompt_builder: PromptBuilder, backend: Backend) -> ChatService:
    """The ChatService of one checkpoint over one backend."""
    think = (checkpoint.think.open, checkpoint.think.close) if checkpoint.think else ()
    tags = [token.text for token in checkpoint.control_tokens if token.id in think]
    vocabulary = Vocabulary(checkpoint.tokenizer, kept=frozenset((*checkpoint.dialect.markers, *tags)))
    every_token = Vocabulary(checkpoint.tokenizer, kept=frozenset(token.text for token in checkpoint.control_tokens))
    return ChatService(
        prompt_builder.prepare,
        prompt_builder.count,
        lambda request, prepared: reply_format(checkpoint, vocabulary, request, prepared, every_token),
        backend,
        TracedVocabulary(every_token, frozenset(token.id for token in checkpoint.control_tokens)),
    )


def reply_format(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    request: ChatRequest,
    prepared: PreparedRequest,
    every_token: Vocabulary | None = None,
) -> ReplyFormat:
    """How the replies to a prepared prompt are decoded. Where no tool may be called, all text is the answer's.

    `every_token` shows the tokens of raw prompts and their replies.
    """
    dialect, choice, tools = checkpoint.dialect, request.choice, request.callable_tools
    return ReplyFormat(
        vocabulary,
        stop_ids=frozenset(prepared.generates[0].stop_ids),
        thinking=prepared.thinking,
        call_ids=frozenset(prepared.call_ids),
        call_markers=prepared.call_markers,
        halts=dialect.halts if tools else (),
        stop=request.stop,
        max_text_tokens=prepared.max_text_tokens,
        parser=(lambda: dialect.parser(tools)) if tools else None,
        parallel=choice.parallel,
        free_to_call=frozenset(tool.name for tool in tools) if choice.mode == "auto" else frozenset(),
        every_token=every_token if request.raw_prompts else None,
        answers_result=request.answers_result,
    )


class Generation:
    """The replies of one admitted request. Leaving it without `aclose` would leave its sequences running."""

    def __init__(
        self,
        prepared: PreparedRequest,
        format: ReplyFormat,
        generate: Callable[[Generate], DeltaStream],
        deadline_s: float | None = None,
        observers: Sequence[RequestObserver] = (),
        trace: TraceRecorder | None = None,
    ) -> None:
        self.prepared = prepared
        self._trace = trace
        self.stage_times: list[list[StageTime]] = [[] for _ in prepared.generates]  # by choice
        self._deadline_s = deadline_s
        self._observers = observers
        self._decoders = [ReplyDecoder(format, _echoed_id(one)) for one in prepared.generates]
        self._streams: dict[int, DeltaStream] = {i: generate(one) for i, one in enumerate(prepared.generates)}
        self._firsts: list[tuple[int, Delta]] = []
        self._cached_tokens = 0

    @property
    def usage(self) -> TokenUsage:
        """The tokens so far."""
        return TokenUsage(
            self.prepared.prompt_tokens,
            min(self._cached_tokens, self.prepared.prompt_tokens),
            sum(decoder.completion_tokens for decoder in self._decoders),
            sum(decoder.reasoning_tokens for decoder in self._decoders),
        )

    @property
    def n(self) -> int:
        """Number of choices."""
        return len(self._decoders)

    async def admit(self) -> None:
        """Wait for the first Delta of every choice. Raises the first refusal, and then nothing runs any more."""
        tasks = [asyncio.ensure_future(_next(stream)) for stream in self._streams.values()]
        try:
            async with until(self._deadline_s):
                self._firsts = list(enumerate(await asyncio.gather(*tasks)))
        except BaseException:
            await _cancel(tasks)
            await self._free()
            raise
        # The choices of a prompt share it: what the first found cached is what the request found cached.
        firsts = self._firsts[:: self.n // self.prepared.num_prompts]
        self._cached_tokens = sum(delta.cached or 0 for _, delta in firsts)
        self._record_stages(self._firsts)
        if self._trace is not None:
            self._trace.open(self.usage.cached_tokens)
        for observer in self._observers:
            observer.admitted(self)

    def take_trace(self) -> TraceDelta | None:
        """What the trace has gained since the last call; None if nothing, or if the request is not traced."""
        return None if self._trace is None else self._trace.take()

    async def events(self) -> AsyncGenerator[list[ChoiceEvent], None]:
        """The events of all choices, a list for what arrives together; ends when every choice has ended.

        A list may be empty where the request is traced: tokens came that settle no event yet. Raises the ServeError
        that ends the reply.
        """
        waiting: dict[asyncio.Task[Delta], int] = {}
        arrived = self._firsts
        try:
            while True:
                if events := await self._decode(arrived):
                    for observer in self._observers:
                        observer.received(events)
                if events or self._trace is not None:
                    yield events
                if not self._streams:
                    break
                arrived = await self._next_deltas(waiting)
                self._record_stages(arrived)
            self._finish("complete")
        except ServeError as error:
            self._finish("failed", error)
            raise
        finally:
            await _cancel(waiting)
            await self.aclose()

    async def written(
        self,
        opened: list[E],
        feed: Callable[[ChoiceEvent], list[E]],
        close: Callable[[TokenUsage], list[E]],
        show_trace: Callable[[TraceDelta], E] | None = None,
    ) -> AsyncGenerator[list[E], None]:
        """What a surface writes of the events, behind what it opens with; a list for what is sent together.

        `show_trace` writes what the trace of a traced request has gained, before what its tokens have written. Raises
        the ServeError that ends the reply.
        """

        def traced() -> list[E]:
            delta = self.take_trace()
            return [] if delta is None or show_trace is None else [show_trace(delta)]

        try:
            if out := [*opened, *traced()]:
                yield out
            async with contextlib.aclosing(self.events()) as arrivals:
                async for events in arrivals:
                    if out := [*traced(), *(one for event in events for one in feed(event))]:
                        yield out
            if closed := close(self.usage):
                yield closed
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Abort what still runs; does nothing the second time. A cancelled reader cannot cut it short."""
        try:
            self._finish("cancelled")
        finally:
            await self._free()

    async def _free(self) -> None:
        if self._streams:
            await asyncio.shield(self._end_all())

    async def _end_all(self) -> None:
        for choice in list(self._streams):
            await self._end(choice)

    def _finish(self, outcome: Outcome, error: ServeError | None = None) -> None:
        observers, self._observers = self._observers, ()  # they hold this Generation
        for observer in observers:
            observer.finished(outcome, error)

    async def _next_deltas(self, waiting: dict[asyncio.Task[Delta], int]) -> list[tuple[int, Delta]]:
        """What arrives next, in the order of the choices; `waiting` are the reads under way."""
        if len(self._streams) == 1 and not waiting:  # no task needed: by far the commonest case
            ((choice, stream),) = self._streams.items()
            async with until(self._deadline_s):
                return [(choice, await _next(stream))]
        for choice in self._streams.keys() - waiting.values():
            waiting[asyncio.ensure_future(_next(self._streams[choice]))] = choice
        async with until(self._deadline_s):
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return sorted(((waiting.pop(task), task.result()) for task in done), key=lambda pair: pair[0])

    async def _decode(self, arrived: Sequence[tuple[int, Delta]]) -> list[ChoiceEvent]:
        events: list[ChoiceEvent] = []
        for choice, delta in arrived:
            decoder = self._decoders[choice]
            num_before = decoder.completion_tokens
            events += [ChoiceEvent(choice, parsed) for parsed in decoder.feed(delta)]
            if self._trace is not None:
                self._trace.feed(delta, decoder.completion_tokens - num_before)
            if decoder.over:
                await self._end(choice)
        return events

    def _record_stages(self, arrived: Sequence[tuple[int, Delta]]) -> None:
        for choice, delta in arrived:
            if delta.stage_times:
                self.stage_times[choice] += delta.stage_times

    async def _end(self, choice: int) -> None:
        stream = self._streams.pop(choice, None)
        if stream is not None:
            await stream.aclose()


def _echoed_id(request: Generate) -> int | None:
    """The first id of a prompt that the reply begins with."""
    return None if request.prompt_logprobs is None else request.token_ids[0]


class _Deadline:
    """`asyncio.timeout_at` for a deadline on the monotonic clock; raises DeadlinePassed."""

    def __init__(self, deadline_s: float) -> None:
        self._timeout = asyncio.timeout(max(0.0, deadline_s - time.monotonic()))

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)  # type: ignore[arg-type]
        except TimeoutError as timeout:
            text = "the request's deadline has passed; ask for fewer tokens or allow it more time"
            raise DeadlinePassed(text) from timeout


_NO_DEADLINE = contextlib.nullcontext()


def until(deadline_s: float | None) -> _Deadline | contextlib.nullcontext[None]:
    """A block that `deadline_s`, on the clock of `time.monotonic`, ends with DeadlinePassed; None is no deadline."""
    return _NO_DEADLINE if deadline_s is None else _Deadline(deadline_s)


async def _next(stream: DeltaStream) -> Delta:
    try:
        return await anext(stream)
    except StopAsyncIteration as end:
        raise RequestFailed("the engine ended the reply without saying why") from end


async def _cancel(tasks: Iterable[asyncio.Task[Delta]]) -> None:
    tasks = list(tasks)
    if tasks:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
