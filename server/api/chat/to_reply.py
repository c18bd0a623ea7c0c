"""Events become chunks, and chunks become the whole reply. Stream and non-stream differ in this last fold alone."""

import secrets
import string
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from server.api.chat.wire import (
    CallDelta,
    CalledFunction,
    CallNote,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionTokenLogprob,
    ChunkChoice,
    ChunkDelta,
    CompletionDetails,
    CustomCall,
    CustomDelta,
    CustomInput,
    Finish,
    FunctionCall,
    FunctionDelta,
    Logprobs,
    MissedToolCallNote,
    Notes,
    PromptDetails,
    ReplyChoice,
    ReplyMessage,
    TopLogprob,
    Usage,
    traced,
)
from server.api.errors import encode
from server.events import CallArguments, CallClosed, CallOpened, Ended, Text, Thought
from server.notes import Note
from server.reply.decoder import ScoredToken
from server.reply.trace import TraceDelta, fold_trace
from server.service import ChoiceEvent, Generation, TokenUsage

ID_LENGTH = 24
ALPHANUMERICS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ReplyStyle:
    """How a reply is to be written, as the request says."""

    model: str
    include_usage: bool = False  # streams only
    logprobs: bool = False
    legacy_functions: bool = False  # `function_call` instead of `tool_calls`
    finish_of_calls: Literal["tool_calls", "stop"] = "tool_calls"
    service_tier: bool = False  # echo "default"


@dataclass(slots=True)
class _Call:
    id: str
    custom: bool
    pieces: int = 0
    logprobs: list[ChatCompletionTokenLogprob] = field(default_factory=list)


class Chunker:
    """Events of one reply -> chunks, in OpenAI's order: roles, then what is said, then finishes, usage last.

    A chunk holds one thing alone: the role, a thought, text, a call's header, a piece of its arguments, or the
    finish reason. Clients lose data where two share a chunk.
    """

    def __init__(self, style: ReplyStyle, dropped_messages: int = 0, notes: Sequence[Note] = ()) -> None:
        self.id = f"chatcmpl-{new_id()}"
        self._style = style
        self._dropped_messages = dropped_messages
        self._request_notes = list(notes)
        self._created = int(time.time())
        self._calls: dict[tuple[int, int], _Call] = {}
        self._call_notes: dict[int, list[CallNote]] = {}
        self._untraced_notes: list[CallNote] = []  # which no chunk of the trace has said yet

    def open(self, n: int) -> list[ChatCompletionChunk]:
        """One role chunk a choice, in order: a client's list of choices grows by them."""
        return [self._chunk(index, ChunkDelta(role="assistant", content="")) for index in range(n)]

    def feed(self, received: ChoiceEvent) -> list[ChatCompletionChunk]:
        """The chunks of one event."""
        index, event, tokens = received.choice, received.parsed.event, received.parsed.tokens
        match event:
            case Text(text):
                return [self._chunk(index, ChunkDelta(content=text), self._logprobs(tokens))]
            case Thought(text):
                return [self._chunk(index, ChunkDelta(reasoning_content=text))]
            case CallOpened(call_index, name, custom):
                call = self._calls[index, call_index] = _Call(f"call_{new_id()}", custom)
                self._note_tokens(call, tokens)
                return [self._chunk(index, self._header(call_index, name, call))]
            case CallArguments(call_index, text):
                return self._piece(index, call_index, text, tokens)
            case CallClosed():
                return self._close_call(index, event, tokens)
            case Ended():
                return [self._finish(index, event)]

    def show_trace(self, delta: TraceDelta) -> ChatCompletionChunk:
        """The chunk of what the trace has gained, without choices."""
        chunk = self._new([])
        calls, self._untraced_notes = self._untraced_notes, []
        chunk.toolwire = traced(delta, self._request_notes, self._dropped_messages, calls)
        return chunk

    def close(self, usage: TokenUsage) -> list[ChatCompletionChunk]:
        """The usage chunk, where it was asked for."""
        if not self._style.include_usage:
            return []
        chunk = self._new([], usage=usage_of(usage))
        if self._request_notes:
            chunk.toolwire = Notes(notes=self._request_notes)
        return [chunk]

    def _new(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk(self.id, self._created, self._style.model, choices)
        if self._style.service_tier:
            chunk.service_tier = "default"
        if self._style.include_usage:
            chunk.usage = usage
        return chunk

    def _chunk(self, index: int, delta: ChunkDelta, logprobs: Logprobs | None = None) -> ChatCompletionChunk:
        return self._new([ChunkChoice(index, delta, logprobs)])

    def _header(self, call_index: int, name: str, call: _Call) -> ChunkDelta:
        if self._style.legacy_functions:
            return ChunkDelta(function_call=FunctionDelta(name=name, arguments=""))
        if call.custom:
            header = CallDelta(call_index, call.id, "custom", custom=CustomDelta(name=name, input=""))
        else:
            header = CallDelta(call_index, call.id, "function", FunctionDelta(name=name, arguments=""))
        return ChunkDelta(tool_calls=[header])

    def _piece(
        self, index: int, call_index: int, text: str, tokens: tuple[ScoredToken, ...]
    ) -> list[ChatCompletionChunk]:
        call = self._calls[index, call_index]
        self._note_tokens(call, tokens)
        if not text:
            return []
        call.pieces += 1
        if self._style.legacy_functions:
            return [self._chunk(index, ChunkDelta(function_call=FunctionDelta(arguments=text)))]
        if call.custom:
            piece = CallDelta(call_index, custom=CustomDelta(input=text))
        else:
            piece = CallDelta(call_index, function=FunctionDelta(arguments=text))
        return [self._chunk(index, ChunkDelta(tool_calls=[piece]))]

    def _close_call(self, index: int, closed: CallClosed, tokens: tuple[ScoredToken, ...]) -> list[ChatCompletionChunk]:
        call = self._calls[index, closed.index]
        # An empty string is no JSON; a call that was cut off before its arguments began keeps what there is: nothing.
        missing = not call.pieces and not call.custom and "truncated" not in closed.flags
        chunks = self._piece(index, closed.index, "{}", tokens) if missing else []
        if not missing:
            self._note_tokens(call, tokens)
        if closed.flags or call.logprobs:
            raw = closed.raw if closed.flags else ""
            note = CallNote(index, closed.index, list(closed.flags), raw, call.logprobs)
            self._call_notes.setdefault(index, []).append(note)
        if closed.flags:
            self._untraced_notes.append(CallNote(index, closed.index, list(closed.flags), closed.raw))
        return chunks

    def _finish(self, index: int, ended: Ended) -> ChatCompletionChunk:
        finish: Finish = ended.finish
        if finish == "tool_calls":
            finish = self._style.finish_of_calls
            if finish == "tool_calls" and self._style.legacy_functions:
                finish = "function_call"
        chunk = self._new([ChunkChoice(index, ChunkDelta(), None, finish)])
        calls = self._call_notes.get(index, [])
        uncalled = ended.uncalled and MissedToolCallNote(index, list(ended.uncalled.named), ended.uncalled.blank)
        notes = Notes(calls, self._dropped_messages, [uncalled] if uncalled else [], self._request_notes)
        if notes != Notes():
            chunk.toolwire = notes
        return chunk

    def _logprobs(self, tokens: Iterable[ScoredToken]) -> Logprobs | None:
        return Logprobs([logprob_of(token) for token in tokens]) if self._style.logprobs else None

    def _note_tokens(self, call: _Call, tokens: Iterable[ScoredToken]) -> None:
        call.logprobs += [logprob_of(token) for token in tokens]


def chunks_of(generation: Generation, style: ReplyStyle) -> AsyncGenerator[list[ChatCompletionChunk], None]:
    """The chunks of the reply, a list for what is sent together. Raises the ServeError that ends the reply."""
    prepared = generation.prepared
    chunker = Chunker(style, prepared.dropped_messages, prepared.notes)
    opened = chunker.open(generation.n)
    return generation.written(opened, chunker.feed, chunker.close, chunker.show_trace)


async def whole_reply(generation: Generation, style: ReplyStyle) -> ChatCompletion:
    """The whole reply. Raises the ServeError that ends it."""
    chunks = [chunk async for step in chunks_of(generation, style) for chunk in step]
    return fold(chunks, generation.usage, style)


@dataclass(slots=True)
class _Choice:
    """What the chunks of one choice add up to."""

    content: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, FunctionCall | CustomCall] = field(default_factory=dict)
    function_call: CalledFunction | None = None
    logprobs: list[ChatCompletionTokenLogprob] | None = None
    finish: Finish = "stop"


def fold(chunks: Iterable[ChatCompletionChunk], usage: TokenUsage, style: ReplyStyle) -> ChatCompletion:
    """The whole reply that these chunks of one stream, all of them, add up to."""
    choices: dict[int, _Choice] = {}
    notes = Notes()
    deltas: list[TraceDelta] = []
    first: ChatCompletionChunk | None = None
    for chunk in chunks:
        first = first or chunk
        for choice in chunk.choices:
            _add(choices.setdefault(choice.index, _Choice()), choice)
        if chunk.toolwire is not UNSET:
            new = chunk.toolwire
            notes = Notes(
                notes.calls + (new.calls if new.trace_delta is None else []),  # which the last chunk says again
                max(notes.dropped_messages, new.dropped_messages),
                notes.uncalled + new.uncalled,
                new.notes or notes.notes,
            )
            if new.trace_delta is not None:
                deltas.append(new.trace_delta)
    assert first is not None, "a stream begins with its role chunks"
    whole = [_whole_choice(index, choices[index], style) for index in sorted(choices)]
    reply = ChatCompletion(first.id, first.created, first.model, whole, usage_of(usage))
    reply.service_tier = first.service_tier
    if deltas:
        notes.trace = fold_trace(deltas)
    if notes != Notes():
        reply.toolwire = notes
    return reply


def encode_reply(chunks: Iterable[ChatCompletionChunk], usage: TokenUsage, style: ReplyStyle) -> bytes:
    """JSON of the whole reply. Other threads run meanwhile: a token's alternatives are encoded one at a time."""
    reply = fold(chunks, usage, style)
    for choice in reply.choices:
        if choice.logprobs is not None:
            tokens: list[Any] = choice.logprobs.content
            choice.logprobs.content = [msgspec.Raw(encode(token)) for token in tokens]  # type: ignore[misc]
    return encode(reply)


def _add(choice: _Choice, new: ChunkChoice) -> None:
    delta = new.delta
    if delta.content is not UNSET:
        choice.content.append(delta.content)
    if delta.reasoning_content is not UNSET:
        choice.thoughts.append(delta.reasoning_content)
    if delta.tool_calls is not UNSET:
        for call in delta.tool_calls:
            _add_call(choice, call)
    if delta.function_call is not UNSET:
        if isinstance(delta.function_call.name, str):
            choice.function_call = CalledFunction(delta.function_call.name, "")
        elif choice.function_call is not None:
            choice.function_call.arguments += delta.function_call.arguments
    if new.logprobs is not None:
        choice.logprobs = choice.logprobs or []
        choice.logprobs += new.logprobs.content
    if new.finish_reason is not None:
        choice.finish = new.finish_reason


def _add_call(choice: _Choice, new: CallDelta) -> None:
    if isinstance(new.id, str):
        if new.custom is not UNSET:
            choice.calls[new.index] = CustomCall(new.id, CustomInput(str(new.custom.name), ""))
        elif new.function is not UNSET:
            choice.calls[new.index] = FunctionCall(new.id, CalledFunction(str(new.function.name), ""))
        return
    call = choice.calls[new.index]
    if isinstance(call, CustomCall) and new.custom is not UNSET:
        call.custom.input += new.custom.input
    elif isinstance(call, FunctionCall) and new.function is not UNSET:
        call.function.arguments += new.function.arguments


def _whole_choice(index: int, choice: _Choice, style: ReplyStyle) -> ReplyChoice:
    content = "".join(choice.content)
    called = choice.calls or choice.function_call
    message = ReplyMessage("assistant", None if called and not content else content)
    if choice.thoughts:
        message.reasoning_content = "".join(choice.thoughts)
    if choice.calls:
        message.tool_calls = [choice.calls[position] for position in sorted(choice.calls)]
    if choice.function_call is not None:
        message.function_call = choice.function_call
    logprobs = Logprobs(choice.logprobs or []) if style.logprobs else None
    return ReplyChoice(index, message, logprobs, choice.finish)


def usage_of(usage: TokenUsage) -> Usage:
    """OpenAI's usage object."""
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptDetails(usage.cached_tokens),
        CompletionDetails(usage.reasoning_tokens),
    )


def new_id() -> str:
    """ID_LENGTH random alphanumerics: enough to be unique over all conversations."""
    return "".join(ALPHANUMERICS[byte % len(ALPHANUMERICS)] for byte in secrets.token_bytes(ID_LENGTH))


def logprob_of(token: ScoredToken) -> ChatCompletionTokenLogprob:
    """A token as it is sent, with its alternatives."""
    top = [TopLogprob(show(piece), logprob, list(piece)) for piece, logprob in token.top]
    return ChatCompletionTokenLogprob(show(token.piece), token.logprob, list(token.piece), top)


def show(piece: bytes) -> str:
    """A token's text, where it is none with replacement characters."""
    return piece.decode("utf-8", errors="replace")
