"""Continuous batching: choose the tokens of each step within one token budget.

Decoding sequences come first, so that running replies do not stall; then prompts, in order of arrival, in chunks.
When blocks run out, the newest sequence is preempted and recomputed later. A sequence never preempts an older one, so
the oldest always progresses and every sequence finishes.
"""

from bisect import insort
from collections.abc import Callable

from msgspec.structs import replace

from server.engine.adapters.table import AdapterTable
from server.engine.blocks import Blocks
from server.engine.budget import MAX_STARTED, Limits, PrefillBudget, StepBudget, find_refusal, limit_mask_time
from server.engine.cache import Cache, Copy
from server.engine.drafter import Drafter
from server.engine.ports import Matcher
from server.engine.queue import Queue
from server.engine.reply import OutputState
from server.engine.sequence import Sequence
from server.engine.slots import Slots
from server.engine.step import ScheduledRow, Step, StepCounts, make_step
from server.messages import Delta, Failed, FailureKind, Generate
from server.model.batch import SampledTokens

MAX_LONE_OOMS = 4  # consecutive out-of-memory steps of a single token before the only sequence fails
MAX_SKIPPED_PROMPTS = 8  # long prompts that shorter ones may overtake in one step


class Scheduler:
    """Owns every sequence from `add` to its end. Not thread-safe."""

    def __init__(
        self,
        limits: Limits,
        blocks: Blocks,
        slots: Slots | None,
        clock: Callable[[], float],
        adapters: AdapterTable | None = None,
    ) -> None:
        self.limits = limits
        self.adapters = adapters or AdapterTable()
        self.cache = Cache(blocks, slots, copying=limits.copies_blocks)
        self.blocks = blocks
        self.counts = StepCounts()
        self.running: list[Sequence] = []  # in order of arrival
        self.queue = Queue(limits.max_queue, clock)
        self._clock = clock
        self._alive: dict[str, Sequence] = {}
        self._mail: list[Delta | Failed] = []
        self._num_arrived = 0
        most = limits.max_running if slots is None else slots.num_running
        self.max_running = min(limits.max_running, limits.max_batch_tokens, most)  # each can get a token a step
        self._budget = StepBudget(limits.max_batch_tokens)
        self._began_s = 0.0

    # -- arrivals and departures -----------------------------------------------------------------------------------

    def add(self, request: Generate) -> Sequence | None:
        """A sequence that waits for `begin`; None if it was refused, then a Failed is collected.

        Stop ids that the model cannot write, because its tokenizer has more ids than its head, are dropped.
        """
        stop_ids = tuple(token_id for token_id in request.stop_ids if 0 <= token_id < self.limits.vocab_size)
        request = replace(request, stop_ids=stop_ids)
        failed = find_refusal(request, self.limits)
        if failed is None and request.id in self._alive:
            failed = Failed(request.id, "request_failed", f"a request with the id {request.id} is running already")
        adapter = self.adapters.find(request.adapter) if request.adapter else None
        if failed is None and request.adapter and adapter is None:
            failed = Failed(request.id, "unknown_model", f"the adapter {request.adapter} is not loaded")
        places = self.limits.max_queue + max(0, self.max_running - len(self.running))
        if failed is None and len(self.queue) >= places:
            text = f"{len(self.queue)} requests are waiting already"
            failed = Failed(request.id, "queue_full", text, self.queue.retry_after_s())
        if failed is not None:
            self._mail.append(failed)
            return None
        reply = OutputState(request, fast_forward=self.limits.fast_forward)
        sequence = Sequence(request, self._num_arrived, self._clock, reply, adapter)
        if adapter is not None:
            self.adapters.hold(adapter)
        self._num_arrived += 1
        self._alive[request.id] = sequence
        self.queue.join(sequence)
        return sequence

    def begin(self, sequence: Sequence, matcher: Matcher | None = None, closer: Matcher | None = None) -> None:
        """Let a sequence run whose constraint is compiled."""
        if sequence.state != "compiling":
            return  # aborted meanwhile
        sequence.state = "waiting"
        sequence.reply.begin(matcher, closer)
        self._append_forced(sequence)
        if sequence.reply.fault is not None:
            kind: FailureKind = "request_failed" if sequence.request.reply_ids else "bad_constraint"
            self.fail(sequence, kind, sequence.reply.fault)
        elif self.limits.draft_tokens and self.cache.slots is None:
            # A recurrent state cannot be rolled back behind a rejected draft: no drafting for hybrid models.
            sequence.drafter = Drafter(self.limits.draft_tokens)

    def abort(self, id: str) -> None:
        """End this sequence without a message; unknown ids are ignored."""
        sequence = self._alive.get(id)
        if sequence is not None:
            self._end(sequence)

    def fail(self, sequence: Sequence, kind: FailureKind, text: str, retry_after_s: float | None = None) -> None:
        """End this sequence with a Failed."""
        if sequence.state != "ended":
            self._mail.append(Failed(sequence.id, kind, text, retry_after_s))
            self._end(sequence)

    def collect(self) -> list[Delta | Failed]:
        """Messages since the last call."""
        mail, self._mail = self._mail, []
        return mail

    @property
    def has_work(self) -> bool:
        """Whether a step may come out of `next_step`, now or when memory allows."""
        return bool(self.running) or any(sequence.state == "waiting" for sequence in self.queue.sequences)

    # -- one step --------------------------------------------------------------------------------------------------

    def resize(self, num_blocks: int, *, preempt: bool) -> tuple[Copy, ...]:
        """Allocate only blocks with ids below this; returns the copies to do before memory behind others is released.

        Blocks that are held beyond them take the places of free and cached ones. Where these are too few, sequences
        keep what they hold, or with `preempt` the newest are preempted until the others' blocks fit.
        """
        blocks = self.blocks
        if num_blocks != blocks.limit:
            blocks.set_limit(num_blocks)
        while preempt and blocks.num_beyond_limit > blocks.num_available:
            self._preempt(self.running[-1])
        if not 0 < blocks.num_beyond_limit <= blocks.num_available:
            return ()
        due = self.cache.take_copies()  # their sources may be among the targets
        return (*due, self.cache.move_below_limit(self.running))

    def next_step(self, *, admit: bool) -> Step | None:
        """The next step; None if there is nothing to compute. `admit` False starts no new sequence."""
        num_preempted = self.counts.preemptions
        scheduled: list[ScheduledRow] = []
        num_left = self._schedule_decodes(scheduled, self._budget.num_tokens)
        streaming = bool(scheduled)
        prefill = self._budget.prefill(num_left, streaming=streaming)
        for sequence in self.running:
            if sequence.in_prefill:
                prefill.allocate(sequence)
        if self.counts.preemptions == num_preempted and len(self.queue):
            most = min(self.max_running, len(self.running) + MAX_STARTED) if streaming else self.max_running
            self._admit(prefill, admit, most)
        prefill.allocate_rest()
        scheduled = [entry for entry in (*scheduled, *prefill.scheduled()) if entry.sequence.state == "running"]
        scheduled = limit_mask_time(scheduled)
        if not scheduled:
            self._fail_timed_out()
            return None
        self.queue.record_progress()
        self._began_s = self._clock()
        return make_step(scheduled, self.cache.take_copies())

    def commit(self, step: Step, sampled: list[SampledTokens]) -> None:
        """Apply a computed step: advance sequences, end finished ones, and queue their Deltas for `collect`."""
        self.counts.steps += 1
        self._budget.recover(step, self._clock() - self._began_s)
        for entry, result in zip(step.scheduled, step.results_by_row(sampled), strict=True):
            sequence = entry.sequence
            if sequence.state != "running":
                continue  # it has ended since this was launched
            self.counts.prompt_tokens += min(entry.count, max(0, len(sequence.prompt_ids) - sequence.num_computed))
            sequence.last_step = self.counts.steps
            sequence.num_computed += entry.count
            if result is not None:
                self._append_sampled(entry, result)
            else:
                self.cache.publish(sequence)
            if sequence.state == "running" and not sequence.num_pending and not sequence.request.sampling.max_tokens:
                self._end_without_reply(sequence)

    def undo(self, step: Step) -> None:
        """Undo a step that ran out of memory: halve the budget, then preempt; a sequence that is alone fails."""
        if self.cache.slots is not None:
            # Some layers may have updated their recurrent state already: these sequences restart.
            for entry in step.scheduled:
                self._preempt(entry.sequence)
        self._budget.shrink(step.num_tokens)
        if step.num_tokens == 1 and len(self.running) > 1:
            self._preempt(self.running[-1])
        elif self._budget.num_single_token_ooms >= MAX_LONE_OOMS and self.running in ([], [step.scheduled[0].sequence]):
            self._budget.num_single_token_ooms = 0  # the next sequence starts its own count
            text = "the device ran out of memory although nothing else was running"
            self.fail(step.scheduled[0].sequence, "no_memory", text, self.queue.retry_after_s())

    def check(self) -> None:
        """Check the invariants of blocks and slots; raises AssertionError."""
        self.blocks.check([sequence.blocks for sequence in self._alive.values()])
        if self.cache.slots is not None:
            self.cache.slots.check([one.slot for one in self._alive.values() if one.slot is not None])
        assert len(self._alive) == len(self.running) + len(self.queue)

    # -- planning --------------------------------------------------------------------------------------------------

    def _schedule_decodes(self, scheduled: list[ScheduledRow], budget: int) -> int:
        streaming = [sequence for sequence in self.running if not sequence.in_prefill]
        if len(streaming) > budget:
            streaming.sort(key=lambda sequence: sequence.last_step)
        num_spare = self.limits.num_spare_lines(len(self.running) + len(self.queue))
        for num_left, sequence in zip(range(len(streaming) - 1, -1, -1), streaming, strict=True):
            if sequence.state != "running" or budget <= 0:
                continue
            room = max(1, budget - num_left)
            count = min(sequence.num_pending, room)
            drafts = sequence.draft(min(room - 1, num_spare))
            end = sequence.num_computed + count
            if drafts and not self.cache.grow(sequence, end + len(drafts)):
                drafts = ()
            if self._grow(sequence, end):
                scheduled.append(ScheduledRow(sequence, count, drafts))
                budget, num_spare = budget - count - len(drafts), num_spare - len(drafts)
        return budget

    def _admit(self, prefill: PrefillBudget, admit: bool, max_running: int) -> None:
        reserve = sum(self._growth(sequence) for sequence in self.running)
        num_skipped = 0
        for sequence in list(self.queue.sequences):
            if prefill.is_spent or num_skipped == MAX_SKIPPED_PROMPTS or len(self.running) >= max_running:
                return
            if sequence.state != "waiting" or (not admit and not sequence.admitted):
                continue
            if sequence.reply.is_over:  # the whole reply was forced: there is nothing to compute
                self._report_admission(sequence, 0)
                self._end(sequence)
                continue
            if self.cache.waits_for_prefix(sequence):
                continue
            allocation = self.cache.plan(sequence)
            if len(allocation.shared) + allocation.num_new > self.blocks.limit:
                continue  # too large for the memory there is: let others overtake
            if not prefill.has_room(len(sequence.ids) - allocation.num_cached, allocation.num_cached):
                num_skipped += 1
                continue
            growth = self._growth(sequence) if self.running else 0
            if allocation.num_blocks + reserve + growth > self.blocks.num_available:
                return
            reserve += growth
            num_cached = self.cache.open(sequence, allocation)
            self._start(sequence)
            self._report_admission(sequence, num_cached)
            prefill.allocate(sequence)

    def _growth(self, sequence: Sequence) -> int:
        """Expected number of further blocks, beyond what it holds or its prompt needs."""
        size = self.blocks.block_size
        expected = len(sequence.ids) + self.queue.expected_remaining(sequence)
        return max(0, -(-expected // size) - max(len(sequence.blocks), -(-len(sequence.ids) // size)))

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks, preempting the newest sequences; False if that was the sequence itself."""
        while not self.cache.grow(sequence, num_tokens):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _fail_timed_out(self) -> None:
        for sequence in () if self.running else self.queue.find_timed_out(self.limits.memory_wait_timeout_s):
            text = f"the device's memory has been short for {self.limits.memory_wait_timeout_s:.0f} s"
            self.fail(sequence, "no_memory", text, self.queue.retry_after_s())

    def _start(self, sequence: Sequence) -> None:
        self.queue.leave(sequence)
        sequence.state = "running"
        sequence.last_step = self.counts.steps
        insort(self.running, sequence, key=lambda other: other.arrival)

    def _preempt(self, sequence: Sequence) -> None:
        if sequence.state != "running":
            return
        self.counts.preemptions += 1
        self.cache.close(sequence)
        self.running.remove(sequence)
        sequence.preempt()
        self.queue.join(sequence)

    def _end(self, sequence: Sequence) -> None:
        self.cache.close(sequence)
        (self.running if sequence.state == "running" else self.queue.sequences).remove(sequence)
        sequence.state = "ended"
        del self._alive[sequence.id]
        if sequence.adapter is not None:
            self.adapters.release(sequence.adapter)

    def _report_admission(self, sequence: Sequence, num_cached: int) -> None:
        if not sequence.admitted:
            sequence.admitted = True
            # Whole blocks only: the exact length of a common prefix would let a client guess a text token by token.
            num_shown = num_cached - num_cached % self.blocks.block_size
            self.counts.cached_tokens += min(num_shown, len(sequence.prompt_ids))
            self._mail.append(sequence.delta(num_shown))

    def _append_sampled(self, entry: ScheduledRow, sampled: SampledTokens) -> None:
        sequence, reply = entry.sequence, entry.sequence.reply
        num_written = sequence.append_sampled(sampled)
        num_accepted = min(num_written, max(0, len(sampled.token_ids) - 1))
        sequence.num_computed += num_accepted
        self.counts.output_tokens += num_written
        self._append_forced(sequence)
        if entry.drafts:
            self.counts.drafted_tokens += len(entry.drafts)
            self.counts.accepted_tokens += num_accepted
            sequence.record_draft_result(len(entry.drafts), num_accepted)
        if reply.fault is not None:
            self.cache.invalidate_blocks(sequence)  # content of a failed reply must not be reused
            self.fail(sequence, reply.fault_kind, reply.fault)
            return
        self.cache.publish(sequence)
        self._mail.append(sequence.delta())
        if reply.finish is not None:
            self.queue.record_finish(len(reply.written_ids))
            self._end(sequence)

    def _end_without_reply(self, sequence: Sequence) -> None:
        """End a sequence whose prompt alone was to be computed."""
        sequence.record_stage("prefilled")
        sequence.reply.finish = "length"
        self._mail.append(sequence.delta())
        self._end(sequence)

    def _append_forced(self, sequence: Sequence) -> None:
        num_forced = sequence.append_forced()
        self.counts.output_tokens += num_forced
        self.counts.forced_tokens += num_forced
