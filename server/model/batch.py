"""One step as plain data: which tokens of which sequences are computed, where their state lives, what is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.messages import Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class Draw:
    """How ids are drawn for one row.

    Random numbers depend on `seed` and the index of the id within the reply alone, never on batch mates:
    the id at written index i uses (seed, i).
    """

    sampling: Sampling
    seed: int
    prompt_ids: Sequence[int]  # read only where a repetition penalty is on
    written_ids: Sequence[int]  # ids of the reply before this step
    banned_ids: tuple[int, ...] = ()  # stop ids while min_tokens is not reached, or under ignore_eos


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step: tokens at positions `start .. start + len(token_ids)`.

    tokens already in the cache        computed now
    [0 ................... start)      [start ............ start + len(token_ids))
                                                     [ last `num_logits` of them give logits )

    `num_logits` is 0 in the middle of a prompt, 1 for plain decode, 1 + d where the last d token ids are drafts:
    logits row j then is for the id after token `len(token_ids) - num_logits + j`.
    `blocks` covers every position up to the last computed one. `slot` is the recurrent state's place, for models
    that have one; the state in it has seen exactly `start` tokens.
    """

    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    num_logits: int
    draw: Draw | None  # None where nothing is drawn: num_logits is 0, or the row was computed ahead in vain
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step; the total number of token ids is at most the step's budget."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one row gave. With d drafts, between 1 and d + 1 ids: the accepted drafts, then one drawn id.

    `fault` is set instead where the logits were NaN or infinite: that sequence fails, the others go on.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None  # as many as token_ids, where asked for
    fault: str | None = None
