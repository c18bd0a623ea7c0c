"""Structs of Completions replies; a chunk of a stream has the same form as the whole reply."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from server.api.chat.wire import Notes, Usage


class CompletionLogprobs(msgspec.Struct):
    """Tokens of a text. `text_offset` is where in the choice's text each begins, in characters.

    An echoed prompt's first token follows nothing: its logprob and alternatives are null.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """One choice, or what it gains in a chunk. Indices count the choices of the first prompt, then of the next."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(msgspec.Struct):
    """A reply, or a chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | UnsetType | None = UNSET
    toolwire: Notes | UnsetType = UNSET
