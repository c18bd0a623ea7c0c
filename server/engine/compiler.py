"""Compile constraints in worker threads; sequences whose constraint is not ready stay in the queue."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from server.engine.ports import Grammars, Matcher
from server.engine.reply import closing_constraint
from server.engine.sequence import Sequence
from server.errors import ConstraintFailed
from server.messages import Constraint

NUM_THREADS = 2
GRACE_S = 0.002  # a cached grammar is copied well within this, in time for the next step


@dataclass(frozen=True, slots=True)
class Compiled:
    """Compiled matchers of a sequence, or why they do not compile."""

    matcher: Matcher | None = None
    closer: Matcher | None = None
    refusal: str | None = None


@dataclass(slots=True)
class Job:
    """Compilation of one sequence's constraints; `began_s` is set when a thread starts it."""

    sequence: Sequence
    constraint: Constraint | None
    closing: Constraint | None
    future: "Future[Compiled]" = field(default_factory=Future)
    began_s: float | None = None


class Compiler:
    """Compiles constraints for at most `timeout_s` each; a thread that hangs is abandoned and replaced."""

    def __init__(
        self, grammars: Grammars, wake: Callable[[], None], clock: Callable[[], float], timeout_s: float = 20.0
    ) -> None:
        self._grammars = grammars
        self._wake = wake
        self._clock = clock
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(NUM_THREADS, "grammar")
        self._num_hung = 0
        self._jobs: list[Job] = []

    def compile(self, sequence: Sequence) -> Compiled | None:
        """The result if it is available within `GRACE_S`; otherwise None, and `finished` returns it later."""
        constraint, closing = sequence.request.constraint, closing_constraint(sequence.request)
        if constraint is None and closing is None:
            return Compiled()
        job = Job(sequence, constraint, closing)
        self._submit(job)
        wait((job.future,), GRACE_S)
        outcome = self._outcome(job)
        if outcome is None:
            self._jobs.append(job)
        return outcome

    def finished(self) -> list[tuple[Sequence, Compiled]]:
        """Results since the last call."""
        if not self._jobs:
            return []
        done = [(job, self._outcome(job)) for job in self._jobs]
        self._jobs = [job for job, outcome in done if outcome is None]
        self._replace_hung_threads()
        return [(job.sequence, outcome) for job, outcome in done if outcome is not None]

    def close(self) -> None:
        """Cancel queued compilations; does not wait for running ones."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, job: Job) -> None:
        job.future = self._threads.submit(self._work, job)
        job.future.add_done_callback(lambda _: self._wake())

    def _work(self, job: Job) -> Compiled:
        job.began_s = self._clock()
        if job.sequence.state == "ended":
            return Compiled(refusal="aborted")
        try:
            return Compiled(
                None if job.constraint is None else self._grammars.compile(job.constraint),
                None if job.closing is None else self._grammars.compile(job.closing),
            )
        except ConstraintFailed as error:  # request boundary: only this request is refused
            return Compiled(refusal=str(error))

    def _outcome(self, job: Job) -> Compiled | None:
        if job.future.done() and not job.future.cancelled():
            broken = job.future.exception()
            return job.future.result() if broken is None else Compiled(refusal=f"it broke the compiler: {broken}")
        if job.began_s is None or self._clock() - job.began_s < self._timeout_s:
            return None
        self._num_hung += 1
        return Compiled(refusal=f"the constraint took longer than {self._timeout_s:.0f} s to compile")

    def _replace_hung_threads(self) -> None:
        if self._num_hung < NUM_THREADS:
            return
        self._num_hung = 0
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = ThreadPoolExecutor(NUM_THREADS, "grammar")
        for job in self._jobs:
            if job.began_s is None:
                self._submit(job)
