"""Computes the scheduler's steps on the model, the next one being under way before this one is read where that pays."""

from collections.abc import Callable

from server.engine.cache import BlockCopy
from server.engine.overlap import plan_ahead, settle
from server.engine.ports import Drawing, Grammars, Model
from server.engine.scheduler import Scheduler
from server.engine.step import Step


class Pipeline:
    """At most one step is in flight: launched, and not drawn yet."""

    def __init__(self, scheduler: Scheduler, model: Model, grammars: Grammars) -> None:
        self._scheduler = scheduler
        self._model = model
        self._grammars = grammars
        self._flight: tuple[Step, object] | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a step is under way: it has to be ended with `go_on` before another one is planned."""
        return self._flight is not None

    def compute(self, step: Step, may_go_ahead: Callable[[], bool]) -> bool:
        """Compute and commit this step; False if memory ran out, then it is undone.

        Where `may_go_ahead()`, asked only if it matters, the step after it may be in flight then.
        """
        return self._end(step, None, may_go_ahead)

    def go_on(self, may_go_ahead: Callable[[], bool]) -> bool:
        """The same for the step that is in flight."""
        assert self._flight is not None
        (launched, ticket), self._flight = self._flight, None
        step = settle(launched)
        return True if step is None else self._end(step, ticket, may_go_ahead)

    def _end(self, step: Step, ticket: object | None, may_go_ahead: Callable[[], bool]) -> bool:
        try:
            drawing = self._draw(step, self._launch(step) if ticket is None else ticket)
            self._launch_ahead(step, drawing, may_go_ahead)
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

    def _launch_ahead(self, step: Step, drawing: Drawing, may_go_ahead: Callable[[], bool]) -> None:
        planned = plan_ahead(self._scheduler, step)
        if planned is None or not may_go_ahead():
            return
        following, lines = planned
        try:
            self._flight = following, self._model.launch_after(following.batch, drawing, lines)
        except MemoryError:
            self._flight = None  # this step is not harmed; the next one meets the shortage in its turn
