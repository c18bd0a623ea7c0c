"""Output state of one sequence: stop ids, reasoning phase, constraint and length, from first id to finish.

span        what may be written                              becomes
undecided   the phase's opening id, or the constraint        inside, or after
inside      anything (no stop id, if a constraint follows)   closing at the limit, after behind `end_id`
closing     `close_ids`, one by one                          after
after       what the constraint allows; anything if none
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from server.engine.ports import Matcher
from server.errors import ConstraintFailed
from server.messages import Constraint, FailureKind, Finish, Generate, ReasoningPhase

T = TypeVar("T")
Span = Literal["undecided", "inside", "closing", "after"]


class OutputState:
    """Ids written so far, and what may follow.

    Without logprobs, forced ids are written at once (`write_forced`). With logprobs each of them is
    sampled under a mask that allows nothing else, so that its logprob is reported like any other's.
    """

    def __init__(self, request: Generate, *, fast_forward: bool) -> None:
        self.written_ids: list[int] = []
        self.num_forced = 0
        self.forced_places: list[int] = []  # of written ids without an alternative, where the request is traced
        self.num_free = 0  # ids sampled since some were forced
        self.finish: Finish | None = None
        self.fault: str | None = None
        self.fault_kind: FailureKind = "request_failed"
        self.matcher: Matcher | None = None
        self.closer: Matcher | None = None  # stands for close_ids where they are sampled
        self.fast_forward = fast_forward and request.sampling.num_logprobs is None
        self._appends_close_ids = request.sampling.num_logprobs is None
        self._traced = request.trace
        self._sampling = request.sampling
        self._resumed_ids = request.reply_ids
        self._stop_ids = frozenset(request.stop_ids)
        self._stop_tuple = request.stop_ids
        self._reasoning_phase = request.reasoning_phase
        self._num_inside = 0
        self._span: Span = _first_span(request.reasoning_phase)

    @property
    def is_over(self) -> bool:
        """Nothing more is written."""
        return self.finish is not None or self.fault is not None

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Stop ids, where the next id may be none of them.

        Ending inside the reasoning phase would leave a constraint unmet, so stop ids are banned there as well.
        """
        if not self._stop_tuple:
            return ()
        too_short = len(self.written_ids) < self._sampling.min_tokens
        unmet = self._span == "inside" and self.matcher is not None
        return self._stop_tuple if too_short or unmet or self._sampling.ignore_eos else ()

    @property
    def active_matcher(self) -> Matcher | None:
        """Matcher that masks the next id."""
        if self._span == "closing":
            return self.closer
        return None if self._span == "inside" else self.matcher

    @property
    def extra_id(self) -> int | None:
        """One id that is allowed besides what the matcher allows."""
        return (
            self._reasoning_phase.open_id if self._span == "undecided" and self._reasoning_phase is not None else None
        )

    def write(self, token_ids: Iterable[int]) -> int:
        """Append sampled ids until the reply ends; returns how many were written."""
        before = len(self.written_ids)
        for token_id in token_ids:
            if self.is_over:
                break
            self._write_one(token_id)
        count = len(self.written_ids) - before
        self.num_free += count
        return count

    def write_forced(self) -> int:
        """Append forced ids; returns how many were written."""
        before = len(self.written_ids)
        while not self.is_over and (due := self._due_ids()):
            self.write(due)
        count = len(self.written_ids) - before
        self.num_forced += count
        if count:
            self.num_free = 0
        return count

    def cut_drafts(self, drafts: Sequence[int]) -> Sequence[int]:
        """The drafts that can be verified in one pass, under the rules that hold now."""
        num_written = len(self.written_ids)
        room = self._sampling.max_tokens - num_written - 1
        if num_written < self._sampling.min_tokens and self._stop_tuple:
            room = min(room, self._sampling.min_tokens - num_written - 1)
        if self._span in ("undecided", "closing"):
            return ()
        if self._span == "inside" and self._reasoning_phase is not None:
            if self._reasoning_phase.limit is not None:
                room = min(room, self._reasoning_phase.limit - self._num_inside - 1)
            ends = (self._reasoning_phase.end_id, *self._reasoning_phase.break_ids)
            room = min([room, *(list(drafts).index(token_id) for token_id in ends if token_id in drafts)])
        drafts = drafts[: max(room, 0)]
        matcher = self.active_matcher
        if matcher is None or not drafts:
            return drafts
        # Where a draft completes the constraint only stop ids may follow; banned, they would leave nothing to sample.
        return () if self.banned_ids else drafts[: self._guarded(lambda: matcher.count_allowed(drafts), 0)]

    def _write_one(self, token_id: int) -> None:
        stops = token_id in self._stop_ids and not self.banned_ids
        if self._traced and self._is_forced(token_id):
            self.forced_places.append(len(self.written_ids))
        self.written_ids.append(token_id)
        if stops:
            self.finish = "stop"
            if self.active_matcher is not None:  # a grammar that has become too complex allows stop ids alone
                self._advance(self.active_matcher, ())
            return
        self._move(token_id)
        if self.finish is None and len(self.written_ids) >= self._sampling.max_tokens:
            self.finish = "length"

    def _is_forced(self, token_id: int) -> bool:
        """Whether this id, which is about to be written, has no alternative."""
        if self._span != "after" or self.matcher is None:
            return self._span == "closing"
        due: Sequence[int] = self._guarded(self.matcher.forced, [])
        return bool(due) and due[0] == token_id

    def _move(self, token_id: int) -> None:
        match self._span:
            case "undecided" if self._reasoning_phase is not None and token_id == self._reasoning_phase.open_id:
                self._span = "inside"
                self._begin_closing_at_limit()
            case "inside" if self._reasoning_phase is not None and token_id in self._reasoning_phase.break_ids:
                self._span = "after"
                self._follow(token_id)
            case "inside" | "closing" if self._reasoning_phase is not None:
                if token_id == self._reasoning_phase.end_id:
                    self._span = "after"
                    return
                if self.closer is not None and self._span == "closing":
                    self._advance(self.closer, (token_id,))
                self._num_inside += 1
                self._begin_closing_at_limit()
            case _:
                self._span = "after"
                self._follow(token_id)

    def _follow(self, token_id: int) -> None:
        if self.matcher is not None:
            self._advance(self.matcher, (token_id,))
            if self.fault is None and self._guarded(self.matcher.is_over, False):
                self.finish = "stop"

    def begin(self, matcher: Matcher | None, closer: Matcher | None) -> None:
        """Set the compiled matchers, and write the reply ids of the request; must be called before any other id."""
        self.matcher, self.closer = matcher, closer
        self._begin_closing_at_limit()
        self.write(self._resumed_ids)

    def _begin_closing_at_limit(self) -> None:
        limit = None if self._reasoning_phase is None else self._reasoning_phase.limit
        if self._span == "inside" and limit is not None and self._num_inside >= limit:
            self._span = "closing"

    def _advance(self, matcher: Matcher, token_ids: tuple[int, ...]) -> None:
        if not self._guarded(lambda: matcher.advance(token_ids), True):
            self.fault = f"the constraint does not allow the sampled id {token_ids[0]}"

    def _guarded(self, use_matcher: Callable[[], T], otherwise: T) -> T:
        """The result of a call of this reply's matcher; if it raises, the reply ends with a fault, and `otherwise`."""
        try:
            return use_matcher()
        except ConstraintFailed as error:
            self.fault, self.fault_kind = str(error), "bad_constraint"
        except Exception as error:  # noqa: BLE001 request boundary: the other replies of the step go on
            self.fault = f"its constraint broke: {type(error).__name__}: {error}"
        return otherwise

    def _due_ids(self) -> Sequence[int]:
        if self._span == "closing" and self._reasoning_phase is not None:
            return close_ids(self._reasoning_phase) if self._appends_close_ids else ()
        if self._span != "after" or self.matcher is None or not self.fast_forward:
            return ()
        return self._guarded(self.matcher.forced, [])


def close_ids(reasoning_phase: ReasoningPhase) -> tuple[int, ...]:
    """The ids that close the reasoning phase at its limit; they end with its `end_id`."""
    return reasoning_phase.close_ids or (reasoning_phase.end_id,)


def closing_constraint(request: Generate) -> Constraint | None:
    """Grammar of the close ids, if they must be sampled rather than appended (logprobs)."""
    reasoning_phase = request.reasoning_phase
    if reasoning_phase is None or reasoning_phase.limit is None or request.sampling.num_logprobs is None:
        return None
    return Constraint("start: " + " ".join(f"<[{token_id}]>" for token_id in close_ids(reasoning_phase)))


def _first_span(reasoning_phase: ReasoningPhase | None) -> Span:
    if reasoning_phase is None:
        return "after"
    return "inside" if reasoning_phase.open_id is None else "undecided"
