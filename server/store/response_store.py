"""Kept responses for coroutines: the database in threads of its own, bounded in time, and its state for `/ready`."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from server.runtime.worker_pool import WorkerPool
from server.store.database import Database

logger = logging.getLogger("toolwire.store")

NUM_THREADS = 4
WAIT_S = 5.0  # for one call, its wait for a thread included
RETRY_S = 5.0  # after a failure the database is left alone
SWEEP_INTERVAL_S = 600.0
CHECKPOINT_BYTES = 4 << 20  # written before SQLite's log is moved to its file, in the next pause
MOST_LOGGED_BYTES = 32 << 20  # and without one; a commit that did it would wait for disks
PAUSE_S = 1.0  # without a write
SWEEPS_PER_BOUND = 64  # sweeps while the bound in bytes is written once
FAILING = "the database of kept responses fails; the server's log says why"
StoreState = Literal["none", "ok", "failing"]
P = ParamSpec("P")
T = TypeVar("T")


class StoreFailed(Exception):
    """The database does not answer, or cannot write. Its text is for clients and names neither hosts nor paths."""


class ResponseStore:
    """A database, or none. Every failure is a StoreFailed after at most WAIT_S, and at once until RETRY_S later."""

    def __init__(self, database: Database | None, max_bytes: int = 0, fault: str = "") -> None:
        self.database = database
        self._pool = WorkerPool(NUM_THREADS, "store")
        self._fault = fault
        self._retry_at_s = 0.0
        self._max_bytes = max_bytes
        self._written_bytes = 0
        self._written_s = self._swept_s = time.monotonic()
        self._logged_bytes = 0
        self._tidying: asyncio.Task[None] | None = None

    @property
    def state(self) -> StoreState:
        """Whether responses are kept."""
        if self._fault:
            return "failing"
        return "none" if self.database is None else "ok"

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a method of the database. Raises StoreFailed."""
        if time.monotonic() < self._retry_at_s or self.database is None:
            raise StoreFailed(FAILING if self._fault else "this server keeps no responses (--response-store)")
        try:
            async with asyncio.timeout(WAIT_S):
                result = await self._pool.run(work, *args, **kwargs)
        except TimeoutError as error:
            raise self._failed(f"the database did not answer within {WAIT_S:.0f} s") from error
        except SQLAlchemyError as error:
            raise self._failed(str(error.args[0] if error.args else error).splitlines()[0]) from error
        if self._fault:
            logger.info("the response store answers again")
            self._fault = ""
        return result

    def written(self, num_bytes: int) -> None:
        """Count what was kept; begins a sweep, or the move of SQLite's log, where one is due."""
        self._written_bytes += num_bytes
        self._logged_bytes += num_bytes
        self._written_s = time.monotonic()
        if self.database is None or (self._tidying is not None and not self._tidying.done()):
            return
        if self._sweep_is_due():
            self._tidying = asyncio.create_task(self._sweep(self.database))
        elif self._logged_bytes > CHECKPOINT_BYTES:
            self._tidying = asyncio.create_task(self._checkpoint(self.database))

    async def close(self) -> None:
        """End the sweep, close the connections."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        if self.database is not None:
            self.database.close()

    def _sweep_is_due(self) -> bool:
        is_late = time.monotonic() - self._swept_s > SWEEP_INTERVAL_S
        return is_late or self._written_bytes * SWEEPS_PER_BOUND > self._max_bytes

    async def _checkpoint(self, database: Database) -> None:
        """Wait for a pause, in which nobody waits for the disk, but not for too long."""
        while (wait_s := self._written_s + PAUSE_S - time.monotonic()) > 0:
            if self._sweep_is_due() or self._logged_bytes > MOST_LOGGED_BYTES:
                break
            await asyncio.sleep(wait_s)
        self._logged_bytes = 0
        await self._tidy(database.checkpoint)

    async def _sweep(self, database: Database) -> None:
        self._written_bytes, self._swept_s = 0, time.monotonic()
        removed = await self._tidy(database.sweep)
        logger.info("response store: %d rows beyond its bounds were removed", removed or 0)

    async def _tidy(self, work: Callable[[], T]) -> T | None:
        try:
            return await self._pool.run(work)
        except SQLAlchemyError as error:
            self._failed(str(error).splitlines()[0])
            return None

    def _failed(self, fault: str) -> StoreFailed:
        if not self._fault:
            logger.error("the response store fails: %s", fault)
        self._fault, self._retry_at_s = fault, time.monotonic() + RETRY_S
        return StoreFailed(FAILING)
