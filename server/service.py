"""One Ask through prompt, door and turn: what the API does for a request, free of HTTP.

answer = await Answerer(...).admit(ask)         # raises before anything is answered
async for step in answer.steps(): ...           # lists of (choice, event)
await answer.aclose()                           # always; frees what still runs
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from opentelemetry import trace

from server.backends.base import Backend
from server.chat_request import ChatRequest, PartTokens, PreparedRequest
from server.checkpoint.checkpoint import Checkpoint
from server.errors import ConstraintFailed, DeadlinePassed, RequestFailed
from server.messages import Delta, Generate
from server.prompt.builder import PromptBuilder
from server.reply.decoder import ParsedEvent, ReplyDecoder, ReplyFormat
from server.reply.text import Vocabulary
from server.stage_spans import StageSpans

tracer = trace.get_tracer("toolwire")  # a no-op unless traces are sent

PREPARE_THREADS = 2
Stream = AsyncGenerator[Delta, None]


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """What one choice said."""

    choice: int
    said: ParsedEvent


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of the whole request. `prompt_tokens` counts once, however many choices there are."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


class ChatService:
    """Prepares prompts off the event loop and opens the door for them.

    `prepare` and `count` are the Prompter's; `read` tells how the replies to a prepared prompt are read.
    """

    def __init__(
        self,
        prepare: Callable[[ChatRequest], PreparedRequest],
        count: Callable[[ChatRequest], tuple[PartTokens, ...]],
        read: Callable[[ChatRequest, PreparedRequest], ReplyFormat],
        backend: Backend,
    ) -> None:
        self._prepare = prepare
        self._count = count
        self._read = read
        self._backend = backend
        self._threads = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare")

    async def admit(self, ask: ChatRequest, deadline_s: float | None = None) -> "Generation":
        """Returns once every choice is admitted; raises the first refusal, and then nothing runs any more.

        `deadline_s` is on the clock of `time.monotonic`.
        """
        loop = asyncio.get_running_loop()
        with tracer.start_as_current_span("prepare"):
            prepared = await loop.run_in_executor(self._threads, self._prepare, ask)
        answer = Generation(prepared, self._read(ask, prepared), self._backend.generate, deadline_s)
        try:
            with tracer.start_as_current_span("admit") as span:
                await answer.admitted()
                answer.stages.tell_queue(span)
        except ConstraintFailed as error:
            error.param = error.param or ("tools" if ask.tools else "response_format")
            raise
        return answer

    async def count(self, ask: ChatRequest) -> tuple[PartTokens, ...]:
        """The prompt's tokens by part, without answering."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._count, ask)


def build_service(checkpoint: Checkpoint, prompter: PromptBuilder, backend: Backend) -> ChatService:
    """The Answerer of one checkpoint over one backend."""
    think = (checkpoint.think.open, checkpoint.think.close) if checkpoint.think else ()
    tags = [token.text for token in checkpoint.control_tokens if token.id in think]
    vocabulary = Vocabulary(checkpoint.tokenizer, kept=frozenset((*checkpoint.dialect.markers, *tags)))
    return ChatService(
        prompter.prepare,
        prompter.count,
        lambda ask, prepared: reply_format(checkpoint, vocabulary, ask, prepared),
        backend,
    )


def reply_format(
    checkpoint: Checkpoint, vocabulary: Vocabulary, ask: ChatRequest, prepared: PreparedRequest
) -> ReplyFormat:
    """How the replies to a prepared prompt are read. Without tools, or where none may be called, all text is text."""
    dialect, choice = checkpoint.dialect, ask.choice
    tools = [tool for tool in ask.tools if choice.allowed is None or tool.name in choice.allowed]
    calls = bool(tools) and choice.mode != "none"
    # Where a call must come, it comes behind the block, under the grammar; markup inside is thought about, not meant.
    promised = choice.mode == "required" and prepared.generates[0].constraint is not None
    openers = dialect.markers[:1] if calls and not promised else ()
    return ReplyFormat(
        vocabulary,
        stop_ids=frozenset(prepared.generates[0].stop_ids),
        thinking=prepared.thinking,
        call_ids=frozenset(checkpoint.marker_ids[text] for text in openers if text in checkpoint.marker_ids),
        call_markers=tuple(text for text in openers if text not in checkpoint.marker_ids),
        halts=dialect.halts if calls else (),
        stop=ask.stop,
        parser=(lambda: dialect.parser(tools)) if calls else None,
        parallel=choice.parallel,
        free_to_call=frozenset(tool.name for tool in tools) if choice.mode == "auto" else frozenset(),
        answers_result=ask.messages[-1]["role"] in ("tool", "function"),
    )


class Generation:
    """The replies of one request under way. Leaving it without `aclose` would leave its sequences running."""

    def __init__(
        self,
        prepared: PreparedRequest,
        reading: ReplyFormat,
        generate: Callable[[Generate], Stream],
        deadline_s: float | None = None,
    ) -> None:
        self.prepared = prepared
        self._deadline_s = deadline_s
        self._turns = [ReplyDecoder(reading) for _ in prepared.generates]
        self._streams: dict[int, Stream] = {i: generate(one) for i, one in enumerate(prepared.generates)}
        self._firsts: list[tuple[int, Delta]] = []
        self.stages = StageSpans(len(prepared.generates))
        self._cached_tokens = 0

    @property
    def tally(self) -> TokenUsage:
        """The tokens so far."""
        return TokenUsage(
            self.prepared.prompt_tokens,
            min(self._cached_tokens, self.prepared.prompt_tokens),
            sum(turn.completion_tokens for turn in self._turns),
            sum(turn.reasoning_tokens for turn in self._turns),
        )

    @property
    def n(self) -> int:
        """Number of choices."""
        return len(self._turns)

    async def admitted(self) -> None:
        """Waits for the first Delta of every choice."""
        tasks = [asyncio.ensure_future(_next(stream)) for stream in self._streams.values()]
        try:
            async with self._deadline():
                self._firsts = list(enumerate(await asyncio.gather(*tasks)))
        except BaseException:
            await _cancel(tasks)
            await self.aclose()
            raise
        # Choices share the prompt: what the first found cached is what the request found cached.
        self._cached_tokens = self._firsts[0][1].cached or 0
        self._hear_stages(self._firsts)

    async def steps(self) -> AsyncGenerator[list[ChoiceEvent], None]:
        """What the choices say, a list for what arrives together; ends when all have ended."""
        try:
            yield await self._read(self._firsts)
            async for arrived in self._arrivals():
                self._hear_stages(arrived)
                heard = await self._read(arrived)
                if heard:
                    yield heard
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Aborts what still runs; does nothing the second time. A cancelled reader cannot cut it short."""
        if self._streams:
            await asyncio.shield(self._end_all())

    async def _end_all(self) -> None:
        for choice in list(self._streams):
            await self._end(choice)

    async def _arrivals(self) -> AsyncGenerator[list[tuple[int, Delta]], None]:
        waiting: dict[asyncio.Task[Delta], int] = {}
        try:
            while self._streams:
                if len(self._streams) == 1 and not waiting:  # no task needed: by far the commonest case
                    ((choice, stream),) = self._streams.items()
                    async with self._deadline():
                        delta = await _next(stream)
                    yield [(choice, delta)]
                    continue
                for choice in self._streams.keys() - waiting.values():
                    waiting[asyncio.ensure_future(_next(self._streams[choice]))] = choice
                async with self._deadline():
                    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                yield sorted(((waiting.pop(task), task.result()) for task in done), key=lambda pair: pair[0])
        finally:
            await _cancel(waiting)

    async def _read(self, arrived: Sequence[tuple[int, Delta]]) -> list[ChoiceEvent]:
        heard: list[ChoiceEvent] = []
        for choice, delta in arrived:
            turn = self._turns[choice]
            heard += [ChoiceEvent(choice, said) for said in turn.feed(delta)]
            if turn.over:
                await self._end(choice)
        return heard

    def _hear_stages(self, arrived: Sequence[tuple[int, Delta]]) -> None:
        for choice, delta in arrived:
            if delta.moments:
                self.stages.hear(choice, delta.moments)

    async def _end(self, choice: int) -> None:
        stream = self._streams.pop(choice, None)
        if stream is not None:
            await stream.aclose()

    def _deadline(self) -> "_Deadline | contextlib.nullcontext[None]":
        return _NO_DEADLINE if self._deadline_s is None else _Deadline(self._deadline_s)


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


async def _next(stream: Stream) -> Delta:
    try:
        return await anext(stream)
    except StopAsyncIteration as end:
        raise RequestFailed("the engine ended the reply without saying why") from end


async def _cancel(tasks: Iterable[asyncio.Task[Delta]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
