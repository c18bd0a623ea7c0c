"""Hostile connections: ambiguous messages, messages without an end, clients that do not read, that drip, that leave."""

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks.crowd import crowd, slow_loris
from benchmarks.faults import send_malformed
from benchmarks.malformed import CHAT, Malformed, request_bytes, send_raw
from tests.hostile.scenario import Outcome, Scale, Scenario, chat_body, post, send_all
from tests.live import Live

HIDDEN = "/hidden-request"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTHS = (
    "Content-Length: 5", "Content-Length: +5", "Content-Length: 5, 5", "Content-Length: 0x5", "Content-Length : 5",
    "Content-Length: 5\r\nContent-Length: 6", " Content-Length: 5", "Content-Length: 99999999999999999999",
    "Content-Length:",
)  # fmt: skip
ENCODINGS = (
    "Transfer-Encoding: chunked", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding\t: chunked", "Transfer-Encoding:\x0bchunked", "Transfer-Encoding: identity",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x", "X: y\nTransfer-Encoding: chunked",
)  # fmt: skip
ALPHABET = b"\r\n\t :;,=\x00\x0b\x7f\x80\xff0123456789abcdefxPG/ "


def ambiguous(head: str) -> Malformed:
    """Return a message of which two readers may find different ends, with a second request in what may be its body."""
    raw = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n0\r\n\r\nGET {HIDDEN} HTTP/1.1\r\nHost: x\r\n\r\n"
    return Malformed("an ambiguous message", raw.encode("latin-1"), "none", half_close=True)


async def ambiguous_messages(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send every pair of a length and an encoding: what hides behind such a message must not be answered."""
    outcome = Outcome()
    pairs = [
        pair for both in itertools.product(LENGTHS, ENCODINGS) for pair in ("\r\n".join(both), "\r\n".join(both[::-1]))
    ]
    await send_all(server, map(ambiguous, pairs), outcome)
    if HIDDEN in server.output():
        outcome.faults.append("a request hidden in a body was answered")
    return outcome


def mutated(number: int, seed: int) -> Malformed:
    """Return message `number` of a seed: a valid one in which bytes were deleted, repeated, replaced or inserted."""
    rng = random.Random(f"{seed}/{number}")
    body = json.dumps(chat_body(max_tokens=1)).encode()
    chunked = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
    raw = bytearray(rng.choice((HEALTH, request_bytes(body), chunked + body + b"\r\n0\r\nTrailer: a\r\n\r\n")))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(raw), 200))
        end = at + rng.choice((1, 1, 2, 9))
        match rng.randrange(4):
            case 0:
                del raw[at:end]
            case 1:
                raw[at:at] = raw[at:end] * rng.choice((1, 2, 50))
            case 2:
                raw[at] = rng.choice(ALPHABET)
            case _:
                raw[at:at] = bytes(rng.choices(ALPHABET, k=rng.randint(1, 4)))
    return Malformed("a mutated message", bytes(raw), "none", half_close=True)


async def mutated_messages(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send mutated HTTP messages."""
    return await send_all(server, (mutated(number, seed) for number in range(scale.messages)), Outcome(), 16)


async def mutated_bodies(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send mutated JSON bodies, and every other kind of malformed request."""
    part = await send_malformed(server.url, scale.malformed, seed)
    return Outcome(scale.malformed, part.faults)


async def connect(server: Live) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to the server."""
    parts = urlsplit(server.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def endless_trailers(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send trailers without an end, as many short ones and as a long one."""
    outcome = Outcome()
    head = b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"

    async def send(first: bytes, piece: bytes) -> None:
        outcome.requests += 1
        _, writer = await connect(server)
        try:
            writer.write(head + first)
            for _ in range((scale.megabytes << 20) // len(piece)):
                writer.write(piece)
                await writer.drain()
            outcome.faults.append(f"{scale.megabytes} MiB of trailers were taken")
        except OSError:
            return  # the server closed the connection
        finally:
            writer.close()

    await asyncio.gather(send(b"", b"a:\r\n" * 10_000), send(b"a: ", b"x" * 40_000))
    return outcome


async def bytes_behind_replies(server: Live, scale: Scale, seed: int) -> Outcome:
    """Keep connections open with a byte behind a complete reply: the server must close them."""
    outcome = Outcome()
    requests = (
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n",
        request_bytes(b"{", length=1).replace(b"Connection: close\r\n", b""),
    )

    async def hold(number: int) -> None:
        outcome.requests += 1
        reader, writer = await connect(server)
        try:
            writer.write(requests[number % len(requests)])
            await reader.readuntil(b"\r\n\r\n")
            writer.write((b"\r\n", b"G", b"\n")[number // len(requests) % 3])
            await asyncio.wait_for(reader.read(-1), scale.wait_s)
        except TimeoutError:
            outcome.faults.append(f"a connection with a byte behind a reply stayed open for {scale.wait_s} s")
        except OSError:
            return
        finally:
            writer.close()

    await asyncio.gather(*map(hold, range(scale.connections)))
    return outcome


async def unread_replies(server: Live, scale: Scale, seed: int) -> Outcome:
    """Request long replies and read none of them for some seconds, then leave."""
    outcome = Outcome()
    whole = post("", chat_body(n=16, logprobs=True, top_logprobs=20, max_tokens=100)).raw
    tokens = post("", b'{"tokens": [' + b"1," * (3 << 19) + b"1]}", "/detokenize").raw
    stream = post("", chat_body(stream=True, max_tokens=2000, ignore_eos=True)).raw

    async def request(raw: bytes) -> None:
        outcome.requests += 1
        try:
            _, writer = await connect(server)
            writer.write(raw)
            await asyncio.wait_for(writer.drain(), 30)
            await asyncio.sleep(5)
            writer.transport.abort()
        except (OSError, TimeoutError):
            return

    await asyncio.gather(*(request(raw) for raw in [whole, stream] * (scale.connections // 20) + [tokens] * 8))
    return outcome


async def slow_clients(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send requests one byte a second beside clients of which 40 % disconnect early."""
    stop = asyncio.Event()
    sending = asyncio.create_task(slow_loris(server.url, scale.connections, stop))
    report = await crowd(server.url, 8, 3.0, seed)
    stop.set()
    await sending
    return Outcome(report.ends.total() + scale.connections, report.faults)


async def aborted_requests(server: Live, scale: Scale, seed: int) -> Outcome:
    """Reset connections at every point of a request and its reply."""
    outcome = Outcome()
    rng = random.Random(seed)
    raw = post("", chat_body(stream=True, max_tokens=200, ignore_eos=True)).raw
    plans = [
        (rng.randrange(len(raw)) if rng.random() < 0.3 else len(raw), rng.random() * 0.2)
        for _ in range(scale.crowd * 3)
    ]

    async def abort(sent: int, after_s: float) -> None:
        outcome.requests += 1
        _, writer = await connect(server)
        writer.write(raw[:sent])
        await asyncio.sleep(after_s)
        writer.transport.abort()

    for start in range(0, len(plans), 32):
        await asyncio.gather(*(abort(*plan) for plan in plans[start : start + 32]))
    return outcome


FOREIGN = (
    (b"Host: attacker.example", 403), (b"Host: x\r\nOrigin: http://attacker.example", 403),
    (b"Host: x\r\nSec-Fetch-Site: cross-site", 403), (b"", 400), (b"Host: x\r\nHost: y", 400),
    (b"Host: x\r\nSec-Fetch-Site: same-origin\r\nContent-Type: text/plain", 415), (b"Host: x@attacker.example", 0),
    (b"Host: 127.0.0.1.attacker.example", 403),
)  # fmt: skip


async def web_pages(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send what a foreign web page makes a browser send; every such request is refused."""
    outcome = Outcome()
    body = json.dumps(chat_body()).encode()
    for headers, status in FOREIGN:
        outcome.requests += 1
        lines = [b"POST " + CHAT.encode() + b" HTTP/1.1", b"Connection: close", b"Content-Length: %d" % len(body)]
        raw = b"\r\n".join([*lines, *([headers] if headers else []), b"", body])
        reply = await send_raw(server.url, Malformed("a web page", raw))
        if reply.status != status if status else reply.status < 400:
            outcome.faults.append(f"{headers!r} was answered {reply.status}")
    return outcome


def log_paths() -> Iterator[bytes]:
    """Paths and headers that would forge a log line or command a terminal."""
    for text in (
        b"/%1b]52;c;cm0gLXJmIH4=%07", b"/\x1b[2J", b"/%0d%0aINFO forged line", b"/x status=200 [req_1]",
        b"/%e2%80%a8INFO", b"/%c2%9b31m", b"/%e2%80%ae", b"/" + b"a" * 30_000, b"/%7f%08", b"/?key=sk-forged%0a",
    ):  # fmt: skip
        for method in (b"GET", b"POST", b"\x1b[31mGET"):
            yield method + b" " + text + b" HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\x1b[2Jb\r\nConnection: close\r\n\r\n"


async def log_lines(server: Live, scale: Scale, seed: int) -> Outcome:
    """Send what forges log lines or commands terminals; the log must hold printable characters and no such line."""
    outcome = Outcome()
    before = len(server.output())
    requests = [Malformed("a path", raw, "none") for raw in log_paths()]
    content = "\x1b]52;c;x\x07\u2028INFO forged line"
    bodies = [chat_body(model=content), chat_body(user=content), chat_body(messages=[{"role": content, "content": ""}])]
    await send_all(server, [*requests, *(post("a body", body, tolerance="none") for body in bodies)], outcome)
    written = server.output()[before:]
    if unprintable := sorted({char for char in written if not char.isprintable() and char != "\n"}):
        outcome.faults.append(f"the log holds {unprintable}")
    if any(line.startswith(("INFO forged", "forged")) for line in written.splitlines()):
        outcome.faults.append("a log line was forged")
    if any(len(line) > 4000 for line in written.splitlines()):
        outcome.faults.append("a log line has more than 4000 characters")
    return outcome


CONNECTIONS = (
    Scenario("mutated HTTP messages", mutated_messages),
    Scenario("ambiguous HTTP messages", ambiguous_messages),
    Scenario("mutated JSON bodies", mutated_bodies),
    Scenario("trailers without an end", endless_trailers),
    Scenario("bytes behind replies", bytes_behind_replies, is_short=False),
    Scenario("replies nobody reads", unread_replies, is_short=False),
    Scenario("slow clients", slow_clients),
    Scenario("aborted requests", aborted_requests),
    Scenario("requests of web pages", web_pages),
    Scenario("log and terminal injection", log_lines),
)
