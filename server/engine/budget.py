"""Limits of the scheduler and the token budget of a step."""

import math
from dataclasses import dataclass

from server.engine.sequence import Sequence
from server.engine.step import ScheduledRow, Step
from server.messages import Failed, Generate

# Tokens of one step up to which a CPU step is bound by reading the weights; beyond, each token costs compute time,
# and drafts that may be rejected do not pay.
CHEAP_TOKENS = 16
MASK_S = 0.03  # for the masks of slow grammars in one step
SLOW_MASK_S = 0.001  # masks that take longer count towards it
OOM_COOLDOWN_STEPS = 16
MAX_OOM_COOLDOWN_STEPS = 4096
STREAM_PAUSE_S = 0.2  # how long prompts may delay running replies in one step at most
MIN_STREAM_PAUSE_S = 0.02
STREAM_PAUSE_STEPS = 2  # and not longer than this number of steps without prompts
MIN_PREFILL_TOKENS = 8  # tokens of prompts beside streams at least: smaller chunks are inefficient
UNMEASURED_TOKENS = 64  # tokens of prompts beside streams before the speed is measured
MAX_STARTED = 32  # sequences that start in one step beside streams: a row costs more than its tokens
MIN_MEASURED_TOKENS = 8  # prompt tokens in a step from which its speed is measured
NEWEST_WEIGHT = 0.3
# Of the estimate of what prompts cost: errors of the first one, relative to the first measurement of a token; relative
# changes from one step to the next; and of a measurement.
TOKEN_ERROR, POSITION_ERROR, DRIFT, MEASUREMENT_ERROR = 0.5, 1e-3, 0.05, 0.2
OLDEST_PROMPT_SHARE = 0.75  # of what is left: short prompts progress behind a very long one
MIN_CHUNK_TOKENS = 32  # a younger prompt gets no smaller chunk unless that is all it needs


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the scheduler: tokens and sequences; seconds where the name says so."""

    max_batch_tokens: int
    max_running: int
    max_queue: int
    max_model_len: int  # tokens of prompt and reply together
    cache_tokens: int  # tokens that the whole KV cache holds
    vocab_size: int
    fast_forward: bool = True
    draft_tokens: int = 0
    copies_blocks: bool = False  # whether copying a block is cheaper than computing some of its tokens
    overlap: bool = False  # whether the next step is launched before the ids of this one are read
    memory_wait_timeout_s: float = 30.0  # how long a sequence waits for memory while none runs

    def num_spare_lines(self, num_sequences: int) -> int:
        """Rows of logits left for drafts when each of `num_sequences` needs one; 0 with many sequences.

        Memory is reserved for one row for each of `max_running` sequences, and for one sequence with all its drafts.
        """
        free = max(self.max_running, 1 + self.draft_tokens) - min(self.max_running, num_sequences)
        return max(0, min(free, CHEAP_TOKENS - num_sequences))


def find_refusal(request: Generate, limits: Limits) -> Failed | None:
    """The reason why this request can never be served; None if it can be."""
    num_prompt, num_reply = len(request.token_ids), request.sampling.max_tokens
    largest = min(limits.max_model_len, limits.cache_tokens)
    if num_prompt + num_reply > largest:
        what = "this model takes" if largest == limits.max_model_len else "the KV cache of this server holds"
        text = f"{num_prompt} tokens of prompt and up to {num_reply} of reply, but {what} {largest}"
        return Failed(request.id, "too_long", f"{text}; shorten the messages or lower max_tokens")
    if num_prompt == 0 or num_reply < 0:
        return Failed(
            request.id, "unsupported", "there must be at least one token of prompt, and no fewer than 0 of reply"
        )
    for name, token_ids in (("the prompt", request.token_ids), ("logit_bias", request.sampling.logit_bias)):
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < limits.vocab_size:
            text = f"{name} has token ids outside this model's vocabulary of {limits.vocab_size}"
            return Failed(request.id, "unsupported", text)
    return None


def limit_mask_time(scheduled: list[ScheduledRow]) -> list[ScheduledRow]:
    """Leave rows with slow masks to later steps where they would take more than MASK_S; those that waited come first.

    One of them is always kept, and every other row, so that a slow grammar delays only the replies that it constrains.
    """
    slow = [entry for entry in scheduled if entry.mask_s > SLOW_MASK_S]
    left_s, left_out = MASK_S, set[Sequence]()
    for entry in sorted(slow, key=lambda entry: entry.sequence.last_step):
        is_first = left_s == MASK_S
        if entry.mask_s > left_s and not is_first:
            left_out.add(entry.sequence)
        else:
            left_s -= entry.mask_s
    return [entry for entry in scheduled if entry.sequence not in left_out] if left_out else scheduled


class StepBudget:
    """Token budget of a step: halved when a step runs out of memory, doubled again after a cooldown.

    The cooldown doubles with every failure, so that a sequence that loses its progress by one finishes eventually.
    While replies are streaming, prompts get only as many tokens as compute in a few times what a step without prompts
    takes, measured, and at most `STREAM_PAUSE_S`: a small model pauses for 20 ms, a large one loses no speed.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = max_tokens
        self.num_single_token_ooms = 0  # consecutive steps of a single token that ran out of memory
        self._cooldown_steps = OOM_COOLDOWN_STEPS
        self._steps_left = 0
        self._prefill_cost = PrefillCost()
        self._decode_s = 0.0  # seconds per step without prompts; 0 until measured

    def prefill(self, num_left: int, *, streaming: bool) -> "PrefillBudget":
        """What prompts may have in this step, at most `num_left` tokens."""
        if not streaming:
            return PrefillBudget(num_left)
        if not self._prefill_cost.is_known:
            return PrefillBudget(min(num_left, UNMEASURED_TOKENS))
        pause_s = max(MIN_STREAM_PAUSE_S, STREAM_PAUSE_STEPS * self._decode_s) if self._decode_s else STREAM_PAUSE_S
        return PrefillBudget(num_left, self._prefill_cost, min(STREAM_PAUSE_S, pause_s))

    def shrink(self, num_tokens: int) -> None:
        """Record that a step of this many tokens ran out of memory."""
        self.num_single_token_ooms += num_tokens == 1
        self.num_tokens = max(1, num_tokens // 2)
        self._steps_left = self._cooldown_steps
        self._cooldown_steps = min(2 * self._cooldown_steps, MAX_OOM_COOLDOWN_STEPS)

    def recover(self, step: Step, duration_s: float) -> None:
        """Record a computed step, before its sequences advance."""
        self.num_single_token_ooms = 0
        prompts = [entry for entry in step.scheduled if entry.sequence.in_prefill]
        num_tokens = sum(entry.count for entry in prompts)
        if num_tokens == 0:
            self._decode_s += NEWEST_WEIGHT * (duration_s - self._decode_s) if self._decode_s else duration_s
        elif num_tokens >= MIN_MEASURED_TOKENS:
            if len(prompts) < len(step.scheduled):
                duration_s -= min(self._decode_s, duration_s / 2)
            positions = sum(entry.count * (entry.sequence.num_computed + entry.count / 2) for entry in prompts)
            self._prefill_cost.record(num_tokens, positions, max(duration_s, 1e-6))
        if self._steps_left > 0:
            self._steps_left -= 1
        elif self.num_tokens < self.max_tokens:
            self.num_tokens = min(2 * self.num_tokens, self.max_tokens)
            self._steps_left = self._cooldown_steps if self.num_tokens < self.max_tokens else MAX_OOM_COOLDOWN_STEPS
        else:
            self._cooldown_steps = OOM_COOLDOWN_STEPS


class PrefillCost:
    """Seconds that chunks of prompts take, learned from steps; nothing is known before the first `record`.

        seconds of a chunk = tokens * (token_s + position_s * position of its middle)

    A Kalman filter estimates both, so that one which a run of steps does not determine (attention to what stands
    before, while all prompts are short) keeps its value.
    """

    def __init__(self) -> None:
        self._token_s = 0.0
        self._position_s = 0.0
        self._variances = (0.0, 0.0, 0.0)  # of token_s, of both, of position_s

    @property
    def is_known(self) -> bool:
        """Whether a step was recorded."""
        return self._token_s > 0

    def record(self, num_tokens: int, sum_of_positions: float, duration_s: float) -> None:
        """Record a step of this many prompt tokens; `sum_of_positions` is the sum of their positions."""
        if not self.is_known:
            self._token_s = duration_s / num_tokens
            self._variances = ((TOKEN_ERROR * self._token_s) ** 2, 0.0, (POSITION_ERROR * self._token_s) ** 2)
        tt, tp, pp = self._variances
        error_s = duration_s - (num_tokens * self._token_s + sum_of_positions * self._position_s)
        token_share, position_share = num_tokens * tt + sum_of_positions * tp, num_tokens * tp + sum_of_positions * pp
        total = num_tokens * token_share + sum_of_positions * position_share + (MEASUREMENT_ERROR * duration_s) ** 2
        least_s = 0.1 * self._token_s
        self._token_s = max(least_s, self._token_s + error_s * token_share / total)
        self._position_s = max(0.0, self._position_s + error_s * position_share / total)
        drift, position_drift = DRIFT * self._token_s, DRIFT * max(self._position_s, POSITION_ERROR * self._token_s)
        self._variances = (
            tt - token_share * token_share / total + drift * drift,
            tp - token_share * position_share / total,
            pp - position_share * position_share / total + position_drift * position_drift,
        )

    def seconds(self, num_tokens: int, position: int) -> float:
        """What a chunk of this many tokens takes that begins at this position."""
        return num_tokens * (self._token_s + self._position_s * (position + num_tokens / 2))

    def num_tokens_within(self, duration_s: float, position: int) -> int:
        """Size of the chunk from this position on that takes this long."""
        first_s = self._token_s + self._position_s * position
        return int(2 * duration_s / (first_s + math.sqrt(first_s * first_s + 2 * self._position_s * duration_s)))


class PrefillBudget:
    """Split a step's budget over chunked prefills: tokens, and, beside running replies, the time they take."""

    def __init__(self, num_tokens: int, cost: PrefillCost | None = None, duration_s: float = 0.0) -> None:
        """Without a `cost` there is no limit of time."""
        self._num_left = num_tokens
        self._cost = cost
        self._left_s = duration_s
        self._counts: dict[Sequence, int] = {}

    @property
    def is_spent(self) -> bool:
        """Whether no other prompt can get any."""
        return self._num_left <= 0 or (self._cost is not None and self._left_s <= 0)

    def has_room(self, num_pending: int, position: int) -> bool:
        """Whether a prompt with this many pending tokens from this position on should get some."""
        if self.is_spent:
            return False
        most = self._num_within(1.0, position)
        return (
            not self._counts
            or num_pending <= most
            or self._num_within(OLDEST_PROMPT_SHARE, position) >= MIN_CHUNK_TOKENS
        )

    def allocate(self, sequence: Sequence) -> None:
        """Allocate a share of what is left to this prompt, younger than those before; none unless `has_room`."""
        if self.has_room(sequence.num_pending, sequence.num_computed):
            share = self._num_within(OLDEST_PROMPT_SHARE, sequence.num_computed)
            self._add(sequence, max(share, MIN_CHUNK_TOKENS if self._counts else MIN_PREFILL_TOKENS))

    def allocate_rest(self) -> None:
        """Allocate what is left to the prompts that have some already, the oldest first."""
        for sequence, count in self._counts.items():
            self._add(sequence, self._num_within(1.0, sequence.num_computed + count))

    def scheduled(self) -> list[ScheduledRow]:
        """The chunks."""
        return [ScheduledRow(sequence, count, ()) for sequence, count in self._counts.items() if count]

    def _num_within(self, share: float, position: int) -> int:
        """Tokens from this position on that take this share of what is left."""
        num_tokens = int(share * self._num_left)
        return (
            num_tokens
            if self._cost is None
            else min(num_tokens, self._cost.num_tokens_within(share * self._left_s, position))
        )

    def _add(self, sequence: Sequence, most: int) -> None:
        has = self._counts.get(sequence, 0)
        place = sequence.num_computed + has
        # The chunk ends where the recurrent state is to be kept.
        ends = [position for position in sequence.snapshots_at if sequence.num_computed < position]
        count = max(0, min(most, self._num_left, min(ends, default=len(sequence.ids)) - place))
        self._counts[sequence] = has + count
        self._num_left -= count
        if self._cost is not None:
            self._left_s = max(0.0, self._left_s - self._cost.seconds(count, place))
