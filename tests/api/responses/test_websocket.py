"""The WebSocket form of responses: with openai's own client, and with what hostile or broken clients send."""

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.resources.responses.responses import ResponsesConnection
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from server.api.middleware import auth
from server.checkpoint.checkpoint import Checkpoint
from server.messages import Generate
from tests.api.conftest import CALL, MODEL
from tests.api.over_http import HttpServed, served_over_http
from tests.api.responses.conftest import HeldScript
from tests.api.responses.strict_types import ENDS, UNLISTED, check_no_extra
from tests.api.responses.test_router import TOOL, Reply
from tests.backends.scripted import Script

# openai 3.57 calls websockets in a way that websockets 17 does not like.
pytestmark = pytest.mark.filterwarnings("ignore:connect\\(\\) must be used:DeprecationWarning")
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
Over = Callable[..., Any]


@pytest.fixture
def over(checkpoint: Checkpoint) -> Over:
    """A server whose model writes this script."""

    def serve(script: Script | Callable[[Generate], Script], **api: Any) -> Any:
        write = script if callable(script) else lambda _: script
        return served_over_http(checkpoint, write, **api)

    return serve


@contextmanager
def connected(served: HttpServed, **options: Any) -> Iterator[ResponsesConnection]:
    """openai's own connection."""
    client = openai.OpenAI(base_url=f"http://{served.address}/v1", api_key="any", max_retries=0, **options)
    with client, client.responses.connect() as connection:
        yield connection


@contextmanager
def opened(served: HttpServed, path: str = "/v1/responses", **options: Any) -> Iterator[ClientConnection]:
    """A bare connection."""
    with connect(f"ws://{served.address}{path}", **options) as peer:
        yield peer


def create(connection: Any, **fields: Any) -> list[dict[str, Any]]:
    """The events that answer one `response.create`, each checked."""
    message = {"type": "response.create", "model": MODEL, "input": "Hi", **fields}
    if isinstance(connection, ClientConnection):
        connection.send(json.dumps(message))
    else:
        connection.send(message)
    return answer(connection)


def answer(connection: Any) -> list[dict[str, Any]]:
    """The events up to an end or an error."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] not in (*ENDS, "error", "response.steer.failed"):
        raw = connection.recv(timeout=20) if isinstance(connection, ClientConnection) else connection.recv_bytes()
        event = json.loads(raw)
        checked = deepcopy(event)
        for key in UNLISTED & checked.get("response", {}).keys():
            del checked["response"][key]
        if (checked.get("response", {}).get("error") or {}).get("code") == "context_length_exceeded":
            checked["response"]["error"]["code"] = "server_error"
        check_no_extra(EVENTS.validate_python(checked), event["type"])
        events.append(event)
    return events


def prompt_of(checkpoint: Checkpoint, request: Generate) -> str:
    return checkpoint.tokenizer.decode(request.token_ids, skip_special_tokens=False)


def test_requests_one_after_another_continue_what_is_not_kept(over: Over, reply: Reply, checkpoint: Checkpoint) -> None:
    """The last response of a connection can be continued on it with `store: false`, as Codex does."""
    with over(reply(f"Look.\n{CALL}")) as served, connected(served) as connection:
        first = create(connection, tools=[TOOL], store=False)
        assert [event["sequence_number"] for event in first] == list(range(len(first)))
        assert [event["type"] for event in first[:2]] == ["response.created", "response.in_progress"]
        call = first[-1]["response"]["output"][-1]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "21"}
        last = first[-1]["response"]["id"]
        second = create(connection, tools=[TOOL], store=False, input=[result], previous_response_id=last)
        assert second[-1]["response"]["previous_response_id"] == last
        prompt = prompt_of(checkpoint, served.backend.asked[-1])
        assert all(part in prompt for part in ("Hi", "Look.", "get_weather", "21"))
        (error,) = create(connection, previous_response_id="resp_none")
        assert error["status"] == 400 and error["error"]["code"] == "previous_response_not_found"
        with connected(served) as other:
            (error,) = create(other, previous_response_id=second[-1]["response"]["id"])
            assert error["error"]["code"] == "previous_response_not_found"
        stray = [{**result, "call_id": "none"}]
        for code in (None, "previous_response_not_found"):  # a turn that failed cannot be tried again behind it
            last = second[-1]["response"]["id"]
            (error,) = create(connection, store=False, input=stray, previous_response_id=last)
            assert error["status"] == 400 and error["error"]["code"] == code


def test_a_request_that_generates_nothing_prepares_the_next(over: Over, reply: Reply, checkpoint: Checkpoint) -> None:
    with over(reply("Hello")) as served, connected(served) as connection:
        for switch in ({"generate": False}, {"prompt_cache_options": {"prewarm": True}}):
            warm = create(connection, instructions="Be brief.", store=False, **switch)
            response = warm[-1]["response"]
            assert response["status"] == "completed" and response["output"] == []
            assert [event["type"] for event in warm] == ["response.created", "response.in_progress", ENDS[0]]
            assert response["usage"]["output_tokens"] == 0 < response["usage"]["input_tokens"]
            assert served.backend.asked[-1].sampling.max_tokens == 1
            create(connection, input="And?", store=False, previous_response_id=response["id"])
            prompt = prompt_of(checkpoint, served.backend.asked[-1])
            assert "Hi" in prompt and "And?" in prompt and served.backend.asked[-1].sampling.max_tokens > 1


REFUSED: list[tuple[str | bytes, int, str | None]] = [
    ("{", 400, None), ("[]", 400, None), ("{}", 400, "type"), ('{"type": "session.update"}', 400, "type"),
    (b"\xff", 400, None), ('{"type": "response.create"}', 400, "model"),
    ('{"type": "response.create", "model": "org/tiny", "input": "Hi", "background": true}', 400, "background"),
    ('{"type": "response.create", "model": "org/tiny", "input": "Hi", "generate": 1}', 400, "generate"),
    ('{"type": "response.create", "model": "org/tiny", "input": "Hi", "stream_id": ""}', 400, "stream_id"),
    ('{"type": "response.create", "model": "org/tiny", "input": [3]}', 400, "input[0]"),
    ('{"type": "response.create", "model": "other", "input": "Hi"}', 404, None),
]  # fmt: skip


def test_errors_are_events_and_the_connection_goes_on(over: Over, reply: Reply) -> None:
    with over(reply("Hello")) as served, opened(served) as peer:
        for message, status, param in REFUSED:
            peer.send(message)
            (error,) = answer(peer)
            assert (error["status"], error["error"]["param"]) == (status, param), error
            assert "None" not in error["error"]["message"], "a parameter that is missing has no value"
        peer.send(json.dumps({"type": "response.steer", "previous_response_id": "resp_1", "input": "Stop"}))
        (failed,) = answer(peer)
        assert failed["error"]["code"] == "steering_not_supported"
        assert failed["steer"] == {"input": "Stop", "previous_response_id": "resp_1"}
        peer.send(json.dumps({"type": "response.steer", "input": {"x": 1}}))
        (failed,) = answer(peer)
        assert failed["steer"] == {"input": "", "previous_response_id": ""}
        (*_, failed) = create(peer, input="word " * 40_000)
        assert failed["response"]["error"]["code"] == "context_length_exceeded"
        peer.send(json.dumps({"type": "response.create", "model": MODEL, "input": "Hi"}).encode())  # binary
        events = answer(peer)
        assert events[-1]["type"] == "response.completed" and all("stream_id" not in event for event in events)
        events = create(peer, stream_id="a", stream=True)
        assert {event["stream_id"] for event in events} == {"a"}
        for outcome, number in (("200", 2), ("400", 12), ("404", 1), ("failed", 1)):
            line = f'toolwire_requests_total{{outcome="{outcome}",path="/v1/responses"}} {number}.0'
            wait_for(partial(_figures_have, served, line))


def _figures_have(served: HttpServed, line: str) -> bool:
    return line in httpx.get(f"http://{served.address}/metrics").text


def test_mutated_messages_are_answered_one_by_one(over: Over, reply: Reply) -> None:
    """One that raised would have ended the connection, or left its client waiting."""
    chance = random.Random(7)
    fields: dict[str, Any] = {
        "type": "response.create",
        "model": MODEL,
        "input": [{"role": "user", "content": "Hi"}],
        "tools": [TOOL],
    }
    fields |= {"generate": True, "stream_id": "a", "store": False, "previous_response_id": None, "metadata": {"a": "b"}}
    with over(reply("Hello")) as served, opened(served) as peer:
        ends: Counter[str] = Counter()
        for _ in range(300):
            message = json.loads(json.dumps(fields))
            for name in chance.sample(sorted(message), chance.randint(0, 3)):
                message[name] = chance.choice([None, 3, "", "x", [], {}, [3], {"type": "x"}, True, [[]], -1.5])
            text = json.dumps(message)
            at = chance.randrange(len(text))
            peer.send(text if chance.random() < 0.7 else text[:at] + chance.choice('"{}[],:\\x0') + text[at + 1 :])
            ends[answer(peer)[-1]["type"]] += 1
        assert set(ends) <= {"error", "response.completed", "response.steer.failed"} and min(ends.values()) > 10, ends


def test_messages_wait_for_the_one_before_and_too_many_are_refused(over: Over, reply: Reply) -> None:
    script = HeldScript(reply("Hello"), 1)
    message = json.dumps({"type": "response.create", "model": MODEL, "input": "Hi"})
    with over(script.pieces) as served, opened(served) as peer:
        peer.send(message)
        wait_for(lambda: len(served.backend.running) == 1)
        for _ in range(17):
            peer.send(message)
        refusal = answer(peer)[-1]
        assert refusal["status"] == 429 and refusal["error"]["headers"]["retry-after"] == "1"
        script.release()
        ends = [answer(peer)[-1] for _ in range(17)]
        assert [end["type"] for end in ends] == ["response.completed"] * 17
        assert len({end["response"]["id"] for end in ends}) == 17


def wait_for(check: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.01)


def test_a_client_that_leaves_ends_its_reply(over: Over, reply: Reply) -> None:
    with over(HeldScript(reply("Hello"), 1).pieces) as served:
        with opened(served) as peer:
            peer.send(json.dumps({"type": "response.create", "model": MODEL, "input": "Hi"}))
            wait_for(lambda: len(served.backend.running) == 1)
        wait_for(lambda: not served.backend.running)
        assert len(served.backend.aborted) == 1


def refused(served: HttpServed, path: str = "/v1/responses", **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught, opened(served, path, **options):
        pytest.fail("it was opened")
    response = caught.value.response
    assert response.headers["x-request-id"].startswith("req_")
    return response.status_code, json.loads(response.body)["error"]["code"]


def test_keys_hosts_and_origins_are_checked_as_for_http(over: Over, reply: Reply) -> None:
    """CORS does not hold for a WebSocket: any page could open one on its reader's machine."""
    own = {"origin": "http://{address}"}
    with over(reply("Hello"), cors_origins="https://mine.example") as served:
        assert refused(served, origin="https://attacker.example") == (403, "origin_not_allowed")
        assert refused(served, origin="null") == (403, "origin_not_allowed")
        assert refused(served, origin="http://127.0.0.1:1") == (403, "origin_not_allowed")
        cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "websocket"}
        assert refused(served, additional_headers=cross) == (403, "origin_not_allowed")
        host, port = served.address.split(":")
        rebound = socket.create_connection((host, int(port)))
        with pytest.raises(InvalidStatus) as caught, connect("ws://attacker.example/v1/responses", sock=rebound):
            pytest.fail("it was opened")
        assert json.loads(caught.value.response.body)["error"]["code"] == "host_not_allowed"
        for path in ("/v1/models", "/", "/v1/responses/"):
            assert refused(served, path) == (400, "upgrade_not_supported")
        for origin in ("https://mine.example", own["origin"].format(address=served.address)):
            with opened(served, origin=origin) as page:
                assert create(page)[-1]["type"] == "response.completed"
    with over(reply("Hello"), api_key="one") as served:
        with pytest.raises(InvalidStatus) as caught, opened(served):
            pytest.fail("it was opened")
        assert caught.value.response.status_code == 401
        assert refused(served, additional_headers={"authorization": "Bearer two"}) == (401, "invalid_api_key")
        with opened(served, additional_headers={"authorization": "Bearer one"}) as program:
            assert create(program)[-1]["type"] == "response.completed"


def test_a_removed_key_ends_the_use_of_its_connections(
    over: Over, reply: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection outlived its key for as long as its client wanted."""
    monkeypatch.setattr(auth, "RELOAD_INTERVAL_S", 0.0)
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    headers = {"authorization": "Bearer one"}
    with over(reply("Hello"), api_key_file=str(keys)) as served, opened(served, additional_headers=headers) as peer:
        assert create(peer)[-1]["type"] == "response.completed"
        keys.write_text("another\n")
        (error,) = create(peer)
        assert error["status"] == 401 and error["error"]["code"] == "invalid_api_key"


def test_connections_and_requests_are_limited(over: Over, reply: Reply) -> None:
    with over(reply("Hello"), max_websockets=2, rate_limit_rpm=2) as served:
        with opened(served) as peer:
            assert refused(served) == (429, "rate_limit_exceeded")  # of two, one is a client's share
            ends = [create(peer)[-1] for _ in range(3)]
            assert [end["type"] for end in ends] == ["response.completed", "response.completed", "error"]
            assert ends[-1]["status"] == 429 and "retry-after" in ends[-1]["error"]["headers"]
        wait_for(lambda: _opens(served))
    with over(reply("Hello"), max_websockets=0) as served:
        assert refused(served) == (400, "upgrade_not_supported")
    small = over(reply("Hello"), max_pending_requests=1, max_pending_bytes=9000, max_body_bytes=4000)
    with small as served, opened(served) as peer:
        assert create(peer)[-1]["type"] == "response.completed"
        peer.send("x" * 4001)
        with pytest.raises(ConnectionClosed) as closed:
            peer.recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def _opens(served: HttpServed) -> bool:
    try:
        with opened(served):
            return True
    except InvalidStatus:
        return False


def test_incomplete_messages_of_all_connections_are_bounded(over: Over, reply: Reply) -> None:
    """Each connection held as much as the longest message may have."""
    bounded = over(reply("Hello"), max_pending_bytes=1 << 20, max_body_bytes=1 << 20, max_websockets=12)
    with bounded as served, opened(served) as first, opened(served) as second:
        half = "x" * 600_000

        def send_the_other() -> None:
            assert first.ping().wait(20)  # the server has read what was sent before
            with pytest.raises(ConnectionClosed) as closed:
                second.send(_then_check(half, lambda: second.recv(timeout=20)))
            # What the server did not read any more may reset the connection before its reason arrives.
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1013

        first.send(_then_check(half, send_the_other))
        assert answer(first)[-1]["status"] == 400  # its message is complete now, and no JSON
        with opened(served) as third:
            assert create(third)[-1]["type"] == "response.completed"


def test_a_message_in_too_many_fragments_is_refused(over: Over, reply: Reply) -> None:
    """Each of 16 million fragments of a byte was an object of its own."""
    with over(reply("Hello")) as served, opened(served) as peer:
        message = json.dumps({"type": "response.create", "model": MODEL, "input": "Hi"})
        peer.send(iter(message))
        assert answer(peer)[-1]["type"] == "response.completed"
        with pytest.raises(ConnectionClosed) as closed:
            peer.send(iter("x" * 2000))
            peer.recv(timeout=20)
        # What the server did not read any more may reset the connection before its reason arrives.
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


def _then_check(text: str, check: Callable[[], object]) -> Iterator[str]:
    yield text
    check()
    yield ""


def test_a_server_that_ends_completes_the_reply_and_closes(over: Over, reply: Reply) -> None:
    script = HeldScript(reply("Hello"), 1)
    with over(script.pieces) as served, opened(served) as idle, opened(served) as busy:
        busy.send(json.dumps({"type": "response.create", "model": MODEL, "input": "Hi"}))
        wait_for(lambda: len(served.backend.running) == 1)
        served.server.should_exit = True
        for peer in (idle, busy):
            if peer is busy:
                script.release()
                assert answer(busy)[-1]["type"] == "response.completed"
            with pytest.raises(ConnectionClosed) as closed:
                peer.recv(timeout=20)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
