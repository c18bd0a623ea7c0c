"""What the engine did for a request, as spans: it tells when each stage was reached, and knows nothing of traces.

queue     arrived -> admitted       a child of `admit`
└── compile                         the constraint, where there is one
prefill   admitted -> prefilled     a child of `generate`; its end is the first token
decode    prefilled -> ended        a child of `generate`, on which `preempted` and `resumed` are events

A stage that a reply does not reach the end of, as when its client leaves, ends when this is told.
"""

import time
from collections.abc import Iterable, Iterator

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from server.messages import Stage, StageTime

tracer = trace.get_tracer("toolwire")


class StageSpans:
    """The moments of one request, by choice. A backend that tells none leaves no spans here."""

    def __init__(self, num_choices: int) -> None:
        self._moments: list[list[StageTime]] = [[] for _ in range(num_choices)]
        # What the wall clock is ahead of the monotonic one. Kept, so that all spans of a request agree.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()

    def hear(self, choice: int, moments: Iterable[StageTime]) -> None:
        """What a Delta of this choice told."""
        self._moments[choice] += moments

    @property
    def began_ns(self) -> int | None:
        """When the first choice was admitted, since the epoch."""
        return min((times_ns["admitted"] for _, times_ns in self._times() if "admitted" in times_ns), default=None)

    def tell_queue(self, parent: Span) -> None:
        """Spans of the wait of each choice, once all of them are admitted."""
        within = trace.set_span_in_context(parent)
        for choice, times_ns in self._times():
            if "arrived" not in times_ns:
                continue
            queue = _start("queue", within, choice, times_ns["arrived"])
            if "compiled" in times_ns:
                compiling = _start("compile", trace.set_span_in_context(queue), choice, times_ns["arrived"])
                compiling.end(times_ns["compiled"])
            queue.end(times_ns.get("admitted", times_ns.get("ended")))

    def tell_writing(self, parent: Span) -> None:
        """Spans of what came after the admission of each choice, once the reply is over, however it ended."""
        within = trace.set_span_in_context(parent)
        for choice, times_ns in self._times():
            if "admitted" in times_ns:
                _start("prefill", within, choice, times_ns["admitted"]).end(times_ns.get("prefilled"))
            if "prefilled" in times_ns:
                _start("decode", within, choice, times_ns["prefilled"]).end(times_ns.get("ended"))
            for moment in self._moments[choice]:
                if moment.stage in ("preempted", "resumed"):
                    parent.add_event(moment.stage, {"toolwire.choice": choice}, self._ns(moment))

    def _times(self) -> Iterator[tuple[int, dict[Stage, int]]]:
        for choice, moments in enumerate(self._moments):
            yield choice, {moment.stage: self._ns(moment) for moment in moments}

    def _ns(self, moment: StageTime) -> int:
        return int(moment.time_s * 1e9) + self._epoch_ns


def _start(name: str, within: Context, choice: int, start_ns: int) -> Span:
    return tracer.start_span(name, within, attributes={"toolwire.choice": choice}, start_time=start_ns)
