"""Compile constraints in worker threads; sequences whose constraint is not ready stay in the queue."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from server.engine.ports import Grammars, Matcher
from server.engine.reply import closing_constraint
from server.engine.sequence import Sequence
from server.errors import ConstraintFailed
from server.messages import Constraint
from server.runtime.deep_stack import deep_stack_threads

NUM_THREADS = 2
MAX_HUNG_THREADS = 4
NICENESS = 10  # steps of running replies come first
GRACE_S = 0.002  # a cached grammar is copied well within this, in time for the next step


@dataclass(frozen=True, slots=True)
class Compiled:
    """Compiled matchers of a sequence, or why they do not compile."""

    matcher: Matcher | None = None
    closer: Matcher | None = None
    refusal: str | None = None

    def copy(self) -> "Compiled":
        """The same matchers for another sequence."""
        matcher, closer = self.matcher, self.closer
        return Compiled(matcher and matcher.copy(), closer and closer.copy(), self.refusal)


@dataclass(slots=True)
class Job:
    """Compilation of the constraints that some sequences share; `began_s` is set when a thread starts it."""

    constraint: Constraint | None
    closing: Constraint | None
    sequences: list[Sequence]
    future: "Future[Compiled]" = field(default_factory=Future)
    began_s: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether one of its sequences has not ended."""
        return any(sequence.state != "ended" for sequence in self.sequences)


class GrammarsHang(Exception):
    """Too many threads compile grammars without an end; only the end of the process ends them."""


class Compiler:
    """Compiles constraints for at most `timeout_s` each; a thread that hangs is abandoned and replaced.

    Sequences with equal constraints share one compilation.
    """

    def __init__(
        self, grammars: Grammars, wake: Callable[[], None], clock: Callable[[], float], timeout_s: float = 20.0
    ) -> None:
        self._grammars = grammars
        self._wake = wake
        self._clock = clock
        self._timeout_s = timeout_s
        self._threads = deep_stack_threads(NUM_THREADS, "grammar", NICENESS)
        self._num_hung = 0
        self._abandoned: list[Future[Compiled]] = []
        self._jobs: dict[tuple[Constraint | None, Constraint | None], Job] = {}
        self._ready: deque[tuple[Sequence, Compiled]] = deque()
        self._new: list[Future[Compiled]] = []  # submitted since the last `wait`

    def submit(self, sequence: Sequence) -> None:
        """Compile its constraints; `finished` returns the result."""
        key = constraint, closing = sequence.request.constraint, closing_constraint(sequence.request)
        job = self._jobs.get(key)
        if constraint is None and closing is None:
            self._ready.append((sequence, Compiled()))
        elif job is not None and job.is_wanted:
            job.sequences.append(sequence)
        else:
            self._jobs[key] = job = Job(constraint, closing, [sequence])
            self._start(job)
            self._new.append(job.future)

    def wait(self) -> None:
        """Wait for what was submitted since the last call, at most GRACE_S in all."""
        if self._new:
            wait(self._new, GRACE_S)
            self._new = []

    @property
    def has_finished(self) -> bool:
        """Whether `finished` has results that were not taken yet."""
        return bool(self._ready)

    def finished(self) -> Iterator[tuple[Sequence, Compiled]]:
        """Results; those that are not taken are returned by the next call."""
        for key, job in list(self._jobs.items()):
            outcome = self._outcome(job)
            if outcome is not None:
                del self._jobs[key]
                self._ready.extend((sequence, outcome) for sequence in job.sequences)
        self._replace_hung_threads()
        while self._ready:
            sequence, compiled = self._ready.popleft()
            if sequence.state != "ended":
                yield sequence, compiled.copy()

    @property
    def num_hung(self) -> int:
        """Threads that still compile what was refused for taking too long."""
        self._abandoned = [future for future in self._abandoned if not future.done()]
        return len(self._abandoned)

    def check(self) -> None:
        """Raises GrammarsHang if the threads that hang keep too many cores busy."""
        if self._abandoned and self.num_hung >= MAX_HUNG_THREADS:
            raise GrammarsHang(f"{self.num_hung} grammars compile without an end")

    def close(self) -> None:
        """Cancel queued compilations; does not wait for running ones."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, job: Job) -> None:
        job.future = self._threads.submit(self._work, job)
        job.future.add_done_callback(lambda _: self._wake())

    def _work(self, job: Job) -> Compiled:
        job.began_s = self._clock()
        if not job.is_wanted:
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
        self._abandoned.append(job.future)
        return Compiled(refusal=f"the constraint took longer than {self._timeout_s:.0f} s to compile")

    def _replace_hung_threads(self) -> None:
        if self._num_hung < NUM_THREADS:
            return
        self._num_hung = 0
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = deep_stack_threads(NUM_THREADS, "grammar", NICENESS)
        for job in self._jobs.values():
            if job.began_s is None:
                self._start(job)
