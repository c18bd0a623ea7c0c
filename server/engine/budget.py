"""Limits of the scheduler and the token budget of a step."""

from dataclasses import dataclass

from server.engine.sequence import Sequence
from server.engine.step import ScheduledRow
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
STREAM_PAUSE_STEPS = 4  # and not longer than this number of steps without prompts
MIN_PREFILL_TOKENS = 64  # tokens of prompts beside streams at least: smaller chunks are inefficient
UNMEASURED_TOKENS = 256  # tokens of prompts beside streams before the speed is measured
MAX_STARTED = 32  # sequences that start in one step beside streams: a row costs more than its tokens
MIN_MEASURED_TOKENS = 32  # prompt tokens in a step from which its speed is measured
NEWEST_WEIGHT = 0.3
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
    if num_prompt == 0 or num_reply < 1:
        return Failed(request.id, "unsupported", "there must be at least one token of prompt and one of reply")
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
        self._token_s: float | None = None  # seconds per prompt token, None until measured
        self._decode_s: float | None = None  # seconds per step without prompts

    def prefill_tokens(self, num_left: int, *, streaming: bool) -> int:
        """Tokens that prompts may have in this step, at most `num_left`."""
        if not streaming:
            return num_left
        if self._token_s is None:
            return min(num_left, UNMEASURED_TOKENS)
        pause_s = STREAM_PAUSE_S
        if self._decode_s is not None:
            pause_s = min(pause_s, max(MIN_STREAM_PAUSE_S, STREAM_PAUSE_STEPS * self._decode_s))
        return min(num_left, max(MIN_PREFILL_TOKENS, int(pause_s / self._token_s)))

    def shrink(self, num_tokens: int) -> None:
        """Record that a step of this many tokens ran out of memory."""
        self.num_single_token_ooms += num_tokens == 1
        self.num_tokens = max(1, num_tokens // 2)
        self._steps_left = self._cooldown_steps
        self._cooldown_steps = min(2 * self._cooldown_steps, MAX_OOM_COOLDOWN_STEPS)

    def recover(self, num_prompt_tokens: int, duration_s: float) -> None:
        """Record a completed step with this many prompt tokens."""
        self.num_single_token_ooms = 0
        if num_prompt_tokens >= MIN_MEASURED_TOKENS:
            self._token_s = _average(self._token_s, max(duration_s, 1e-6) / num_prompt_tokens)
        elif num_prompt_tokens == 0:
            self._decode_s = _average(self._decode_s, duration_s)
        if self._steps_left > 0:
            self._steps_left -= 1
        elif self.num_tokens < self.max_tokens:
            self.num_tokens = min(2 * self.num_tokens, self.max_tokens)
            self._steps_left = self._cooldown_steps if self.num_tokens < self.max_tokens else MAX_OOM_COOLDOWN_STEPS
        else:
            self._cooldown_steps = OOM_COOLDOWN_STEPS


def _average(known: float | None, newest: float) -> float:
    return newest if known is None else known + NEWEST_WEIGHT * (newest - known)


class PrefillBudget:
    """Split a step's token budget over chunked prefills. `num_left` tokens are not allocated yet."""

    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens
        self._counts: dict[Sequence, int] = {}

    def has_room(self, num_pending: int) -> bool:
        """Whether a prompt with this many pending tokens should get some."""
        share = int(OLDEST_PROMPT_SHARE * self.num_left)
        return self.num_left > 0 and (not self._counts or num_pending <= self.num_left or share >= MIN_CHUNK_TOKENS)

    def allocate(self, sequence: Sequence) -> None:
        """Allocate a share of what is left to this prompt, younger than those before; none unless `has_room`."""
        if self.has_room(sequence.num_pending):
            share = max(MIN_CHUNK_TOKENS, int(OLDEST_PROMPT_SHARE * self.num_left))
            self._add(sequence, share)

    def allocate_rest(self) -> None:
        """Allocate what is left to the prompts that have some already, the oldest first."""
        for sequence in self._counts:
            self._add(sequence, self.num_left)

    def scheduled(self) -> list[ScheduledRow]:
        """The chunks."""
        return [ScheduledRow(sequence, count, ()) for sequence, count in self._counts.items() if count]

    def _add(self, sequence: Sequence, most: int) -> None:
        has = self._counts.get(sequence, 0)
        place = sequence.num_computed + has
        # The chunk ends where the recurrent state is to be kept.
        ends = [position for position in sequence.snapshots_at if sequence.num_computed < position]
        count = max(0, min(most, self.num_left, min(ends, default=len(sequence.ids)) - place))
        self._counts[sequence] = has + count
        self.num_left -= count
