"""LocalBackend over a real process and a real socket; a stand-in engine counts instead of running a model."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from server.api.errors import error_of
from server.backends.engine_process import EngineProcess
from server.backends.local import EngineCommand, LocalBackend, backoff_s
from server.errors import CannotStart, EngineDied, QueueFull, RequestFailed, Starting
from server.messages import Generate, Progress, Sampling

STAND_IN = (sys.executable, "-m", "tests.backends.stand_in_engine")
Start = Callable[..., Coroutine[Any, Any, LocalBackend]]


@pytest.fixture
async def backend() -> AsyncIterator[LocalBackend]:
    backend = LocalBackend(EngineCommand("", STAND_IN, pause_s=0.02))
    await backend.start()
    yield backend
    await backend.close()


async def ids_of(backend: LocalBackend, name: str, first: int, count: int) -> list[int]:
    request = Generate(name, [first], Sampling(max_tokens=count))
    return [id async for delta in backend.generate(request) for id in delta.token_ids]


async def ids_when_ready(backend: LocalBackend, name: str, first: int, count: int) -> list[int]:
    for _ in range(300):
        with contextlib.suppress(Starting):
            return await ids_of(backend, name, first, count)
        await asyncio.sleep(0.05)
    raise AssertionError("the engine did not start again")


async def test_replies_of_many_requests_do_not_mix(backend: LocalBackend) -> None:
    replies = await asyncio.gather(*(ids_of(backend, f"r{i}", 100 * (i + 1), 5) for i in range(20)))
    assert replies == [[100 * (i + 1) + k for k in range(1, 6)] for i in range(20)]


async def test_closing_the_generator_aborts_in_the_engine(backend: LocalBackend) -> None:
    """A client that disconnects must not leave its sequence running in the engine."""
    deltas = backend.generate(Generate("left", [10], Sampling(max_tokens=10_000)))
    async for delta in deltas:
        if delta.token_ids:
            break
    await deltas.aclose()
    for _ in range(100):
        pulse = await backend.health()
        if pulse.running == 0 and pulse.waiting == 1:  # the stand-in counts its aborts there
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the abort never reached the engine")


async def test_a_refusal_is_raised_as_its_own_error(backend: LocalBackend) -> None:
    with pytest.raises(QueueFull) as refused:
        await ids_of(backend, "refused", 2, 1)
    assert refused.value.retry_after_s == 3.0


async def test_a_request_that_kills_two_engines_fails_alone(backend: LocalBackend) -> None:
    """Replies beside it must not be lost with it, and the SDK must not send it again."""
    beside = [asyncio.create_task(ids_of(backend, f"beside {first}", first, 200)) for first in (100, 1000)]
    await asyncio.sleep(0.1)
    with pytest.raises(RequestFailed, match="died 2 times") as failed:
        await ids_of(backend, "deadly", 0, 1)
    assert error_of(failed.value).headers == {"x-should-retry": "false"}
    with pytest.raises(Starting):
        await backend.health()
    assert await asyncio.gather(*beside) == [list(range(first + 1, first + 201)) for first in (100, 1000)]
    assert backend.restarts == 2


@pytest.mark.parametrize("fault", ["exit", "malformed frame", "stopped process"])
async def test_a_reply_goes_on_in_the_next_engine(fault: str) -> None:
    """Every id written before is known here: a client sees a pause, not an error."""
    first = {"exit": 1, "malformed frame": 3000, "stopped process": 4000}[fault]
    backend = LocalBackend(EngineCommand("", STAND_IN, timeout_s=1.0, pause_s=0.02))
    await backend.start()
    assert await ids_of(backend, "cut", first, 5) == [first + 1, first + 2, first + 3, first + 4, first + 5]
    assert backend.restarts == 1
    await backend.close()


async def test_an_engine_that_cannot_be_started_again_is_tried_until_it_can(backend: LocalBackend) -> None:
    """Without memory or file descriptors for a child there is an OSError; it ended the supervision for ever."""
    program, backend._command = backend._command, EngineCommand("", ("/no such program",), pause_s=0.02)
    with pytest.raises(EngineDied, match="cannot be started again"):
        await ids_of(backend, "cut", 1, 5)
    with pytest.raises(Starting, match="waiting to restart"):
        await backend.health()
    backend._command = program
    assert await ids_when_ready(backend, "next", 5, 2) == [6, 7]


async def test_an_error_in_a_callback_is_one_more_death_of_the_engine() -> None:
    seen: list[str] = []

    def show(progress: Progress) -> None:
        seen.append(progress.stage)
        if len(seen) == 2:
            raise ValueError("the terminal is gone")

    backend = LocalBackend(EngineCommand("", STAND_IN, pause_s=0.02), show)
    await backend.start()
    assert await ids_of(backend, "cut", 1, 5) == [2, 3, 4, 5, 6]
    assert len(seen) == 3 and backend.restarts == 2
    await backend.close()


@pytest.mark.parametrize(("config", "message"), [("unable", "no such thing"), ("crash", "exit code 3")])
async def test_the_reason_why_an_engine_cannot_start_is_raised(config: str, message: str) -> None:
    backend = LocalBackend(EngineCommand(config, STAND_IN))
    with pytest.raises(CannotStart, match=message):
        await backend.start()
    await backend.close()


async def test_progress_is_reported_and_health_raises_it_while_loading() -> None:
    seen: list[Progress] = []
    backend = LocalBackend(EngineCommand("", STAND_IN), seen.append)
    starting = asyncio.create_task(backend.start())
    await asyncio.sleep(0)
    with pytest.raises(Starting):
        await backend.health()
    await starting
    assert [(p.stage, p.fraction) for p in seen] == [("weights", 0.5)]
    await backend.close()


async def test_close_leaves_no_process(backend: LocalBackend) -> None:
    child = backend._process
    await backend.close()
    assert child is not None and child.wait() == 0


async def test_an_engine_started_before_receives_its_configuration() -> None:
    """The server starts its engine before it has read the checkpoint; a second one would import everything again."""
    with EngineProcess(STAND_IN) as first:
        backend = LocalBackend(EngineCommand("unable", STAND_IN), first=first)
        with pytest.raises(CannotStart, match="no such thing"):
            await backend.start()
        assert backend._process is first
        await backend.close()


async def test_an_engine_that_died_before_its_configuration_is_reported() -> None:
    with EngineProcess((sys.executable, "-c", "raise SystemExit(4)", "its arguments")) as first:
        first.wait()
        backend = LocalBackend(EngineCommand("", STAND_IN), first=first)
        with pytest.raises(CannotStart, match="exit code 4"):
            await backend.start()
        await backend.close()


async def test_close_does_not_wait_for_an_engine_that_is_loading() -> None:
    """It has no replies to finish."""
    backend = LocalBackend(EngineCommand("", (sys.executable, "-c", "import time; time.sleep(60)", "its arguments")))
    starting = asyncio.create_task(backend.start())
    await asyncio.sleep(0.2)
    await asyncio.wait_for(backend.close(), 5)
    with pytest.raises(CannotStart):
        await starting


def test_a_child_ignores_signals_to_the_process_group() -> None:
    """Ctrl-C before the child could ignore it itself would end replies that its parent drains."""
    script = "import sys; sys.stdin.read(); sys.exit(5)"
    with EngineProcess((sys.executable, "-c", script, "its arguments")) as child:
        child._process.send_signal(signal.SIGINT)
        child._process.send_signal(signal.SIGTERM)
        child.send_config("go on")
        assert child.wait() == 5


def test_pauses_between_restarts_grow() -> None:
    """Loading weights in a loop would keep the machine busy; and 2 to the power of 2000 must not overflow."""
    pauses = [backoff_s(0.5, num_short_lives) for num_short_lives in (0, 1, 2, 3, 7, 2000)]
    assert pauses == [0.1, 0.5, 1, 2, 30, 30]
