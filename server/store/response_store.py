"""Kept responses for coroutines: the database in threads of its own, bounded in time, and its state for `/ready`."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from server.runtime.worker_pool import WorkerPool
from server.store.database import Database, KeptResponse

logger = logging.getLogger("toolwire.store")

NUM_THREADS = 4
WAIT_S = 5.0  # for one call, its wait for a thread included
RETRY_S = 5.0  # after a failure the database is left alone
SWEEP_INTERVAL_S = 600.0
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
        self._swept_s = time.monotonic()
        self._sweeping: asyncio.Task[None] | None = None

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

    def written(self, kept: KeptResponse) -> None:
        """Count what was kept; begins a sweep where one is due."""
        self._written_bytes += len(kept.body) + len(kept.input)
        due = time.monotonic() - self._swept_s > SWEEP_INTERVAL_S
        if (due or self._written_bytes * SWEEPS_PER_BOUND > self._max_bytes) and (
            self._sweeping is None or self._sweeping.done()
        ):
            self._written_bytes, self._swept_s = 0, time.monotonic()
            self._sweeping = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        """End the sweep, close the connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        if self.database is not None:
            self.database.close()

    async def _sweep(self) -> None:
        assert self.database is not None, "only what was kept is swept"
        try:
            removed = await self._pool.run(self.database.sweep)
        except SQLAlchemyError as error:
            self._failed(str(error).splitlines()[0])
        else:
            logger.info("response store: %d rows beyond its bounds were removed", removed)

    def _failed(self, fault: str) -> StoreFailed:
        if not self._fault:
            logger.error("the response store fails: %s", fault)
        self._fault, self._retry_at_s = fault, time.monotonic() + RETRY_S
        return StoreFailed(FAILING)
