"""Engines that cannot be used are told in one line and taken out; requests go elsewhere."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

import httpx
import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from server.backends.protocol import PATH, PROTOCOL, FromRemote, OtherLoad, decode_requests, encode
from server.checkpoint.fingerprint import Fingerprint
from server.errors import RequestFailed
from server.messages import Constraint, Delta, Failed, Pulse, Sampling, StageTime, StepTrace, TokenLogprob
from tests.backends.remote_engines import (
    KEY,
    MODEL,
    READY,
    WELCOME,
    counting,
    foreign_server,
    ids_of,
    routing,
    running_engine,
    say,
    states,
    until,
    use,
)

Handle = Callable[[ServerConnection], Awaitable[None]]


def welcomes(**changes: object) -> Handle:
    """A server that greets like this and then says nothing."""

    async def handle(connection: ServerConnection) -> None:
        await say(connection, msgspec.structs.replace(WELCOME, **changes))
        await connection.wait_closed()

    return handle


def sends(frame: str | bytes) -> Handle:
    """A server whose first frame this is."""

    async def handle(connection: ServerConnection) -> None:
        await connection.send(frame)
        await connection.wait_closed()

    return handle


def answers(write: Callable[[str], object]) -> Handle:
    """A server that answers the first request with one frame."""

    async def handle(connection: ServerConnection) -> None:
        await say(connection, WELCOME)
        frame = await connection.recv()
        assert isinstance(frame, bytes)
        (request,) = decode_requests(frame)
        written = write(request.id)
        await connection.send(written if isinstance(written, bytes) else encode(written))
        await connection.wait_closed()

    return handle


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        (welcomes(fingerprint=Fingerprint("other", "vocabulary")), "its config.json or --merge-adapter differs"),
        (welcomes(fingerprint=Fingerprint("config", "other")), "its vocabulary differs"),
        (welcomes(fingerprint=Fingerprint("config", "vocabulary", "other")), "its weights differs"),
        (welcomes(protocol=0), f"speaks protocol 0, this server {PROTOCOL}: run the same version"),
        (sends(f'{{"protocol": {PROTOCOL}}}'), "no toolwire engine of this version"),
        (sends(b"\xff\xfe"), "no toolwire engine of this version"),
        (sends("hello"), "no toolwire engine of this version"),
        (welcomes(ready=msgspec.structs.replace(READY, max_model_len=0)), "of a size that there is not"),
    ],
)  # fmt: skip
async def test_an_engine_that_cannot_be_used_is_taken_out(
    handle: Handle, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "toolwire.engine")
    async with (
        running_engine() as engine,
        foreign_server(handle) as foreign,
        routing(engine.url, foreign) as backend,
    ):
        await until(lambda: states(backend)[foreign] == "refused")
        (line,) = [one.getMessage() for one in caplog.records if foreign in one.getMessage()]
        assert words in line and "\n" not in line
        assert await ids_of(backend, counting("r", 5, 2)) == [6, 7]


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda id: b"garbage", "no message of this protocol"),
        (lambda id: msgspec.json.encode([1]), "no message of this protocol"),
        (lambda id: [Delta(id, cached=0), Delta(id, [100_000])], "outside of its vocabulary"),
        (lambda id: [Delta(id, cached=0), Delta(id, [-1])], "outside of its vocabulary"),
        (lambda id: [Delta(id, [1, 2, 3, 4, 5, 6])], "more tokens than"),
    ],
)  # fmt: skip
async def test_garbage_ends_no_reply(write: Callable[[str], object], words: str) -> None:
    """Ids that are none would break the decoding of the reply."""
    async with foreign_server(answers(write)) as foreign, routing(foreign) as backend:
        reply = asyncio.create_task(ids_of(backend, counting("r", 5, 5)))
        await until(lambda: states(backend)[foreign] == "refused")
        assert words in backend.engines()[0].detail
        async with running_engine() as engine:
            use(backend, {foreign: False, engine.url: False})
            assert await reply == [6, 7, 8, 9, 10]


SCORED = Sampling(max_tokens=5, num_logprobs=1)
SCORE = TokenLogprob(6, -0.5, ((6, -0.5),))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda id: Delta(id, [6, 7], [SCORE]), "1 logprobs for 2 tokens"),
        (lambda id: Delta(id, [6]), "0 logprobs for 1 tokens"),
        (lambda id: Delta(id, [6], [TokenLogprob(6, -0.5, ((-7, -0.5),))]), "logprobs that are none"),
        (lambda id: Delta(id, [6], [TokenLogprob(100_000, -0.5)]), "logprobs that are none"),
        (lambda id: Delta(id, [6], [TokenLogprob(6, math.nan)]), "logprobs that are none"),
        (lambda id: Delta(id, prompt_logprobs=[SCORE]), "logprobs of the prompt"),
        (lambda id: Delta(id, cached=-5), "of a prompt cached"),
        (lambda id: Delta(id, cached=2), "of a prompt cached"),
        (lambda id: Delta(id, [6], [SCORE], forced=2), "forced tokens"),
        (lambda id: Delta(id, stage_times=(StageTime("arrived", math.nan),)), "times"),
        (lambda id: Delta(id, [6], [SCORE], trace=StepTrace(1, 1, (3,))), "trace"),
        (lambda id: Failed(id, "queue_full", "busy", math.nan), "time of a retry"),
        (lambda id: Pulse(1.0, -1, 0, 1, 1, 0), "heartbeat"),
        (lambda id: Pulse(math.nan, 0, 0, 1, 1, 0), "heartbeat"),
        (lambda id: OtherLoad(-1_000_000), "heartbeat"),
    ],
)  # fmt: skip
async def test_what_cannot_be_true_ends_no_reply(
    write: Callable[[str], FromRemote], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failed every request there by an error of this server, or drew all requests to that engine."""
    caplog.set_level(logging.WARNING, "toolwire.engine")
    request = msgspec.structs.replace(counting("r", 5, 5), sampling=SCORED)
    async with foreign_server(answers(lambda id: [write(id)])) as foreign, routing(foreign) as backend:
        reply = asyncio.create_task(ids_of(backend, request))
        await until(lambda: states(backend)[foreign] == "refused")
        assert words in backend.engines()[0].detail
        async with foreign_server(answers(scored)) as other:
            use(backend, {foreign: False, other: False})
            assert await reply == [6, 7, 8, 9, 10]
    assert not any("\n" in one.getMessage() or one.exc_info for one in caplog.records)


def scored(id: str) -> object:
    return [Delta(id, [6, 7, 8, 9, 10], [SCORE] * 5, finish="length")]


async def test_no_more_of_an_engine_s_words_is_passed_on_than_a_client_reads() -> None:
    def write(id: str) -> object:
        return [Failed(id, "request_failed", "x" * 1_000_000)]

    async with foreign_server(answers(write)) as foreign, routing(foreign) as backend:
        with pytest.raises(RequestFailed) as raised:
            await ids_of(backend, counting("r", 5, 5))
    assert len(str(raised.value)) < 5000


async def test_ids_of_no_request_are_ignored() -> None:
    def write(id: str) -> object:
        return [Delta("unknown", [1]), Delta(id, cached=0), Delta(id, [6, 7], finish="length")]

    async with foreign_server(answers(write)) as foreign, routing(foreign) as backend:
        assert await ids_of(backend, counting("r", 5, 2)) == [6, 7]


async def test_times_of_another_machine_are_brought_to_the_clock_of_this_one() -> None:
    """Monotonic clocks begin anywhere: spans would lie years apart."""
    loop = asyncio.get_running_loop()
    ours_s = loop.time()

    def write(id: str) -> object:
        times = (StageTime("arrived", 5_000_000.5), StageTime("admitted", 5_000_001.5))
        return [Pulse(5_000_002.0, 1, 0, 1, 1, 0), Delta(id, [6], finish="length", stage_times=times)]

    async def handle(connection: ServerConnection) -> None:
        await say(connection, msgspec.structs.replace(WELCOME, clock_s=5_000_000.0))
        await answers_only(connection, write)

    async with foreign_server(handle) as foreign, routing(foreign) as backend:
        deltas = [delta async for delta in backend.generate(counting("r", 5, 1))]
        arrived, admitted = deltas[0].stage_times
        assert ours_s <= arrived.time_s - 0.5 <= loop.time()
        assert admitted.time_s - arrived.time_s == pytest.approx(1.0)


async def answers_only(connection: ServerConnection, write: Callable[[str], object]) -> None:
    frame = await connection.recv()
    assert isinstance(frame, bytes)
    await connection.send(encode(write(decode_requests(frame)[0].id)))
    await connection.wait_closed()


@pytest.mark.parametrize("status", [200, 302, 404])
async def test_an_http_server_that_is_no_engine_gets_no_key_elsewhere(status: int) -> None:
    """A redirect would carry the key to whatever address it names."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readline()).decode())
        location = f"http://127.0.0.1:{port}/elsewhere"
        writer.write(f"HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, running_engine() as engine, routing(engine.url, f"http://127.0.0.1:{port}") as backend:
        await until(lambda: bool(asked))
        await asyncio.sleep(0.1)
        assert await ids_of(backend, counting("r", 5, 2)) == [6, 7]
    assert asked and all(f"GET {PATH}" in line for line in asked)


async def test_a_name_that_is_too_long_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """It was logged with a traceback, as a fault of this server."""
    long = f"http://{'a' * 300}:80"
    async with running_engine() as engine, routing(engine.url, long) as backend:
        await until(lambda: states(backend)[long] == "unreachable")
    assert not any(one.exc_info for one in caplog.records)


async def test_the_engine_s_own_routes_need_its_key_but_for_health() -> None:
    async with running_engine() as engine, httpx.AsyncClient(base_url=engine.url) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/elsewhere")).status_code == 404
        await until(lambda: engine.backend._pulse is not None)
        allowed = await client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"})
        assert allowed.text.startswith("running ")
        for header in ("", "Bearer", f"Basic {KEY}", f"Bearer {KEY}x"):
            reply = await client.get(PATH, headers={"Authorization": header})
            assert reply.status_code == 401, header


@pytest.mark.parametrize("frame", [b"garbage", b"\x91\x93\xa8generate", "text"])
async def test_a_client_that_sends_garbage_is_cut_off_and_others_are_not(frame: bytes | str) -> None:
    async with running_engine() as engine, routing(engine.url) as backend:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with connect(f"ws{engine.url.removeprefix('http')}{PATH}", additional_headers=headers) as client:
            await client.recv()
            await client.send(frame)
            with pytest.raises(ConnectionClosed):
                while True:
                    await client.recv()
        assert await ids_of(backend, counting("r", 5, 2)) == [6, 7]


async def test_the_api_process_takes_the_weights_of_its_first_engine() -> None:
    """It has none itself; then an engine with others is another model."""
    other, unknown = (msgspec.structs.replace(MODEL, weights=weights) for weights in ("other", ""))
    async with (
        running_engine() as engine,
        running_engine(other) as second,
        routing(engine.url, expected=unknown) as backend,
    ):
        use(backend, {engine.url: False, second.url: False})
        await until(lambda: states(backend)[second.url] == "refused")


async def test_a_request_that_cannot_be_encoded_fails_alone() -> None:
    """In the task that sends for all requests, it would end that one, and every later request would wait for ever."""
    odd = msgspec.structs.replace(counting("odd", 5, 2), constraint=Constraint("\ud800"))
    async with running_engine() as engine, routing(engine.url) as backend, asyncio.timeout(5):
        with pytest.raises(UnicodeEncodeError):
            await ids_of(backend, odd)
        assert await ids_of(backend, counting("next", 5, 2)) == [6, 7]
