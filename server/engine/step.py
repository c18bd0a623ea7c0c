"""A scheduled step: the batch, and the sequences of its rows."""

from collections.abc import Sequence as Ids
from dataclasses import dataclass

from server.engine.cache import Copy
from server.engine.ports import Matcher
from server.engine.sequence import Sequence
from server.model.batch import Batch, Row, SampledTokens


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """One sequence's row: `count` of its pending tokens, then drafts."""

    sequence: Sequence
    count: int
    drafts: Ids[int]

    @property
    def mask_s(self) -> float:
        """Expected seconds of its masks; 0 if it has none."""
        matcher = self.sequence.reply.active_matcher
        if matcher is None or self.count < self.sequence.num_pending:
            return 0.0
        return matcher.mask_s * (1 + len(self.drafts))


@dataclass(frozen=True, slots=True)
class Step:
    """`matchers` and `extra_ids` have one entry for each row that is sampled, as `Grammars.masks` takes them."""

    batch: Batch
    scheduled: tuple[ScheduledRow, ...]
    copies: tuple[Copy, ...]
    matchers: tuple[tuple[Matcher, Ids[int]] | None, ...]
    extra_ids: tuple[int | None, ...]

    @property
    def is_constrained(self) -> bool:
        """Whether any row needs a mask."""
        return any(matcher is not None for matcher in self.matchers)

    def results_by_row(self, sampled: Ids[SampledTokens]) -> list[SampledTokens | None]:
        """The result of each row, None where it has none. Raises ValueError unless there is one for each other row."""
        results = iter(sampled)
        by_row = [next(results, None) if row.has_result else None for row in self.batch.rows]
        num_results = sum(row.has_result for row in self.batch.rows)
        if len(sampled) != num_results:
            raise ValueError(f"the model returned {len(sampled)} results for {num_results} rows")
        return by_row

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(len(row.token_ids) for row in self.batch.rows)


@dataclass(slots=True)
class StepCounts:
    """Counters since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    forced_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0


def make_step(scheduled: list[ScheduledRow], copies: tuple[Copy, ...]) -> Step:
    """Step of these rows, in this order."""
    return bind(scheduled, [entry.sequence.row(entry.count, entry.drafts) for entry in scheduled], copies)


def bind(scheduled: Ids[ScheduledRow], rows: Ids[Row], copies: tuple[Copy, ...] = ()) -> Step:
    """Step of these batch rows, with the current matchers and extra ids of their sequences."""
    matchers, extra_ids = [], []
    for entry, row in zip(scheduled, rows, strict=True):
        if row.sampling is not None:
            reply = entry.sequence.reply
            matcher = reply.active_matcher
            matchers.append(None if matcher is None else (matcher, entry.drafts))
            extra_ids.append(None if matcher is None else reply.extra_id)
    return Step(Batch(tuple(rows)), tuple(scheduled), copies, tuple(matchers), tuple(extra_ids))
