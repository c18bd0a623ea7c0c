"""Overlap scheduling: launch step k+1 before the ids of step k are read back, so that the device does not wait.

step k      launch   sample .......... read, commit
step k + 1               launch ................... reconcile   sample ...

A row's next id stays on the device, where the forward pass reads it. Everything that depends on its value (the
grammar's mask, penalties, whether the reply is over) matters only when k + 1 is sampled: by then k is committed. A row
whose sequence has ended meanwhile is discarded: it wrote behind the end of its sequence, and the next owner of its
blocks writes later. A row whose next ids were forced meanwhile is computed but not sampled.
"""

from collections.abc import Callable, Iterable

from server.engine.budget import SLOW_MASK_S
from server.engine.cache import BlockCopy, BlockMoves, Copy
from server.engine.ports import Grammars, Model, PendingSamples
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.slots import StateCopy
from server.engine.step import ScheduledRow, Step, bind
from server.model.batch import Row

# Ids that a constrained reply has sampled one by one before its steps are overlapped: forced ids and the id before
# them take one step, and would take two.
MIN_FREE_IDS = 4


class Pipeline:
    """Computes steps on the model. At most one step is in flight: launched, but not sampled yet."""

    def __init__(self, scheduler: Scheduler, model: Model, grammars: Grammars) -> None:
        self._scheduler = scheduler
        self._model = model
        self._grammars = grammars
        self._flight: tuple[Step, object] | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a step is launched; `finish_in_flight` must be called before another one is planned."""
        return self._flight is not None

    def compute(self, step: Step, may_overlap: Callable[[], bool]) -> bool:
        """Compute and commit this step; False if memory ran out, then it is undone.

        If `may_overlap()`, which is called only when needed, the next step may be in flight afterwards.
        """
        return self._end(step, None, may_overlap)

    def finish_in_flight(self, may_overlap: Callable[[], bool]) -> bool:
        """Same as `compute` for the step in flight."""
        assert self._flight is not None
        (launched, ticket), self._flight = self._flight, None
        step = reconcile(launched)
        return True if step is None else self._end(step, ticket, may_overlap)

    def _end(self, step: Step, ticket: object | None, may_overlap: Callable[[], bool]) -> bool:
        try:
            pending = self._sample(step, self._launch(step) if ticket is None else ticket)
            self._launch_next(step, pending, may_overlap)
            sampled = pending.read()
        except MemoryError:
            self._flight, sampled = None, None
        if sampled is None:  # the memory of the failed step is freed only outside the block above
            self._scheduler.undo(step)
            return False
        self._scheduler.commit(step, sampled)
        return True

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks and states in this order; not while a step is in flight."""
        for copy in copies:
            match copy:
                case BlockMoves():
                    self._model.move_blocks(copy.sources, copy.targets)
                case BlockCopy():
                    self._model.copy_block(copy.source, copy.target)
                case StateCopy():
                    self._model.copy_state(copy.source, copy.target)

    def _launch(self, step: Step) -> object:
        self.copy(step.copies)
        return self._model.launch(step.batch)

    def _sample(self, step: Step, ticket: object) -> PendingSamples:
        """Compute masks while the device computes the step."""
        masks = self._grammars.masks(step.matchers, step.extra_ids) if step.is_constrained else None
        return self._model.sample(ticket, step.batch, masks)

    def _launch_next(self, step: Step, pending: PendingSamples, may_overlap: Callable[[], bool]) -> None:
        planned = plan_next(self._scheduler, step)
        if planned is None or not may_overlap():
            return
        following, lines = planned
        try:
            self._flight = following, self._model.launch_after(following.batch, pending, lines)
        except MemoryError:
            self._flight = None  # this step is unaffected; the next one is tried again without overlap


def plan_next(scheduler: Scheduler, step: Step) -> tuple[Step, tuple[int, ...]] | None:
    """The step after this one, which is sampled but not read, and the row of logits that each of its rows continues.

    None if anything but one more id of each row may be due (prompts, arrivals, drafts, forced ids), or if a block is
    missing. Steps of models with recurrent state are not overlapped: a snapshot must not have seen the next id.
    """
    if not scheduler.limits.overlap or scheduler.cache.slots is not None or _can_admit(scheduler):
        return None
    scheduled, rows, lines = [], [], []
    num_alive = 0
    for line, (entry, row) in enumerate(zip(step.scheduled, step.batch.rows, strict=True)):
        sequence, sampling = entry.sequence, entry.sequence.request.sampling
        if sequence.state != "running":
            continue
        num_alive += 1
        # Log probabilities are read from the logits, which the next step would have overwritten.
        has_logprobs = sampling.num_logprobs is not None or row.targets is not None
        if row.sampling is None or sequence.drafter is not None or has_logprobs:
            return None
        if entry.mask_s > SLOW_MASK_S:
            return None  # what fits into the next step is known only when this one's masks are computed
        reply = sequence.reply
        if reply.active_matcher is not None and reply.fast_forward and reply.num_free < MIN_FREE_IDS:
            return None
        if len(reply.written_ids) + 1 >= sampling.max_tokens:
            continue  # this is its last id
        start = sequence.num_computed + entry.count
        if not scheduler.cache.grow(sequence, start + 1):
            return None
        scheduled.append(ScheduledRow(sequence, 1, ()))
        rows.append(Row((0,), start, sequence.blocks, 1, None, adapter=sequence.adapter_handle))
        lines.append(line)
    if not rows or num_alive < len(scheduler.running):
        return None
    return bind(scheduled, rows), tuple(lines)


def reconcile(step: Step) -> Step | None:
    """Update a launched step to the committed state before it; None if all its sequences have ended."""
    rows = [_reconcile_row(entry.sequence, row) for entry, row in zip(step.scheduled, step.batch.rows, strict=True)]
    if all(entry.sequence.state != "running" for entry in step.scheduled):
        return None
    return bind(step.scheduled, rows)


def _reconcile_row(sequence: Sequence, row: Row) -> Row:
    is_wanted = sequence.state == "running" and sequence.num_pending == 1
    return sequence.row(1, ()) if is_wanted else row


def _can_admit(scheduler: Scheduler) -> bool:
    is_full = len(scheduler.running) >= scheduler.max_running
    return not is_full and any(sequence.state == "waiting" for sequence in scheduler.queue.sequences)
