"""Several engines behind one backend: where requests go, and what becomes of them when an engine is lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection

from server.backends import routing as routing_module
from server.backends.protocol import decode_requests, encode
from server.backends.routing import RoutingBackend
from server.errors import CannotStart, EngineDied, QueueFull, RequestFailed, Starting, Unsupported
from server.messages import Delta, Failed, Generate
from tests.backends.remote_engines import (
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
from tests.backends.test_engine_list import write

LONG = tuple(range(10, 210))  # a prompt of several blocks


def routed(backend: RoutingBackend) -> list[int]:
    return [one.routed for one in backend.engines()]


async def test_replies_of_many_requests_do_not_mix() -> None:
    async with running_engine() as one, running_engine() as other, routing(one.url, other.url) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        replies = await asyncio.gather(*(ids_of(backend, counting(f"r{i}", 100 * (i + 1), 5)) for i in range(20)))
        assert replies == [[100 * (i + 1) + k for k in range(1, 6)] for i in range(20)]
        assert sorted(routed(backend)) == [10, 10]


async def test_two_servers_may_use_the_same_ids_at_one_engine() -> None:
    """Ids are unique within an API process only."""
    async with running_engine() as engine, routing(engine.url) as one, routing(engine.url) as other:
        replies = await asyncio.gather(ids_of(one, counting("r", 100, 5)), ids_of(other, counting("r", 200, 5)))
        assert list(replies) == [[101, 102, 103, 104, 105], [201, 202, 203, 204, 205]]


async def test_the_requests_of_another_server_count_as_load() -> None:
    """Each API process would take the same engine for idle."""
    async with (
        running_engine() as one,
        running_engine() as other,
        routing(one.url) as first,
        routing(one.url, other.url) as second,
    ):
        await until(lambda: set(states(second).values()) == {"up"})
        running = [asyncio.create_task(ids_of(first, counting(f"r{k}", 1000 * (k + 5), 500))) for k in range(4)]
        await until(lambda: second._engines[one.url].load == 4)
        await asyncio.gather(*(ids_of(second, counting(f"s{k}", 100, 2)) for k in range(3)))
        assert routed(second) == [0, 3]
        for task in running:
            task.cancel()


async def test_a_conversation_stays_where_its_prefix_is() -> None:
    async with running_engine() as one, running_engine() as other, routing(one.url, other.url) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        await ids_of(backend, counting("round 1", 300, 40, LONG))
        await ids_of(backend, counting("another", 300, 2, LONG[100:]))
        reply = range(301, 341)  # is in the engine's cache too, and begins the next prompt
        await ids_of(backend, counting("round 2", 900, 2, (*LONG, 300, *reply, *LONG)))
        assert sorted(routed(backend)) == [1, 2]
        assert backend.counts.known_tokens == (len(LONG) + 1 + len(reply)) // 32 * 32


async def test_closing_the_generator_aborts_in_the_engine() -> None:
    async with running_engine() as engine, routing(engine.url) as backend:
        deltas = backend.generate(counting("left", 10, 10_000))
        async for delta in deltas:
            if delta.token_ids:
                break
        await deltas.aclose()
        for _ in range(100):
            pulse = await engine.backend.health()
            if pulse.running == 0 and pulse.waiting == 1:  # the stand-in counts its aborts there
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the abort never reached the engine")


async def test_a_server_that_is_gone_leaves_nothing_running() -> None:
    """Its engine cannot know whether it will come back."""
    async with running_engine() as engine:
        async with routing(engine.url) as backend:
            reading = asyncio.create_task(ids_of(backend, counting("left", 10, 10_000)))
            await until(lambda: bool(engine.server._clients) and routed(backend) == [1])
            await asyncio.sleep(0.1)
            reading.cancel()
        await until(lambda: not engine.server._clients)
        assert (await engine.backend.health()).running in (0, 1)
        await until(lambda: not engine.backend._requests)


async def test_a_reply_goes_on_at_the_other_engine_when_its_engine_process_dies() -> None:
    """Every id written before is known here: a client sees a pause, not an error."""
    async with running_engine() as one, running_engine() as other, routing(one.url, other.url) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        assert await ids_of(backend, counting("cut", 1, 5)) == [2, 3, 4, 5, 6]
        assert dict(backend.counts.moved) == {"begun": 1}
        assert sorted(routed(backend)) == [1, 1]
        await until(lambda: set(states(backend).values()) == {"up"})  # it was started again


async def test_every_reply_goes_on_when_a_whole_engine_is_gone() -> None:
    async with running_engine() as one, routing(one.url) as backend:
        async with running_engine() as other:
            use(backend, {one.url: False, other.url: False})
            await until(lambda: set(states(backend).values()) == {"up"})
            replies = [asyncio.create_task(ids_of(backend, counting(f"r{i}", 1000 * (i + 5), 200))) for i in range(8)]
            await asyncio.sleep(0.3)
            assert sorted(routed(backend)) == [4, 4]
        assert await asyncio.gather(*replies) == [
            list(range(1000 * (i + 5) + 1, 1000 * (i + 5) + 201)) for i in range(8)
        ]
        assert backend.counts.moved["begun"] == 4


async def test_a_request_that_kills_two_engines_fails_alone() -> None:
    """Sent from engine to engine it would end all of them."""
    async with running_engine() as one, running_engine() as other, routing(one.url, other.url) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        beside = [asyncio.create_task(ids_of(backend, counting(f"beside {k}", k, 300))) for k in (1000, 2000)]
        await asyncio.sleep(0.1)
        with pytest.raises(RequestFailed, match="died 2 times"):
            await ids_of(backend, counting("deadly", 0, 1))
        assert await asyncio.gather(*beside) == [list(range(k + 1, k + 301)) for k in (1000, 2000)]


async def test_a_busy_engine_s_request_goes_elsewhere_and_the_last_refusal_is_the_client_s() -> None:
    """The stand-in refuses the prompt [2] everywhere."""
    async with running_engine() as one, running_engine() as other, routing(one.url, other.url) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        with pytest.raises(QueueFull) as refused:
            await ids_of(backend, counting("refused", 2, 1))
        assert refused.value.retry_after_s == 3.0
        assert routed(backend) == [1, 1]
        assert await ids_of(backend, counting("next", 5, 2)) == [6, 7]


async def welcomed(connection: ServerConnection) -> AsyncIterator[Generate]:
    """Welcome a server, and each request that it sends until it leaves."""
    await say(connection, WELCOME)
    while True:
        frame = await connection.recv()
        assert isinstance(frame, bytes)
        for message in decode_requests(frame):
            if isinstance(message, Generate):
                yield message


async def test_an_engine_that_was_too_busy_is_asked_again_when_the_other_one_is_lost() -> None:
    """The reply would wait for a third engine, and fail after a minute, beside one that is idle."""
    asked: list[Generate] = []

    async def busy_once(connection: ServerConnection) -> None:
        async for message in welcomed(connection):
            asked.append(message)
            ids = [one for one in (11, 12, 13) if one not in message.reply_ids]
            busy, reply = Failed(message.id, "queue_full", "full", 1.0), Delta(message.id, ids, finish="length")
            await connection.send(encode([busy if len(asked) == 1 else reply]))

    async def dies(connection: ServerConnection) -> None:
        await say(connection, WELCOME)
        frame = await connection.recv()
        assert isinstance(frame, bytes)
        (message,) = decode_requests(frame)
        await connection.send(encode([Delta(message.id, [11], cached=0)]))
        connection.transport.abort()

    async with foreign_server(busy_once) as busy, foreign_server(dies) as dying, routing(busy, dying) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        async with asyncio.timeout(5):
            assert await ids_of(backend, counting("r", 10, 3)) == [11, 12, 13]
    assert [one.reply_ids for one in asked] == [[], [11]]


async def test_a_reply_goes_on_where_it_is_supported_beside_an_engine_where_it_is_not() -> None:
    """A vLLM server cannot go on under a grammar; chosen for it, it ended the reply beside an engine that can."""

    async def refuses(connection: ServerConnection) -> None:
        async for message in welcomed(connection):
            await connection.send(encode([Failed(message.id, "unsupported", "no grammars")]))

    async with foreign_server(refuses) as refusing, running_engine() as able, routing(refusing, able.url) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        replies = await asyncio.gather(*(ids_of(backend, counting(f"r{i}", 100 * (i + 1), 2)) for i in range(4)))
        assert replies == [[100 * (i + 1) + 1, 100 * (i + 1) + 2] for i in range(4)]
    async with foreign_server(refuses) as refusing, routing(refusing) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        with pytest.raises(Unsupported):
            await ids_of(backend, counting("r", 10, 3))


async def test_a_reply_that_only_busy_engines_could_go_on_with_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was sent to the busy engine every second for ever: being placed there began the minute again."""
    monkeypatch.setattr(routing_module, "NO_ENGINE_S", 1.5)
    asked: list[Generate] = []

    async def busy_but_once(connection: ServerConnection) -> None:
        async for message in welcomed(connection):
            asked.append(message)
            if len(asked) == 1:
                await connection.send(encode([Delta(message.id, [11], cached=0)]))
                connection.transport.abort()
            else:
                await connection.send(encode([Failed(message.id, "queue_full", "full", 1.0)]))

    async with foreign_server(busy_but_once) as busy, routing(busy) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        async with asyncio.timeout(20):
            with pytest.raises(EngineDied, match="no engine has taken the request"):
                await ids_of(backend, counting("r", 10, 3))
    assert len(asked) > 2 and backend.counts.moved["not begun"] == 0


async def test_an_engine_that_ends_takes_nothing_new_and_finishes_what_it_has() -> None:
    async with running_engine() as one, running_engine() as other, routing(one.url, other.url) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        replies = [asyncio.create_task(ids_of(backend, counting(f"r{i}", 1000 * (i + 5), 60))) for i in range(4)]
        await asyncio.sleep(0.1)
        draining = asyncio.create_task(one.server.drain(10))
        await until(lambda: states(backend)[one.url] == "draining")
        later = await asyncio.gather(*(ids_of(backend, counting(f"later {i}", 100, 2)) for i in range(4)))
        assert later == [[101, 102]] * 4
        await draining
        assert [len(await reply) for reply in replies] == [60] * 4
        assert routed(backend) == [2, 6]
        assert not backend.counts.moved


async def test_what_still_runs_when_an_engine_ends_goes_on_elsewhere() -> None:
    async with running_engine() as one, running_engine() as other, routing(one.url, other.url) as backend:
        await until(lambda: set(states(backend).values()) == {"up"})
        replies = [asyncio.create_task(ids_of(backend, counting(f"r{i}", 1000 * (i + 5), 200))) for i in range(6)]
        await asyncio.sleep(0.2)
        await one.server.drain(0.1)
        await one.server.close()
        assert [len(await reply) for reply in replies] == [200] * 6
        assert backend.counts.moved["begun"] == 3


async def test_engines_are_added_drained_and_removed_while_replies_are_written(tmp_path: Path) -> None:
    path = tmp_path / "engines"
    async with running_engine() as one, running_engine() as other:
        write(path, f"{one.url}\n")
        async with routing(file=str(path)) as backend:
            reply = asyncio.create_task(ids_of(backend, counting("long", 1000, 400)))
            await asyncio.sleep(0.1)
            write(path, f"{one.url} drain\n{other.url}\n")
            await until(lambda: states(backend) == {one.url: "draining", other.url: "up"})
            assert await ids_of(backend, counting("new", 5, 2)) == [6, 7]
            assert routed(backend) == [1, 1]
            write(path, f"{other.url}\n")
            assert len(await reply) == 400
            await until(lambda: states(backend) == {other.url: "up"})
            assert not backend.counts.moved


async def test_without_any_engine_new_requests_are_refused_and_begun_ones_wait() -> None:
    async with running_engine() as engine, routing(engine.url) as backend:
        cut = asyncio.create_task(ids_of(backend, counting("cut", 1, 5)))
        await until(lambda: states(backend)[engine.url] == "unreachable")
        with pytest.raises(Starting):
            await ids_of(backend, counting("new", 5, 2))
        with pytest.raises(Starting):
            await backend.health()
        assert await cut == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("fault", ["silence", "cut"])
async def test_a_reply_goes_on_when_its_engine_stops_in_the_middle(fault: str) -> None:
    async def handle(connection: ServerConnection) -> None:
        await say(connection, WELCOME)
        frame = await connection.recv()
        assert isinstance(frame, bytes)
        (request,) = decode_requests(frame)
        await connection.send(encode([Delta(request.id, cached=0), Delta(request.id, [6, 7])]))
        if fault == "cut":
            connection.transport.abort()
        await connection.wait_closed()

    async with foreign_server(handle) as foreign, routing(foreign, silence_s=2.5) as backend:
        cut = asyncio.create_task(ids_of(backend, counting("cut", 5, 5)))
        await until(lambda: bool(backend._routed) and backend._routed["cut"].one.reply_ids == [6, 7])
        use(backend, {foreign: True})  # it would write the same again
        async with running_engine() as engine:
            use(backend, {foreign: True, engine.url: False})
            assert await cut == [6, 7, 8, 9, 10]


async def test_the_server_starts_with_the_first_engine_that_is_ready() -> None:
    async with running_engine() as engine, routing("http://127.0.0.1:9", engine.url) as backend:
        assert states(backend) == {"http://127.0.0.1:9": "unreachable", engine.url: "up"}


async def test_a_start_where_no_engine_can_be_used_says_why_of_each() -> None:
    async with running_engine() as engine:
        with pytest.raises(CannotStart, match="--engine-key"):
            async with routing(engine.url, key="another"):
                pytest.fail("it has started")


async def test_closing_ends_every_reply() -> None:
    async with running_engine() as engine:
        async with routing(engine.url) as backend:
            reading = asyncio.create_task(ids_of(backend, counting("long", 10, 10_000)))
            await until(lambda: routed(backend) == [1])
        with pytest.raises(Exception, match="shutting down"):
            await reading


async def test_an_id_that_is_running_is_refused() -> None:
    async with running_engine() as engine, routing(engine.url) as backend:
        first = backend.generate(counting("r", 10, 1000))
        await anext(first)
        with pytest.raises(RequestFailed, match="running already"):
            await anext(backend.generate(counting("r", 10, 1000)))
        await first.aclose()


def test_seeds_are_given_before_an_engine_is_chosen() -> None:
    """Another engine would draw other numbers for the rest of the reply."""

    async def run() -> None:
        async with running_engine() as engine, routing(engine.url) as backend:
            seen: list[Generate] = []
            for name in ("a", "b"):
                reply = backend.generate(counting(name, 10, 5))
                await anext(reply)
                seen.append(backend._routed[name].one.message())
                with contextlib.suppress(StopAsyncIteration):
                    await reply.aclose()
            assert [one.sampling.seed for one in seen] == [0, 1]

    asyncio.run(run())
