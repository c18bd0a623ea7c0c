"""Events become chunks of text, and chunks become the whole reply: one path for both."""

import codecs
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from server.api.chat.to_reply import new_id, show, usage_of
from server.api.chat.wire import Notes
from server.api.completions.wire import Completion, CompletionChoice, CompletionLogprobs
from server.events import Ended, Text
from server.notes import Note
from server.reply.decoder import ScoredToken
from server.service import ChoiceEvent, Generation, TokenUsage


@dataclass(frozen=True, slots=True)
class CompletionStyle:
    """How a reply is to be written, as the request says. `echoed` are the prompts' texts, where they come first.

    With `scores_prompt` the reply's text itself begins with the prompt.
    """

    model: str
    include_usage: bool = False  # streams only
    logprobs: bool = False
    scores_prompt: bool = False
    echoed: tuple[str, ...] = ()


@dataclass(slots=True)
class CompletionWriter:
    """Events of one reply -> chunks. `num_choices` are those of all prompts; `notes` the request's."""

    style: CompletionStyle
    num_choices: int
    notes: Sequence[Note] = ()
    _id: str = field(default_factory=lambda: f"cmpl-{new_id()}", init=False)
    _created: int = field(default_factory=lambda: int(time.time()), init=False)
    _texts: dict[int, "ChoiceText"] = field(default_factory=dict, init=False)  # by choice

    def open(self) -> list[Completion]:
        """The echoed prompts, one chunk a choice."""
        echoed = self.style.echoed
        if not echoed:
            return []
        per_prompt = self.num_choices // len(echoed)
        return [self._chunk(CompletionChoice(i, echoed[i // per_prompt])) for i in range(self.num_choices)]

    def feed(self, received: ChoiceEvent) -> list[Completion]:
        """The chunks of one event. Without tools and thoughts a reply is text and an end."""
        index, event = received.choice, received.parsed.event
        match event:
            case Text(text):
                logprobs = self._logprobs(index, received.parsed.tokens) if self.style.logprobs else None
                return [self._chunk(CompletionChoice(index, text, logprobs))]
            case Ended(finish):
                logprobs = self._logprobs(index, received.parsed.tokens) if self.style.logprobs else None
                return [self._chunk(CompletionChoice(index, "", logprobs, "length" if finish == "length" else "stop"))]
            case _:
                raise AssertionError(f"a completion has no {type(event).__name__}")

    def close(self, usage: TokenUsage) -> list[Completion]:
        """The usage chunk, where it was asked for."""
        if not self.style.include_usage:
            return []
        chunk = Completion(self._id, self._created, self.style.model, [], usage=usage_of(usage))
        return [chunk]

    def _chunk(self, choice: CompletionChoice) -> Completion:
        chunk = Completion(self._id, self._created, self.style.model, [choice])
        if self.style.include_usage:
            chunk.usage = None
        if choice.finish_reason is not None and self.notes:
            chunk.toolwire = Notes(notes=list(self.notes))
        return chunk

    def _logprobs(self, index: int, tokens: Iterable[ScoredToken]) -> CompletionLogprobs:
        logprobs = CompletionLogprobs([], [], [], [])
        written = self._texts.setdefault(index, ChoiceText())
        for token in tokens:
            is_given = self.style.scores_prompt and written.num_tokens == 0
            logprobs.tokens.append(show(token.piece))
            logprobs.token_logprobs.append(None if is_given else token.logprob)
            logprobs.top_logprobs.append(None if is_given else _alternatives(token))
            logprobs.text_offset.append(written.feed(token.piece))
        return logprobs


@dataclass(slots=True)
class ChoiceText:
    """Tokens of one choice so far, counted."""

    num_tokens: int = 0
    num_characters: int = 0
    _utf8: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def feed(self, piece: bytes) -> int:
        """Where the token that writes these bytes begins: behind the characters that are complete before it."""
        begin = self.num_characters
        self.num_tokens += 1
        self.num_characters += len(self._utf8.decode(piece))
        return begin


def completion_chunks(generation: Generation, style: CompletionStyle) -> AsyncGenerator[list[Completion], None]:
    """The chunks of the reply, a list for what is sent together. Raises the ServeError that ends the reply."""
    writer = CompletionWriter(style, generation.n, generation.prepared.notes)
    return generation.written(writer.open(), writer.feed, writer.close)


def fold_completion(chunks: Iterable[Completion], usage: TokenUsage) -> Completion:
    """The whole reply that the chunks of one stream, all of them, add up to."""
    texts: dict[int, list[str]] = {}
    choices: dict[int, CompletionChoice] = {}
    whole: Completion | None = None
    for chunk in chunks:
        whole = whole or Completion(chunk.id, chunk.created, chunk.model, [])
        whole.toolwire = whole.toolwire if chunk.toolwire is UNSET else chunk.toolwire
        for new in chunk.choices:
            texts.setdefault(new.index, []).append(new.text)
            choice = choices.setdefault(new.index, CompletionChoice(new.index, ""))
            choice.finish_reason = new.finish_reason or choice.finish_reason
            choice.logprobs = _joined(choice.logprobs, new.logprobs)
    assert whole is not None, "every choice ends"
    for index in sorted(choices):
        choices[index].text = "".join(texts[index])
        whole.choices.append(choices[index])
    whole.usage = usage_of(usage)
    return whole


def _joined(old: CompletionLogprobs | None, new: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if old is None or new is None:
        return old or new
    old.tokens += new.tokens
    old.token_logprobs += new.token_logprobs
    old.top_logprobs += new.top_logprobs
    old.text_offset += new.text_offset
    return old


def _alternatives(token: ScoredToken) -> dict[str, float]:
    """The likeliest tokens and the token itself. Of several that are written alike the likeliest counts."""
    shown: dict[str, float] = {}
    for piece, logprob in (*token.top, (token.piece, token.logprob)):
        shown.setdefault(show(piece), logprob)
    return shown
