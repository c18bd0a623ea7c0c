"""OpenTelemetry spans of one request's stages, an observer of its loop. Unless traces are sent they are no-ops.

prepare                         prompt and constraint
admit                           until the engine has admitted every choice
└── queue      by choice        arrived -> admitted, on the engine's own clock
    └── compile                 the constraint, where there is one
generate                        from the first admission to the end of the reply
├── prefill    by choice        admitted -> prefilled; its end is the first token
└── decode     by choice        prefilled -> ended; `preempted` and `resumed` are events of `generate`

A stage whose end a reply does not reach, as when its client leaves, ends with the reply.
"""

import time
from collections.abc import Iterator, Sequence

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode

from server.errors import ServeError
from server.messages import Stage, StageTime
from server.service import ChoiceEvent, Generation, Outcome, RequestObserver

tracer = trace.get_tracer("toolwire")


class RequestSpans(RequestObserver):
    """The spans of one request, children of the span that is current where this is made."""

    def __init__(self) -> None:
        self._parent = context.get_current()
        # Spans are never made current: a reply may be closed from another task.
        self._span: Span = trace.INVALID_SPAN
        self._generation: Generation | None = None
        self._has_first_token = False
        # What the wall clock is ahead of the monotonic one. Kept, so that all spans of a request agree.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()

    def started(self) -> None:
        """Begin `prepare`."""
        self._span = tracer.start_span("prepare", self._parent)

    def prepared(self) -> None:
        """End `prepare`, begin `admit`."""
        self._span.end()
        self._span = tracer.start_span("admit", self._parent)

    def refused(self, error: BaseException) -> None:
        """End the open span with the error."""
        if isinstance(error, Exception):
            _record(self._span, error)
        self._span.end()

    def admitted(self, generation: Generation) -> None:
        """End `admit` with the wait of each choice, begin `generate`."""
        self._generation = generation
        within = trace.set_span_in_context(self._span)
        times_ns = [self._times_ns(times) for times in generation.stage_times]
        for choice, reached_ns in enumerate(times_ns):
            if "arrived" not in reached_ns:
                continue
            queue = _start("queue", within, choice, reached_ns["arrived"])
            if "compiled" in reached_ns:
                compiling = _start("compile", trace.set_span_in_context(queue), choice, reached_ns["arrived"])
                compiling.end(reached_ns["compiled"])
            queue.end(reached_ns.get("admitted", reached_ns.get("ended")))
        self._span.end()
        began_ns = min((reached_ns["admitted"] for reached_ns in times_ns if "admitted" in reached_ns), default=None)
        self._span = tracer.start_span("generate", self._parent, start_time=began_ns)

    def received(self, events: Sequence[ChoiceEvent]) -> None:
        """Mark the first token."""
        if not self._has_first_token:
            self._has_first_token = True
            self._span.add_event("first token")

    def finished(self, outcome: Outcome, error: ServeError | None) -> None:
        """End `generate` with the stages of each choice and the token counts."""
        assert self._generation is not None, "a request is admitted before it is finished"
        if error is not None:
            _record(self._span, error)
        usage = self._generation.usage
        self._span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        self._span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
        self._span.set_attribute("toolwire.cached_tokens", usage.cached_tokens)
        within = trace.set_span_in_context(self._span)
        for choice, times in enumerate(self._generation.stage_times):
            reached_ns = self._times_ns(times)
            if "admitted" in reached_ns:
                _start("prefill", within, choice, reached_ns["admitted"]).end(reached_ns.get("prefilled"))
            if "prefilled" in reached_ns:
                _start("decode", within, choice, reached_ns["prefilled"]).end(reached_ns.get("ended"))
            for stage, at_ns in self._interruptions(times):
                self._span.add_event(stage, {"toolwire.choice": choice}, at_ns)
        self._span.end()

    def _interruptions(self, times: Sequence[StageTime]) -> Iterator[tuple[Stage, int]]:
        for one in times:
            if one.stage in ("preempted", "resumed"):
                yield one.stage, self._ns(one)

    def _times_ns(self, times: Sequence[StageTime]) -> dict[Stage, int]:
        return {one.stage: self._ns(one) for one in times}

    def _ns(self, time: StageTime) -> int:
        return int(time.time_s * 1e9) + self._epoch_ns


def _start(name: str, within: Context, choice: int, start_ns: int) -> Span:
    return tracer.start_span(name, within, attributes={"toolwire.choice": choice}, start_time=start_ns)


def _record(span: Span, error: Exception) -> None:
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, str(error)))
