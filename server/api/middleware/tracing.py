"""OpenTelemetry spans along a request's walk. Unless traces are sent, every span here is the API's own no-op.

POST /v1/chat/completions          from the first byte to the last; child of the client's `traceparent`
├── prepare                        prompt and constraint
├── admit                          until the engine has admitted every choice
│   └── queue                      the engine's own times, by choice: server/api/middleware/stage_spans.py
│       └── compile
└── generate                       from the first admission to the end of the reply
    ├── prefill
    └── decode
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.middleware.request_log import QUIET_PATHS
from server.errors import CannotStart, ServeError
from server.service import Generation

tracer = trace.get_tracer("toolwire")
T = TypeVar("T")


def send_traces() -> Callable[[], None]:
    """From now on spans go where the OTEL_* variables say; returns what sends the last of them. Raises CannotStart."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise CannotStart("--traces needs packages that are not installed: pip install 'toolwire[traces]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "toolwire"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


class TracingMiddleware:
    """ASGI room: one span a request, in the client's trace where it sent one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Neither the query string nor any header becomes an attribute: keys travel in both."""
        if scope["type"] != "http" or scope["path"] in QUIET_PATHS:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        name = f"{scope['method']} {scope['path']}"
        with tracer.start_as_current_span(name, extract(headers), SpanKind.SERVER) as span:
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("url.path", scope["path"])
            span.set_attribute("toolwire.request_id", scope.get("state", {}).get("request_id", ""))

            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _set_status(span, message["status"])
                await send(message)

            await self._app(scope, receive, watch)


async def traced(steps: AsyncGenerator[list[T], None], answer: Generation) -> AsyncGenerator[list[T], None]:
    """The same steps, within a span that ends when they do, however they do."""
    # Never made current: a generator may be closed from elsewhere.
    span = tracer.start_span("generate", start_time=answer.stages.began_ns)
    told = False
    try:
        async with aclosing(steps):
            async for chunks in steps:
                if not told and answer.tally.completion_tokens:
                    told = True
                    span.add_event("first token")
                yield chunks
    except ServeError as error:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, str(error)))
        raise
    finally:
        tally = answer.tally
        span.set_attribute("gen_ai.usage.input_tokens", tally.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", tally.completion_tokens)
        span.set_attribute("toolwire.cached_tokens", tally.cached_tokens)
        answer.stages.tell_writing(span)
        span.end()


def _set_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
