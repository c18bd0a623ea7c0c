"""One step as plain data: the tokens to compute, the blocks and slots of their sequences, the sampling settings."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.messages import Sampling, TokenLogprob


@dataclass(slots=True, eq=False)
class TokenHistory:
    """What a sequence keeps between its steps for the penalties: their counts, made and read by the sampler."""

    counts: object = None


@dataclass(frozen=True, slots=True)
class RowSampling:
    """Sampling state of one row.

    Random numbers depend only on `seed` and the id's index in the reply, never on other rows: the id at index i uses
    (seed, i).
    """

    params: Sampling
    seed: int
    prompt_ids: Sequence[int]  # read only for a repetition penalty
    written_ids: Sequence[int]  # ids of the reply before this step
    banned_ids: tuple[int, ...] = ()  # stop ids while min_tokens is not reached, or under ignore_eos
    history: TokenHistory | None = None  # of the sequence; None: penalties count all ids again


@dataclass(frozen=True, slots=True)
class PromptTargets:
    """Ids of the prompt to score: `ids[i]` follows the row's token `first + i`."""

    first: int
    ids: Sequence[int]  # never empty
    num_top: int  # alternatives reported for each


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part of a step: tokens at positions `start .. start + len(token_ids)`.

    tokens already in the cache        computed now
    [0 ................... start)      [start ............ start + len(token_ids))
                                                     [ last `num_logits` of them give logits )

    `num_logits` is 0 in the middle of a prompt, 1 for plain decode, 1 + d where the last d token ids are drafts:
    logits row j then is for the id after token `len(token_ids) - num_logits + j`.
    `blocks` covers every position up to the last computed one. `slot` is that of the recurrent state, for models that
    have one; the state covers exactly `start` tokens. `targets` are scored beside what is sampled.
    """

    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    num_logits: int
    sampling: RowSampling | None  # None: num_logits is 0, or the overlapped step's row turned out to be unneeded
    slot: int | None = None
    targets: PromptTargets | None = None
    adapter: int = 0  # handle of an installed adapter; 0 is the base model alone

    @property
    def has_result(self) -> bool:
        """Whether anything is sampled or scored."""
        return self.sampling is not None or self.targets is not None


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step; the total number of token ids is at most the token budget."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """Result of one row. With d drafts, between 1 and d + 1 ids: the accepted drafts, then one sampled id.

    Without a RowSampling there are no ids, with targets one of `prompt_logprobs` for each.

    `fault` is set instead if no id can be sampled (logits not finite, or nothing allowed): that sequence fails alone.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None  # one for each of token_ids, if requested
    fault: str | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
