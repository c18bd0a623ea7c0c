"""Turns of the event loop are shared between a crowd and everything else."""

import asyncio
import itertools

from server.runtime.turns import Turns


async def test_a_crowd_goes_on_a_few_at_a_time_in_order_while_others_run() -> None:
    """300 requests that came at once were read in one turn: /health and every stream waited 0.4 s."""
    turns, begun, seen = Turns(4), list[int](), list[int]()

    async def request(number: int) -> None:
        await turns.wait()
        begun.append(number)

    async def other() -> None:
        while len(begun) < 98:
            seen.append(len(begun))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(request(number)) for number in range(100)]
    other_task = asyncio.create_task(other())
    await asyncio.sleep(0)
    tasks[50].cancel()
    tasks[51].cancel()
    await asyncio.gather(*tasks, other_task, return_exceptions=True)
    assert begun == [number for number in range(100) if number not in (50, 51)]
    assert max(later - before for before, later in itertools.pairwise(seen)) <= 4
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert turns._next_turn is None, "no callback is left when nobody waits"


async def test_one_request_alone_does_not_wait() -> None:
    turns = Turns(4)
    waiting = turns.wait()
    try:
        waiting.send(None)
    except StopIteration:
        return
    raise AssertionError("it gave up its turn")
