"""Decode one choice: ids -> text -> think span -> halts -> dialect parser -> stop strings -> events.

Stop strings come last because they are the user's: they end the answer's text, and never a thought, a call's
arguments or markup that the user does not see. A dialect's halts (ReAct's `Observation:`) come before its parser.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from server.checkpoint.template import THINK_CLOSE, THINK_OPEN
from server.dialects.base import Parser
from server.events import (
    CallArguments,
    CallClosed,
    CallOpened,
    Ended,
    Event,
    FinishReason,
    MissedToolCall,
    Text,
    Thought,
)
from server.messages import Delta, TokenLogprob
from server.reply.text import StopStrings, TextStream, Vocabulary
from server.reply.think import ThinkSpan, named_in

MAX_IDENTICAL_CALLS = 3


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How the replies to one request are decoded. `parser` None: all text is the answer's."""

    vocabulary: Vocabulary
    stop_ids: frozenset[int]
    thinking: Literal["off", "open", "may_open"] = "off"
    call_ids: frozenset[int] = frozenset()  # each opens a call, inside a think block as well
    call_markers: tuple[str, ...] = ()  # their texts do, where the vocabulary has no such token
    halts: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    max_text_tokens: int | None = (
        None  # the reply ends with "length" after this many of text; thoughts and calls are not counted
    )
    parser: Callable[[], Parser] | None = None
    parallel: bool = True  # False: the reply ends after its first call
    free_to_call: frozenset[str] = frozenset()  # tools that may be called and need not be
    every_token: Vocabulary | None = None  # shows all ids, control tokens too: each of them is to have its logprob
    answers_result: bool = False  # after a tool's result thoughts usually name the tool without planning a call


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One written token: its bytes, the log of its probability, and the likeliest alternatives, best first."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedEvent:
    """An event, and the tokens that wrote it where logprobs were asked for."""

    event: Event
    tokens: tuple[ScoredToken, ...] = ()


class ReplyDecoder:
    """Reads one choice: `feed` each Delta, `close` if the sequence was cut off without a last one.

    The events are those of `server.events`, ended by one `Ended`; any cutting of the ids into Deltas gives the same
    ones, adjacent pieces joined. Once `over` is set no further id is needed: the sequence may be aborted.
    `echoed_id` is the first of a prompt that the reply begins with; its other ids come with the Deltas.
    """

    def __init__(self, format: ReplyFormat, echoed_id: int | None = None) -> None:
        self._format = format
        self._scored_vocabulary = format.every_token or format.vocabulary
        self._text = TextStream(format.vocabulary)
        self._prompt_text = TextStream(self._scored_vocabulary)
        self._echoed_id = echoed_id
        self._think = ThinkSpan(format.thinking, (THINK_OPEN, THINK_CLOSE), format.call_markers)
        self._halts = StopStrings(format.halts)
        self._parser = format.parser() if format.parser else None
        self._stops = StopStrings(format.stop)
        self._repeats = RepeatDetector()
        self._call: list[str] = []  # name and arguments of the call that is open
        self._pending: deque[tuple[ScoredToken, str]] = (
            deque()
        )  # tokens whose event is not settled, and what they wrote
        self._thoughts: list[str] = []
        self._blank = True  # no text has come out, or nothing but white space
        self._cut = False  # the reply was ended by its limit, whatever closing it brings to an end
        self._in_call = False
        self._num_text_tokens = 0
        self.over = False
        self.calls = 0
        self.completion_tokens = 0
        self.reasoning_tokens = 0

    def feed(self, delta: Delta) -> list[ParsedEvent]:
        """The events that these ids settle."""
        events = self._echo(delta.prompt_logprobs)
        scores: list[TokenLogprob] | list[None] = delta.logprobs or [None] * len(delta.token_ids)
        last = len(delta.token_ids) - 1
        for position, (token_id, score) in enumerate(zip(delta.token_ids, scores, strict=True)):
            if self.over:
                break
            self.completion_tokens += 1
            ends = delta.finish == "stop" and position == last and token_id in self._format.stop_ids
            if not ends:
                events += self._feed_token(token_id, score)
            elif score is not None and self._format.every_token is not None:
                self._pending.append((self._scored(score), ""))
        if delta.finish is not None and not self.over:
            events += self.close(delta.finish)
        return _joined(events)

    def close(self, finish: Literal["stop", "length"]) -> list[ParsedEvent]:
        """What was held back, and the end."""
        if self.over:
            return []
        self._cut = finish == "length"
        events: list[ParsedEvent] = []
        for span in self._think.close():
            events += self._after_think(span)
        if not self.over:
            events += self._parse(self._halts.close())
        return _joined(events if self.over else events + self._end())

    def _echo(self, scores: Sequence[TokenLogprob]) -> list[ParsedEvent]:
        """The text of a piece of the prompt. Its first token has no logprob; it counts as certain here."""
        if self._echoed_id is not None:
            scores, self._echoed_id = (TokenLogprob(self._echoed_id, 0.0), *scores), None
        tokens = [self._scored(score) for score in scores]
        text = "".join(self._prompt_text.feed(score.token_id) for score in scores)
        return [ParsedEvent(Text(text), tuple(tokens))] if tokens else []

    def _feed_token(self, token_id: int, score: TokenLogprob | None) -> list[ParsedEvent]:
        text = self._text.feed(token_id)
        if score is not None and not self._scored_vocabulary.drops(token_id):
            self._pending.append((self._scored(score), text))
        was_inside = self._think.inside
        events: list[ParsedEvent] = []
        for span in self._think.feed(text, token_id in self._format.call_ids):
            if self.over:
                break
            events += self._after_think(span)
        self.reasoning_tokens += was_inside or self._think.inside
        if not (was_inside or self._think.inside or self._in_call or self.over):
            events += self._count_text(events)
        if was_inside or self._think.silent:
            self._pending.clear()  # only the answer's tokens have logprobs in a reply
        return events

    def _count_text(self, events: Sequence[ParsedEvent]) -> list[ParsedEvent]:
        """The end, behind a token that brings text out beyond the limit: what is held back may become a call."""
        self._num_text_tokens += 1
        limit = self._format.max_text_tokens
        is_text = bool(events) and isinstance(events[-1].event, Text)
        if limit is None or self._num_text_tokens < limit or not is_text:
            return []
        self._cut = True
        return self._end()

    def _after_think(self, span: Thought | Text) -> list[ParsedEvent]:
        if isinstance(span, Thought):
            self._thoughts.append(span.text)
            return [ParsedEvent(span)]
        events = self._parse(self._halts.feed(span.text))
        if self._halts.matched is not None and not self.over:
            events += self._end()
        return events

    def _parse(self, text: str) -> list[ParsedEvent]:
        if self._parser is None:
            return self._write(text)
        events: list[ParsedEvent] = []
        for event in self._parser.feed(text) if text else ():
            events += self._feed_event(event)
            if self.over:
                break
        return events

    def _feed_event(self, event: Text | CallOpened | CallArguments | CallClosed) -> list[ParsedEvent]:
        if isinstance(event, Text):
            return self._write(event.text)
        events: list[ParsedEvent] = []
        if isinstance(event, CallOpened):
            events += self._release(self._stops.close())
            self._call = [event.name]
            self._in_call = True
            self.calls += 1
        elif isinstance(event, CallArguments):
            self._call.append(event.text)
        else:
            return self._close_call(event)
        return [*events, ParsedEvent(event, self._take_pending())]

    def _close_call(self, event: CallClosed) -> list[ParsedEvent]:
        self._in_call = False
        looping = self._repeats.feed(self._call[0], "".join(self._call[1:]))
        if looping:
            event = replace(event, flags=(*event.flags, "repeated"))
        events = [ParsedEvent(event, self._take_pending())]
        if looping or not self._format.parallel:
            events += self._finished()
        return events

    def _write(self, text: str) -> list[ParsedEvent]:
        events = self._release(self._stops.feed(text))
        if self._stops.matched is not None:
            events += self._finished()
        return events

    def _release(self, text: str) -> list[ParsedEvent]:
        self._blank = self._blank and not text.strip()
        return [ParsedEvent(Text(text), self._tokens_of(text))] if text else []

    def _end(self) -> list[ParsedEvent]:
        events: list[ParsedEvent] = []
        for event in self._parser.close() if self._parser else ():
            events += self._feed_event(event)
            if self.over:
                return events
        events += self._release(self._stops.close())
        return [*events, *self._finished(None if self._cut or self.calls else self._uncalled())]

    def _finished(self, uncalled: MissedToolCall | None = None) -> list[ParsedEvent]:
        self.over = True
        reason: FinishReason = "length" if self._cut else "tool_calls" if self.calls else "stop"
        # Tokens that wrote no text: the stop id, control tokens, half a character.
        silent = self._format.every_token is not None and self._stops.matched is None
        tokens = self._take_pending() if silent else ()
        return [ParsedEvent(Ended(reason, uncalled, self._stops.matched), tokens)]

    def _uncalled(self) -> MissedToolCall | None:
        named = named_in("".join(self._thoughts), self._format.free_to_call)
        planned = bool(named) and not self._format.answers_result
        noted = self._format.free_to_call and (self._blank or planned)
        return MissedToolCall(named, self._blank) if noted else None

    def _scored(self, score: TokenLogprob) -> ScoredToken:
        piece = self._scored_vocabulary.piece
        top = tuple((piece(token_id), logprob) for token_id, logprob in score.top)
        return ScoredToken(piece(score.token_id), score.logprob, top)

    def _take_pending(self) -> tuple[ScoredToken, ...]:
        tokens = tuple(token for token, _ in self._pending)
        self._pending.clear()
        return tokens

    def _tokens_of(self, text: str) -> tuple[ScoredToken, ...]:
        """The tokens that wrote this text. Markup before it is dropped; a token may write more than it."""
        written = "".join(part for _, part in self._pending)
        start = max(0, written.find(text))
        end = start + len(text)
        tokens: list[ScoredToken] = []
        at = 0
        while self._pending and at < end:
            token, part = self._pending.popleft()
            at += len(part)
            if token.piece and (at > start or not part):
                tokens.append(token)
        if at > end:  # the rest is still to come, in another event
            self._pending.appendleft((ScoredToken(b"", 0.0), written[end:at]))
        return tuple(tokens)


class RepeatDetector:
    """Detects a reply that repeats itself: the third identical call in a row ends it.

    Two in a row can be meant ("roll the die twice"); weak or quantized models under `required` repeat a call up to the
    token limit.
    """

    def __init__(self) -> None:
        self._last: tuple[str, str] | None = None
        self._count = 0

    def feed(self, name: str, arguments: str) -> bool:
        """Count a complete call; True if the reply should end with it."""
        call = (name, arguments)
        self._count = self._count + 1 if call == self._last else 1
        self._last = call
        return self._count >= MAX_IDENTICAL_CALLS


def _joined(events: Iterable[ParsedEvent]) -> list[ParsedEvent]:
    """Adjacent pieces of the same kind as one, so that a step makes few chunks."""
    out: list[ParsedEvent] = []
    for new in events:
        old = out[-1] if out else None
        joined = _join(old.event, new.event) if old else None
        if old is not None and joined is not None:
            out[-1] = ParsedEvent(joined, old.tokens + new.tokens)
        else:
            out.append(new)
    return out


def _join(old: Event, new: Event) -> Event | None:
    if isinstance(old, Text) and isinstance(new, Text):
        return Text(old.text + new.text)
    if isinstance(old, Thought) and isinstance(new, Thought):
        return Thought(old.text + new.text)
    if isinstance(old, CallArguments) and isinstance(new, CallArguments) and old.index == new.index:
        return CallArguments(old.index, old.text + new.text)
    return None
