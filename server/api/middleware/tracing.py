"""OpenTelemetry: where spans are sent, and the span of each HTTP request in its client's trace.

The span of a request covers the first byte to the last; `request_spans.py` has those of the stages within it.
"""

from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.propagate import extract
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.middleware.request_log import QUIET_PATHS
from server.errors import CannotStart

tracer = trace.get_tracer("toolwire")


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
    """ASGI middleware: one span a request, in the client's trace where it sent one."""

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


def _set_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
