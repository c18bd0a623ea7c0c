"""Trace of one request: its prompt as tokens, its grammar, and how each token of its reply came about.

It is recorded as deltas, which streams send as they come; the whole trace is what they add up to.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from server.chat_request import PreparedRequest
from server.messages import Delta, Stage, StepTrace
from server.reply.text import Vocabulary


class PromptToken(msgspec.Struct, frozen=True, omit_defaults=True):
    """One token. Bytes of `text` that are no whole character are written as `\\xe2`."""

    id: int
    text: str
    control: bool = False  # a control token: text of a request never becomes one


class LikelyToken(msgspec.Struct, frozen=True):
    """A token that could have been written, with the log of its probability before constraints."""

    id: int
    text: str
    logprob: float


class ReplyToken(msgspec.Struct, frozen=True, omit_defaults=True):
    """One token of the reply; `logprob` and `top` where the request asks for logprobs."""

    id: int
    text: str
    control: bool = False
    forced: bool = False  # the grammar, or the limit of thinking, allowed no other
    accepted: bool = False  # drafted from earlier text, and taken over by the model
    logprob: float | None = None
    top: list[LikelyToken] = []


class TracedStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens that arrived together; `at_s` is seconds since the prompt was ready."""

    at_s: float
    tokens: int
    drafted: int = 0
    accepted: int = 0


class TracedStage(msgspec.Struct, frozen=True):
    """When the engine reached a stage of the request, on the clock of the steps."""

    stage: Stage
    at_s: float


class RequestTrace(msgspec.Struct):
    """What happened to one request. `prompt` begins with `cached_tokens` tokens that were found in the prefix cache."""

    prompt: list[PromptToken]
    cached_tokens: int
    grammar: str | None  # in llguidance's Lark dialect, where `<[1]>` is the token with that id
    tokens: list[ReplyToken]
    steps: list[TracedStep]
    stages: list[TracedStage]


class TraceDelta(msgspec.Struct, omit_defaults=True):
    """What a trace has gained; what is empty, 0 or null is left out.

    The first delta of a reply, before its first token, has the prompt, `cached_tokens` and the grammar.
    """

    prompt: list[PromptToken] = []
    cached_tokens: int = 0
    grammar: str | None = None
    tokens: list[ReplyToken] = []
    steps: list[TracedStep] = []
    stages: list[TracedStage] = []

    @property
    def is_first(self) -> bool:
        """Whether it is the first of its reply."""
        return bool(self.prompt)


def fold_trace(deltas: Iterable[TraceDelta]) -> RequestTrace:
    """The whole trace that the deltas of one reply, in their order, add up to."""
    whole = RequestTrace([], 0, None, [], [], [])
    for delta in deltas:
        whole.prompt += delta.prompt
        whole.cached_tokens += delta.cached_tokens
        whole.grammar = whole.grammar or delta.grammar
        whole.tokens += delta.tokens
        whole.steps += delta.steps
        whole.stages += delta.stages
    return whole


@dataclass(frozen=True, slots=True)
class TracedVocabulary:
    """Texts of tokens for traces: control tokens are shown as any other."""

    vocabulary: Vocabulary
    control_ids: frozenset[int]

    def text(self, token_id: int) -> str:
        """The token's text."""
        return self.vocabulary.piece(token_id).decode("utf-8", errors="backslashreplace")

    def tokens(self, token_ids: Iterable[int]) -> list[PromptToken]:
        """The tokens of a prompt."""
        return [PromptToken(token_id, self.text(token_id), token_id in self.control_ids) for token_id in token_ids]


class TraceRecorder:
    """Records the trace of a request with one choice. It holds what has not been taken yet."""

    def __init__(self, prepared: PreparedRequest, vocabulary: TracedVocabulary) -> None:
        (generate,) = prepared.generates
        self._vocabulary = vocabulary
        self._began_s = time.monotonic()
        constraint = generate.constraint
        grammar = None if constraint is None else constraint.source
        self._delta = TraceDelta(vocabulary.tokens(generate.token_ids), grammar=grammar)

    def open(self, cached_tokens: int) -> None:
        """Record that the engine has admitted the request, of whose prompt it holds the first `cached_tokens`."""
        self._delta.cached_tokens = cached_tokens

    def feed(self, delta: Delta, num_tokens: int) -> None:
        """Record what arrived, of which the reply has the first `num_tokens` tokens."""
        self._delta.stages += (TracedStage(one.stage, one.time_s - self._began_s) for one in delta.stage_times)
        if not num_tokens:
            return
        step = delta.trace or StepTrace()
        self._delta.steps.append(TracedStep(time.monotonic() - self._began_s, num_tokens, step.drafted, step.accepted))
        text, control_ids = self._vocabulary.text, self._vocabulary.control_ids
        for place, token_id in enumerate(delta.token_ids[:num_tokens]):
            score = delta.logprobs[place] if delta.logprobs else None
            self._delta.tokens.append(
                ReplyToken(
                    token_id,
                    text(token_id),
                    token_id in control_ids,
                    forced=place in step.forced,
                    accepted=place < step.accepted,
                    logprob=None if score is None else score.logprob,
                    top=[] if score is None else [LikelyToken(one, text(one), logprob) for one, logprob in score.top],
                )
            )

    def take(self) -> TraceDelta | None:
        """What was recorded since the last call; None if nothing was."""
        delta, self._delta = self._delta, TraceDelta()
        return None if delta == TraceDelta() else delta
