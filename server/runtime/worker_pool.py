"""Threads for work that takes long, without a queue that holds what nobody waits for any more."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool:
    """Runs functions for coroutines of one event loop, at most `num_threads` at once, in the order of the calls.

    A cancelled caller that still waits leaves nothing behind. Work that has begun cannot be stopped: its thread stays
    taken until it ends, so that what runs is never more than the threads.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._free = asyncio.Semaphore(num_threads)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work(*args)`. Raises what it raises."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()

        def free(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._free.release)

        running = self._threads.submit(work, *args, **kwargs)
        running.add_done_callback(free)
        return await asyncio.wrap_future(running)
