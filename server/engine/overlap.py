"""The step after this one, launched before it is known what this one drew: the device never waits for the host.

step k      launch   draw ............ read, commit
step k + 1               launch ..................... settle   draw ...

A row's next id stays on the device, so the forward pass can take it there. Everything that depends on its value (the
grammar's mask, penalties, whether the reply is over) matters only when k + 1 is drawn: by then k is committed. A row
whose sequence has ended meanwhile was computed in vain: what it wrote lies behind the end of what anybody reads, and
whoever gets its blocks writes after it. One whose next ids were forced meanwhile is computed as it stands, not drawn.
"""

from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.step import ScheduledRow, Step, bind
from server.model.batch import Row

# Ids that a constrained reply has drawn one by one before the next one is computed ahead: where ids are forced, those
# and the one before them take one step, and would take two.
FREE_RUN = 4


def plan_ahead(scheduler: Scheduler, step: Step) -> tuple[Step, tuple[int, ...]] | None:
    """What follows this step, which is drawn but not read, and which of its lines each row goes on from.

    None where anything but one more id of each row may be due: prompts, arrivals, drafts, ids that a grammar forces, or
    where a block is not there. Recurrent states are never computed ahead: what is kept of them must not have seen the
    next id.
    """
    if not scheduler.limits.runs_ahead or scheduler.cache.slots is not None or _somebody_could_start(scheduler):
        return None
    shares, rows, lines = [], [], []
    num_alive = 0
    for line, (share, row) in enumerate(zip(step.shares, step.batch.rows, strict=True)):
        sequence, sampling = share.sequence, share.sequence.request.sampling
        if sequence.state != "running":
            continue
        num_alive += 1
        # Log probabilities are read from the logits, where the next step's would be by then.
        if row.draw is None or sequence.drafter is not None or sampling.num_logprobs is not None:
            return None
        reply = sequence.reply
        if reply.active_matcher is not None and reply.fast_forward and reply.num_free < FREE_RUN:
            return None
        if len(reply.written_ids) + 1 >= sampling.max_tokens:
            continue  # this is its last id
        start = sequence.num_computed + share.count
        if not scheduler.cache.grow(sequence, start + 1):
            return None
        shares.append(ScheduledRow(sequence, 1, ()))
        rows.append(Row((0,), start, sequence.blocks, 1, None))
        lines.append(line)
    if not rows or num_alive < len(scheduler.running):
        return None
    return bind(shares, rows), tuple(lines)


def settle(step: Step) -> Step | None:
    """The same step, now that what came before it is known; None if nothing of it is wanted any more."""
    rows = [_settle_row(share.sequence, row) for share, row in zip(step.shares, step.batch.rows, strict=True)]
    if all(share.sequence.state != "running" for share in step.shares):
        return None
    return bind(step.shares, rows)


def _settle_row(sequence: Sequence, row: Row) -> Row:
    is_wanted = sequence.state == "running" and sequence.num_pending == 1
    return sequence.row(1, ()) if is_wanted else row


def _somebody_could_start(scheduler: Scheduler) -> bool:
    is_full = len(scheduler.running) >= scheduler.max_running
    return not is_full and any(sequence.state == "waiting" for sequence in scheduler.queue.sequences)
