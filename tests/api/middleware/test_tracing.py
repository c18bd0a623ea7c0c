"""Traces of a real server, received as a collector receives them."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.live import Live, live_server

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
REQUEST = "POST /v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def spans() -> Iterator[dict[str, list[Span]]]:
    """The spans of each request to a server that was stopped right behind the last reply, by trace id."""
    received: list[Span] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    received.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        options = ("--traces", "--api-key", "sesame", "--max-running", "1", "--max-queue", "2")
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with live_server(*options, OTEL_EXPORTER_OTLP_ENDPOINT=url) as live:
            play(live)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "sesame" not in str(received)
    traces: dict[str, list[Span]] = {}
    for span in received:
        traces.setdefault(span.trace_id.hex(), []).append(span)
    yield traces


def play(live: Live) -> None:
    """Send the requests of the tests, one trace each."""
    post(live, "1" * 32, stream=True, max_tokens=5)
    post(live, "2" * 32, tools=[TOOL], tool_choice="required", max_tokens=60)
    post(live, "3" * 32, n=2, max_tokens=4, min_tokens=4)
    post(live, "4" * 32, n=4, max_tokens=400, min_tokens=400, expected=429)  # none ends before the last is there
    leave(live, "5" * 32)


def post(live: Live, trace_id: str, expected: int = 200, **fields: Any) -> None:
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=body(**fields), headers=headers(trace_id), timeout=60)
    assert answer.status_code == expected, answer.text


def leave(live: Live, trace_id: str) -> None:
    """Close the connection in the middle of a reply."""
    fields = body(stream=True, max_tokens=900, ignore_eos=True)
    url = f"{live.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=fields, headers=headers(trace_id), timeout=60) as stream:
        for num_lines, _ in enumerate(stream.iter_lines()):
            if num_lines == 8:
                break


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "toolwire-demo", "messages": [{"role": "user", "content": "Weather in Paris?"}], **fields}


def headers(trace_id: str) -> dict[str, str]:
    return {"authorization": "Bearer sesame", "traceparent": f"00-{trace_id}-{PARENT_ID}-01"}


def within(spans: list[Span], parent: Span, name: str) -> list[Span]:
    """The children of that name, each inside the time of its parent."""
    found = [span for span in spans if span.name == name and span.parent_span_id == parent.span_id]
    for span in found:
        assert parent.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano, name
        assert span.end_time_unix_nano <= parent.end_time_unix_nano, name
    return found


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: pair.value for pair in span.attributes}


def one(spans: list[Span], name: str) -> Span:
    (span,) = (span for span in spans if span.name == name)
    return span


def test_a_request_is_one_trace_from_the_client_to_the_last_token(spans: dict[str, list[Span]]) -> None:
    trace = spans["1" * 32]
    whole = one(trace, REQUEST)
    assert whole.parent_span_id.hex() == PARENT_ID
    assert attributes(whole)["http.response.status_code"].int_value == 200
    for name in ("prepare", "admit", "generate"):
        assert len(within(trace, whole, name)) == 1, name
    generate = one(trace, "generate")
    assert [event.name for event in generate.events] == ["first token"]
    assert attributes(generate)["gen_ai.usage.output_tokens"].int_value > 0


def test_the_stages_of_the_engine_are_spans(spans: dict[str, list[Span]]) -> None:
    """Without these, a slow first token cannot be distinguished from a full queue."""
    trace = spans["1" * 32]
    (queue,) = within(trace, one(trace, "admit"), "queue")
    (prefill,) = within(trace, one(trace, "generate"), "prefill")
    (decode,) = within(trace, one(trace, "generate"), "decode")
    assert queue.end_time_unix_nano == prefill.start_time_unix_nano
    assert prefill.end_time_unix_nano == decode.start_time_unix_nano
    assert decode.end_time_unix_nano > decode.start_time_unix_nano
    assert not within(trace, queue, "compile")


def test_the_compilation_of_a_grammar_is_a_span(spans: dict[str, list[Span]]) -> None:
    trace = spans["2" * 32]
    (compiling,) = within(trace, one(trace, "queue"), "compile")
    assert compiling.end_time_unix_nano > compiling.start_time_unix_nano


def test_every_choice_has_stages_of_its_own(spans: dict[str, list[Span]]) -> None:
    """With `--max-running 1` the second choice waits until the first has ended."""
    trace = spans["3" * 32]
    for parent, name in (("admit", "queue"), ("generate", "prefill"), ("generate", "decode")):
        of_choices = [attributes(span)["toolwire.choice"].int_value for span in within(trace, one(trace, parent), name)]
        assert of_choices == [0, 1], name
    first, second = (span for span in trace if span.name == "decode")
    assert first.end_time_unix_nano <= second.start_time_unix_nano


def test_a_refused_request_has_no_stages(spans: dict[str, list[Span]]) -> None:
    trace = spans["4" * 32]
    assert attributes(one(trace, REQUEST))["http.response.status_code"].int_value == 429
    assert one(trace, "admit").status.code == Status.STATUS_CODE_ERROR
    assert {span.name for span in trace} == {REQUEST, "prepare", "admit"}


def test_a_client_that_leaves_ends_every_span(spans: dict[str, list[Span]]) -> None:
    """The engine does not report the end of an aborted sequence."""
    trace = spans["5" * 32]
    assert len(within(trace, one(trace, "generate"), "decode")) == 1
