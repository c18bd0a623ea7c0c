"""Waiting sequences in order of arrival, and estimates of reply length and waiting time."""

from bisect import insort
from collections import deque
from collections.abc import Callable

from server.engine.sequence import Sequence

FINISHES_KEPT = 64
LONGEST_WAIT_S = 60.0
SHORTEST_WAIT_S = 1.0
NEWEST_WEIGHT = 0.1


class Queue:
    """Sequences that are not running: new ones, some still being compiled, and preempted ones."""

    def __init__(self, max_waiting: int, clock: Callable[[], float]) -> None:
        self.sequences: list[Sequence] = []
        self.max_waiting = max_waiting
        self._clock = clock
        self._finished_s: deque[float] = deque(maxlen=FINISHES_KEPT)
        self._typical_reply: float | None = None
        self._blocked_since_s: float | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    def join(self, sequence: Sequence) -> None:
        """Insert by arrival: a preempted sequence comes before newer ones."""
        insort(self.sequences, sequence, key=lambda other: other.arrival)

    def leave(self, sequence: Sequence) -> None:
        """Remove from the queue."""
        self.sequences.remove(sequence)

    def record_finish(self, num_written: int) -> None:
        """Record that a reply of this many ids has finished."""
        self._finished_s.append(self._clock())
        typical = self._typical_reply
        self._typical_reply = num_written if typical is None else typical + NEWEST_WEIGHT * (num_written - typical)

    def find_timed_out(self, memory_wait_timeout_s: float) -> list[Sequence]:
        """Sequences that have waited for memory longer than this; called when none runs and none could start."""
        ready = [sequence for sequence in self.sequences if sequence.state == "waiting"]
        now_s = self._clock()
        if not ready:
            self._blocked_since_s = None
        elif self._blocked_since_s is None:
            self._blocked_since_s = now_s
        elif now_s - self._blocked_since_s >= memory_wait_timeout_s:
            return [sequence for sequence in ready if now_s - sequence.arrived_s >= memory_wait_timeout_s]
        return []

    def record_progress(self) -> None:
        """Record that a step was scheduled."""
        self._blocked_since_s = None

    def retry_after_s(self) -> float:
        """Estimated seconds until the queue has a free place: its length over the rate at which replies finish."""
        if len(self._finished_s) < 2:
            return SHORTEST_WAIT_S
        span_s = max(self._clock() - self._finished_s[0], 1e-3)
        rate = len(self._finished_s) / span_s
        return min(max((len(self.sequences) + 1) / rate, SHORTEST_WAIT_S), LONGEST_WAIT_S)

    def expected_remaining(self, sequence: Sequence) -> int:
        """Ids that this sequence is expected to write yet: `max_tokens` until some replies have finished.

        A preempted sequence counts with `max_tokens`, so that it is not preempted repeatedly.
        """
        num_written = len(sequence.reply.written_ids)
        worst = sequence.request.sampling.max_tokens - num_written
        if self._typical_reply is None or sequence.num_preemptions:
            return worst
        return min(worst, max(int(1.5 * self._typical_reply) - num_written, 32))
