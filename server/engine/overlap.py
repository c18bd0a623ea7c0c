"""The step after this one, launched before it is known what this one drew: the device never waits for the host.

step k      launch   draw ............ read, commit
step k + 1               launch ..................... reconcile   draw ...

A row's next id stays on the device, so the forward pass can take it there. Everything that depends on its value (the
grammar's mask, penalties, whether the reply is over) matters only when k + 1 is drawn: by then k is committed. A row
whose sequence has ended meanwhile was computed in vain: what it wrote lies behind the end of what anybody reads, and
whoever gets its blocks writes after it. One whose next ids were forced meanwhile is computed as it stands, not drawn.
"""

from collections.abc import Callable

from server.engine.cache import BlockCopy
from server.engine.ports import Drawing, Grammars, Model
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.step import ScheduledRow, Step, bind
from server.model.batch import Row

# Ids that a constrained reply has drawn one by one before the next one is computed ahead: where ids are forced, those
# and the one before them take one step, and would take two.
MIN_FREE_IDS = 4


class Pipeline:
    """At most one step is in flight: launched, and not drawn yet."""

    def __init__(self, scheduler: Scheduler, model: Model, grammars: Grammars) -> None:
        self._scheduler = scheduler
        self._model = model
        self._grammars = grammars
        self._flight: tuple[Step, object] | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a step is under way: it has to be ended with `finish_in_flight` before another one is planned."""
        return self._flight is not None

    def compute(self, step: Step, may_overlap: Callable[[], bool]) -> bool:
        """Compute and commit this step; False if memory ran out, then it is undone.

        Where `may_overlap()`, asked only if it matters, the step after it may be in flight then.
        """
        return self._end(step, None, may_overlap)

    def finish_in_flight(self, may_overlap: Callable[[], bool]) -> bool:
        """The same for the step that is in flight."""
        assert self._flight is not None
        (launched, ticket), self._flight = self._flight, None
        step = reconcile(launched)
        return True if step is None else self._end(step, ticket, may_overlap)

    def _end(self, step: Step, ticket: object | None, may_overlap: Callable[[], bool]) -> bool:
        try:
            drawing = self._draw(step, self._launch(step) if ticket is None else ticket)
            self._launch_next(step, drawing, may_overlap)
            drawn = drawing.read()
        except MemoryError:
            self._flight, drawn = None, None
        if drawn is None:  # only out of the block above is the failed step's memory free again
            self._scheduler.undo(step)
            return False
        self._scheduler.commit(step, drawn)
        return True

    def _launch(self, step: Step) -> object:
        for copy in step.copies:
            if isinstance(copy, BlockCopy):
                self._model.copy_block(copy.source, copy.target)
            else:
                self._model.copy_state(copy.source, copy.target)
        return self._model.launch(step.batch)

    def _draw(self, step: Step, ticket: object) -> Drawing:
        """Masks are made while the device computes."""
        masks = self._grammars.masks(step.matchers, step.extra_ids) if step.is_constrained else None
        return self._model.draw(ticket, step.batch, masks)

    def _launch_next(self, step: Step, drawing: Drawing, may_overlap: Callable[[], bool]) -> None:
        planned = plan_next(self._scheduler, step)
        if planned is None or not may_overlap():
            return
        following, lines = planned
        try:
            self._flight = following, self._model.launch_after(following.batch, drawing, lines)
        except MemoryError:
            self._flight = None  # this step is not harmed; the next one meets the shortage in its turn


def plan_next(scheduler: Scheduler, step: Step) -> tuple[Step, tuple[int, ...]] | None:
    """What follows this step, which is drawn but not read, and which of its lines each row goes on from.

    None where anything but one more id of each row may be due: prompts, arrivals, drafts, ids that a grammar forces, or
    where a block is not there. Recurrent states are never computed ahead: what is kept of them must not have seen the
    next id.
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
        # Log probabilities are read from the logits, where the next step's would be by then.
        if row.draw is None or sequence.drafter is not None or sampling.num_logprobs is not None:
            return None
        reply = sequence.reply
        if reply.active_matcher is not None and reply.fast_forward and reply.num_free < MIN_FREE_IDS:
            return None
        if len(reply.written_ids) + 1 >= sampling.max_tokens:
            continue  # this is its last id
        start = sequence.num_computed + entry.count
        if not scheduler.cache.grow(sequence, start + 1):
            return None
        scheduled.append(ScheduledRow(sequence, 1, ()))
        rows.append(Row((0,), start, sequence.blocks, 1, None))
        lines.append(line)
    if not rows or num_alive < len(scheduler.running):
        return None
    return bind(scheduled, rows), tuple(lines)


def reconcile(step: Step) -> Step | None:
    """The same step, now that what came before it is known; None if nothing of it is wanted any more."""
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
