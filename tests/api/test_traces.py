"""Traces of a real server, received as a collector receives them."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.live import live_server

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """Address of an OTLP receiver, and the spans that it has received."""
    spans: list[Span] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                raise AssertionError("not asked for")
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_is_one_trace_from_the_client_to_the_last_token(collector: tuple[str, list[Span]]) -> None:
    """The spans are sent even if the server is stopped right after the reply."""
    url, spans = collector
    with live_server("--traces", "--api-key", "sesame", OTEL_EXPORTER_OTLP_ENDPOINT=url) as server:
        client = server.client().with_options(api_key="sesame")
        stream = client.chat.completions.create(
            model="toolwire-demo",
            messages=[{"role": "user", "content": "Hello!"}],
            max_tokens=5,
            stream=True,
            extra_headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
        )
        assert list(stream)
    by_name = {span.name: span for span in spans}
    whole = by_name["POST /v1/chat/completions"]
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    for name in ("prepare", "admit", "generate"):
        assert by_name[name].parent_span_id == whole.span_id, name
        assert whole.start_time_unix_nano <= by_name[name].start_time_unix_nano
        assert by_name[name].end_time_unix_nano <= whole.end_time_unix_nano
    assert [event.name for event in by_name["generate"].events] == ["first token"]
    attributes = {pair.key: pair.value for span in spans for pair in span.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["gen_ai.usage.output_tokens"].int_value > 0
    assert "sesame" not in str(spans)
