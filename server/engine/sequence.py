"""One sequence: its tokens, how many of them are computed, and its cache blocks.

ids      [ prompt ............ | written ............... ]
computed [0 ............ num_computed) these are in the cache
pending                 [num_computed ........... len(ids)) not computed yet: prompt, sampled id, forced ids
goal     the length at admission: below it the sequence is in prefill, from it on it streams
"""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import Literal

from server.engine.adapters.table import Adapter
from server.engine.blocks import chain_hash, root_hash
from server.engine.drafter import Drafter
from server.engine.reply import OutputState
from server.messages import Delta, Generate, Stage, StageTime, StepTrace, TokenLogprob
from server.model.batch import PromptTargets, Row, RowSampling, SampledTokens, TokenHistory

State = Literal["compiling", "waiting", "running", "ended"]


class Sequence:
    """State of one sequence; the scheduler changes its state, blocks and slot."""

    def __init__(
        self,
        request: Generate,
        arrival: int,
        clock: Callable[[], float],
        reply: OutputState,
        adapter: Adapter | None = None,
    ) -> None:
        self.request = request
        self.adapter = adapter
        self.adapter_handle = 0 if adapter is None else adapter.handle
        self.id = request.id
        self.arrival = arrival
        self.arrived_s = clock()
        self.seed = request.sampling.seed or 0
        self.reply = reply
        self.state: State = "compiling"
        self.prompt_ids = request.token_ids
        self.history = TokenHistory()
        self.ids = [*request.token_ids, *request.reply_ids]
        self.root_hash = root_hash(request.cache_salt, b"" if adapter is None else adapter.digest)
        self.hashes: list[bytes] = []  # of the full blocks of `ids`, as far as they were needed
        self.num_computed = 0
        self.num_scored = len(self.prompt_ids) if request.prompt_logprobs is None else request.num_scored
        self.prefill_end = 0
        self.blocks: list[int] = []
        self.slot: int | None = None
        self.num_published = 0  # blocks in the prefix cache
        self.snapshots_at: set[int] = set()  # numbers of tokens after which the recurrent state is to be kept
        self.restart_points: set[int] = set()  # of them, those for this sequence's own restart
        self.restart_snapshot: bytes | None = None  # hash of the last one kept
        self.drafter: Drafter | None = None
        self.num_preemptions = 0
        self.awaited_hash: bytes | None = None  # hash of a block that another sequence is computing
        self.admitted = False
        self._prefilled = bool(request.reply_ids)
        self.last_step = 0
        self._num_sent = len(request.reply_ids)
        self._num_forced_sent = 0
        self._num_drafted = 0  # since the last Delta, as the next
        self._num_accepted = 0
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] = []
        self._clock = clock
        self._stage_times = [StageTime("arrived", self.arrived_s)]

    @property
    def num_pending(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.ids) - self.num_computed

    @property
    def in_prefill(self) -> bool:
        """Whether tokens known at admission are still to be computed."""
        return self.num_computed < self.prefill_end

    @property
    def num_reusable(self) -> int:
        """Tokens that may come from the cache: those whose logits are needed are computed, the last one always."""
        end = self.num_scored if self.num_scored < len(self.prompt_ids) else len(self.ids)
        return end - 1

    @property
    def num_lasting(self) -> int:
        """Of the reusable tokens, those that a later prompt of the conversation begins with, or its own restart."""
        num_volatile = self.request.num_volatile if len(self.ids) == len(self.prompt_ids) else 0
        return min(self.num_reusable, len(self.ids) - num_volatile)

    def extend_hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """The hashes of at least the first `num_blocks` blocks, which are full; only new ones are computed."""
        hashes, ids = self.hashes, self.ids
        for index in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else self.root_hash
            hashes.append(chain_hash(parent, ids[index * block_size : (index + 1) * block_size]))
        return hashes

    def row(self, count: int, drafts: Ids[int]) -> Row:
        """Batch row of the next `count` pending tokens, and drafts behind the last of them."""
        start = self.num_computed
        end = start + count
        targets = self._targets(start, end)
        if end < len(self.ids) or not self.request.sampling.max_tokens:
            return Row(self.ids[start:end], start, self.blocks, 0, None, self.slot, targets, self.adapter_handle)
        reply = self.reply
        sampling = RowSampling(
            self.request.sampling, self.seed, self.prompt_ids, reply.written_ids, reply.banned_ids, self.history
        )
        ids, num_logits = [*self.ids[start:], *drafts], 1 + len(drafts)
        return Row(ids, start, self.blocks, num_logits, sampling, self.slot, targets, self.adapter_handle)

    def _targets(self, start: int, end: int) -> PromptTargets | None:
        """The prompt ids to score behind the tokens `start .. end`."""
        ids = self.prompt_ids[self.num_scored : end + 1]
        num_top = self.request.prompt_logprobs
        return PromptTargets(self.num_scored - 1 - start, ids, num_top) if ids and num_top is not None else None

    def draft(self, room: int) -> Ids[int]:
        """Draft ids to verify behind the pending one; often none."""
        if self.drafter is None or room <= 0 or self.num_pending > 1:
            return ()
        drafts = self.drafter.draft(self.ids)[:room]
        return self.reply.cut_drafts(drafts) if drafts else ()

    def record_draft_result(self, num_drafts: int, num_accepted: int) -> None:
        """Record how many drafts of the last step were accepted."""
        self._num_drafted += num_drafts
        self._num_accepted += num_accepted
        if self.drafter is not None:
            self.drafter.learn(num_drafts, num_accepted, len(self.ids))

    def append_sampled(self, sampled: SampledTokens) -> int:
        """Append sampled ids up to the end of the reply, and logprobs; returns how many ids were appended."""
        reply = self.reply
        if sampled.fault is not None:
            reply.fault = sampled.fault
            return 0
        self._prompt_logprobs.extend(sampled.prompt_logprobs)
        self.num_scored += len(sampled.prompt_logprobs)
        if not sampled.token_ids:
            return 0
        if not self._prefilled:
            self._prefilled = True
            self.record_stage("prefilled")
        num_written = reply.write(sampled.token_ids)
        self.ids.extend(sampled.token_ids[:num_written])
        if sampled.logprobs is not None:
            self._logprobs.extend(sampled.logprobs[:num_written])
        return num_written

    def append_forced(self) -> int:
        """Append forced ids; returns how many were appended."""
        count = self.reply.write_forced()
        if count:
            self.ids.extend(self.reply.written_ids[-count:])
        return count

    def record_stage(self, stage: Stage) -> None:
        """Record that this stage is reached now; sent with the next Delta."""
        self._stage_times.append(StageTime(stage, self._clock()))

    def preempt(self) -> None:
        """Return to the waiting state; its blocks are freed."""
        self.state = "waiting"
        self.history = TokenHistory()
        self.num_preemptions += 1
        self.record_stage("preempted")

    def begin_prefill(self, num_cached: int) -> None:
        """Start with this many tokens computed already."""
        self.record_stage("resumed" if self.admitted else "admitted")
        self.num_computed = num_cached
        self.prefill_end = len(self.ids)

    def delta(self, num_cached: int | None = None) -> Delta:
        """What was written since the last Delta; the first one has the number of cached prompt tokens."""
        reply = self.reply
        begin, self._num_sent = self._num_sent, len(reply.written_ids)
        forced = reply.num_forced - self._num_forced_sent
        self._num_forced_sent = reply.num_forced
        logprobs: list[TokenLogprob] | None = None
        if self.request.sampling.num_logprobs is not None:
            logprobs, self._logprobs = self._logprobs, []
        if reply.finish is not None:
            self.record_stage("ended")
        stage_times, self._stage_times = tuple(self._stage_times), []
        scores, self._prompt_logprobs = self._prompt_logprobs, []
        trace = self._take_trace(begin) if self.request.trace else None
        written_ids = reply.written_ids[begin:]
        return Delta(self.id, written_ids, logprobs, reply.finish, num_cached, forced, stage_times, scores, trace)

    def _take_trace(self, begin: int) -> StepTrace:
        """How the ids written since the last Delta, which begin at this place of the reply, came about."""
        forced = tuple(place - begin for place in self.reply.forced_places if place >= begin)
        trace = StepTrace(self._num_drafted, self._num_accepted, forced)
        self.reply.forced_places, self._num_drafted, self._num_accepted = [], 0, 0
        return trace
