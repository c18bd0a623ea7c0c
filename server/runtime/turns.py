"""Turns of the event loop, shared out: a crowd that arrives at once must not keep it from everything else."""

import asyncio
from collections import deque


class Turns:
    """Lets a few tasks go on in each turn of the event loop, in order of arrival. Belongs to one loop."""

    def __init__(self, tasks_per_turn: int) -> None:
        self._tasks_per_turn = tasks_per_turn
        self._num_left = tasks_per_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next_turn: asyncio.Handle | None = None

    async def wait(self) -> None:
        """Return at once if this turn has a place left and nobody waits, otherwise in a later turn."""
        loop = asyncio.get_running_loop()
        if self._next_turn is None:
            self._next_turn = loop.call_soon(self._begin_turn)
        if self._num_left > 0 and not self._waiting:
            self._num_left -= 1
            return
        place = loop.create_future()
        self._waiting.append(place)
        await place

    def _begin_turn(self) -> None:
        self._num_left = self._tasks_per_turn
        while self._waiting and self._num_left > 0:
            place = self._waiting.popleft()
            if not place.done():  # its task was cancelled
                place.set_result(None)
                self._num_left -= 1
        is_idle = not self._waiting and self._num_left == self._tasks_per_turn
        self._next_turn = None if is_idle else asyncio.get_running_loop().call_soon(self._begin_turn)
