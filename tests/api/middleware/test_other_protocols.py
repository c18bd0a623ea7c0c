"""HTTP as other clients speak it, over real sockets: offers of HTTP/2, compressed bodies, HTTP/1.0, wrong paths."""

import asyncio
import gzip
import json
import tracemalloc
import zlib

import pytest
import zstandard

from tests.api.conftest import MODEL, Serve
from tests.api.middleware.test_http_protocol import Peer, chat_request, peer, reply_to

__all__ = ["peer"]
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).encode()
OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
WITH_LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
RAW = zlib.compressobj(wbits=-15)
CODINGS = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY[:20]) + gzip.compress(BODY[20:]),
    "deflate": zlib.compress(BODY),
    "Deflate": RAW.compress(BODY) + RAW.flush(),
    "zstd": zstandard.compress(BODY),
    "identity": BODY,
    "gzip, zstd": zstandard.compress(gzip.compress(BODY)),
}


def compressed(coding: str, body: bytes) -> bytes:
    return HEAD + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (coding.encode(), len(body)) + body


@pytest.mark.parametrize("pause", [False, True], ids=["same packet", "second packet"])
@pytest.mark.parametrize(
    "rest",
    [WITH_LENGTH + BODY, b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)],
    ids=["length", "chunked"],
)
async def test_an_offer_of_http_2_is_ignored_and_the_body_read(peer: Peer, rest: bytes, pause: bool) -> None:
    """Every JDK and Ktor client makes it over plain HTTP; the parser took the body for HTTP/2 and dropped it."""
    head, body = (HEAD + OFFER + rest).split(b"\r\n\r\n", 1)
    peer[1].write(head + b"\r\n\r\n")
    if pause:
        await peer[1].drain()
        await asyncio.sleep(0.1)
    status, _, reply = await reply_to(peer, body)
    assert status == 200 and reply["choices"][0]["message"]["content"] == "Hi"
    assert (await reply_to(peer, HEAD + OFFER + WITH_LENGTH + BODY))[0] == 200  # the connection goes on
    assert (await reply_to(peer, chat_request()))[0] == 200


async def test_an_offer_in_pieces_of_one_byte(peer: Peer) -> None:
    sent = HEAD + OFFER + WITH_LENGTH + BODY
    for place in range(len(sent) - 1):
        peer[1].write(sent[place : place + 1])
        await asyncio.sleep(0)
    assert (await reply_to(peer, sent[-1:]))[0] == 200


@pytest.mark.parametrize(
    "offer",
    [
        b"connection: Upgrade\r\nupgrade: h2c, websocket\r\n",
        b"connection: Upgrade\r\nupgrade: websocket, h2c\r\n",
        b"connection: Upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\n",
        b"connection: Upgrade\r\nupgrade: websocket\r\nupgrade: h2c\r\n",
        b"connection: Upgrade\r\nconnection: HTTP2-Settings\r\nupgrade: h2c\r\n",
        b"connection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n",
        b"connection: upgrade\r\nupgrade: TLS/1.0, HTTP/2.0\r\n",
    ],
    ids=["h2c, websocket", "websocket, h2c", "two lines", "two lines turned", "two options", "websocket", "others"],
)
@pytest.mark.parametrize("pause", [False, True], ids=["same packet", "second packet"])
async def test_any_offer_beside_a_body_is_ignored_and_the_body_read(peer: Peer, offer: bytes, pause: bool) -> None:
    """`websocket` among several offers, in the last line of them, lost the body."""
    peer[1].write(HEAD + offer + WITH_LENGTH)
    if pause:
        await peer[1].drain()
        await asyncio.sleep(0.1)
    status, _, reply = await reply_to(peer, BODY)
    assert status == 200 and reply["choices"][0]["message"]["content"] == "Hi"
    assert (await reply_to(peer, HEAD + offer + WITH_LENGTH + BODY))[0] == 200  # the connection goes on


async def test_an_offer_without_a_body_is_ignored(peer: Peer) -> None:
    status, _, _ = await reply_to(peer, b"GET /health HTTP/1.1\r\nhost: x\r\n" + OFFER + b"\r\n")
    assert status == 200


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_body_is_decoded(peer: Peer, coding: str) -> None:
    """A 400 "could not parse" said nothing of the coding."""
    status, _, reply = await reply_to(peer, compressed(coding, CODINGS[coding]))
    assert status == 200, reply
    assert reply["choices"][0]["message"]["content"] == "Hi"


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, br", "gzip, gzip, gzip, gzip"])
async def test_another_coding_is_refused_by_name(peer: Peer, coding: str) -> None:
    status, headers, reply = await reply_to(peer, compressed(coding, BODY))
    assert (status, reply["error"]["code"]) == (415, "unsupported_content_encoding")
    assert f"'{coding.split(', ')[-1] if 'br' in coding else coding}'" in reply["error"]["message"]
    assert headers["accept-encoding"] == "gzip, deflate, zstd"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_a_body_that_is_not_of_its_coding_is_refused(peer: Peer, coding: str) -> None:
    status, _, reply = await reply_to(peer, compressed(coding, BODY))
    assert (status, reply["error"]["code"]) == (400, "invalid_content_encoding")


@pytest.mark.parametrize("coding", [coding for coding in CODINGS if coding != "identity"])
@pytest.mark.parametrize("change", ["cut short", "cut in its first bytes", "followed by other bytes"])
async def test_a_damaged_body_is_refused_for_its_coding(peer: Peer, coding: str, change: str) -> None:
    """A body in zstd that was cut short was read as JSON that cannot be parsed."""
    whole = CODINGS[coding]
    damaged = {
        "cut short": whole[:-5],
        "cut in its first bytes": whole[:6],
        "followed by other bytes": whole + b"garbage",
    }
    status, _, reply = await reply_to(peer, compressed(coding, damaged[change]))
    assert (status, reply["error"]["code"]) == (400, "invalid_content_encoding"), reply


async def test_a_body_of_several_frames_is_decoded(peer: Peer) -> None:
    halves = zstandard.compress(BODY[:20]) + zstandard.compress(BODY[20:])
    assert (await reply_to(peer, compressed("zstd", halves)))[0] == 200
    status, _, reply = await reply_to(peer, compressed("zstd", zstandard.compress(b"") * 5000 + halves))
    assert (status, reply["error"]["code"]) == (400, "invalid_content_encoding")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "gzip, gzip"])
async def test_a_bomb_is_refused_while_it_is_inflated(peer: Peer, coding: str) -> None:
    """1 MB of zeros for each KB sent: the limit on bodies counts what they become."""
    bomb = bytes(200 << 20)
    for one in coding.split(", "):
        bomb = zstandard.compress(bomb) if one == "zstd" else (gzip if one == "gzip" else zlib).compress(bomb, 1)
    sent = compressed(coding, bomb[:900_000])
    tracemalloc.start()
    try:
        status, _, reply = await reply_to(peer, sent)
        _, largest_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, reply["error"]["code"]) == (413, "request_too_large")
    assert largest_bytes < 24 << 20, "it was inflated first"


async def test_a_stream_for_http_1_0_has_no_transfer_coding(peer: Peer) -> None:
    """Old proxies read the sizes of the chunks as part of the events."""
    body = json.dumps({**json.loads(BODY), "stream": True}).encode()
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")
    peer[1].write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    received = (await asyncio.wait_for(peer[0].read(), 20)).decode()
    head_text, _, events = received.partition("\r\n\r\n")
    assert "transfer-encoding" not in head_text.lower()
    assert events.startswith("data: {") and events.endswith("data: [DONE]\n\n")


async def test_a_whole_reply_for_http_1_0(peer: Peer) -> None:
    status, _, reply = await reply_to(peer, HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + WITH_LENGTH + BODY)
    assert status == 200 and reply["choices"][0]["message"]["content"] == "Hi"


async def test_a_wrong_method_is_told_what_is_served(serve: Serve) -> None:
    """A base URL without a path is a POST to `/`."""
    async with serve() as served:
        for method, path in (("POST", "/"), ("GET", "/v1/chat/completions"), ("DELETE", "/v1/models")):
            answer = await served.http.request(method, path)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (405, "method_not_allowed")
            assert f"{method} on {path}." in error["message"] and "POST /v1/chat/completions" in error["message"]
            assert ("base URL" in error["message"]) == (path == "/")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "POST /v1/chat/completions"),
        ("/v1/v1/chat/completions", "POST /v1/chat/completions"),
        ("/api/v1/models", "GET /v1/models"),
        ("/v1/embeddings", None),
    ],
)
async def test_a_wrong_path_is_told_the_right_one(serve: Serve, path: str, hint: str | None) -> None:
    """SDKs show a 404 as "model not found": the message is all that leads to the base URL."""
    async with serve() as served:
        answer = await served.http.post(path, json={})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "unknown_url")
    assert f"Invalid URL (POST {path})" in error["message"]
    assert "POST /v1/chat/completions" in error["message"]
    assert (f"Did you mean {hint}? The base URL ends with /v1." in error["message"]) == (hint is not None)
