"""Background responses: they are written whether or not a client waits, under supervision, until they have ended.

    run = await runs.start(plan, memory, generate)  # kept as `queued`; raises RequestRefused
    run.log.read(after)                             # the events of its stream, for any number of readers
    await run.cancel()                              # ends it; a response that has ended stays as it is

The database holds a lease for each: while its server lives the lease is renewed, and a response whose lease has passed
has failed (`ClientMemory.response`). The first end of a response is its end for all servers.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import msgspec

from server.api.errors import RequestRefused, error_of
from server.api.responses.memory import ClientMemory
from server.api.responses.plan import ResponsePlan, frame_of, not_kept
from server.api.responses.running.event_log import EventLog
from server.api.responses.wire import EndEvent, ResponseCompleted, ResponseFailed, ResponseIncomplete, ResponseObject
from server.errors import QueueFull, RequestFailed, ServeError
from server.runtime.byte_budget import ByteBudget
from server.service import Generation
from server.store.response_store import RETRY_S, ResponseStore, StoreFailed

logger = logging.getLogger("toolwire.api")

LEASE_S = 15.0
RENEW_S = 4.0
KEEP_TRIES = 120  # RETRY_S apart: a database may be gone for ten minutes
CLOSE_TIMEOUT_S = 5.0
OPTION = "--max-held-bytes"
Key = tuple[str, str]  # owner and id


class BackgroundRun:
    """One response that is written in the background."""

    def __init__(self, plan: ResponsePlan, memory: ClientMemory, log: EventLog) -> None:
        self.log = log
        self.plan = plan
        self.memory = memory
        self.end: EndEvent | None = None
        self.has_ended = asyncio.Event()
        self.writing: asyncio.Task[None] | None = None

    @property
    def key(self) -> Key:
        """Whose it is, and its id."""
        return self.memory.owner, self.plan.response.id

    @property
    def response(self) -> ResponseObject:
        """The response as it is now."""
        if self.end is not None and self.has_ended.is_set():
            return self.end.response
        return self.plan.snapshot

    async def write(self, generate: Callable[[], Awaitable[Generation]]) -> None:
        """Write the response up to its last event, which is kept and sent by the supervisor."""
        try:
            async with aclosing(self.plan.events(await generate())) as steps:
                async for event in (event async for events in steps for event in events):
                    if isinstance(event, EndEvent):
                        self.end = event
                    elif not self.log.append(frame_of(event)):
                        raise RequestFailed(f"background responses hold more than the bytes of {OPTION}")
        except ServeError as error:
            if self.end is None:
                self.end = self.plan.fail(error)

    def stop(self) -> None:
        """Stop writing; the supervisor ends the response."""
        if self.writing is not None:
            self.writing.cancel()

    async def cancel(self) -> None:
        """Stop writing, and return when the response has ended."""
        self.stop()
        await self.has_ended.wait()


class BackgroundRuns:
    """The background responses of this server, at most `max_runs`, within the bytes of `budget`."""

    def __init__(self, store: ResponseStore, max_runs: int, budget: ByteBudget) -> None:
        self.budget = budget
        self._store = store
        self._max_runs = max_runs
        self._runs: dict[Key, BackgroundRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def find(self, owner: str, response_id: str) -> BackgroundRun | None:
        """A response that is being written here."""
        return self._runs.get((owner, response_id))

    async def start(
        self,
        plan: ResponsePlan,
        memory: ClientMemory,
        generate: Callable[[], Awaitable[Generation]],
        num_bytes: int,
        on_end: Callable[[BackgroundRun], None],
    ) -> BackgroundRun:
        """Begin to write a response, whose request takes `num_bytes`; `on_end` is called when it has ended.

        Raises RequestRefused: beyond the bounds (429), and while the database fails (503).
        """
        if len(self._runs) >= self._max_runs:
            raise _too_many(f"{len(self._runs)} background responses are being written (--max-background)")
        if not self.budget.take(num_bytes):
            raise _too_many(f"background responses hold the bytes of {OPTION}")
        run = BackgroundRun(plan, memory, EventLog(self.budget))
        self._runs[run.key] = run

        def free() -> None:
            run.log.release()
            self.budget.free(num_bytes)
            self._runs.pop(run.key, None)

        try:
            if not all(run.log.append(frame_of(event)) for event in plan.queue()):
                raise _too_many(f"background responses hold the bytes of {OPTION}")
            await memory.begin(plan.items, plan.snapshot, time.time() + LEASE_S)
        except BaseException:
            free()
            raise
        run.writing = asyncio.create_task(run.write(generate))
        task = asyncio.create_task(self._supervise(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: free())
        task.add_done_callback(lambda _: on_end(run))
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())
        return run

    def forget(self, owner: str, response_id: str) -> None:
        """Stop writing a response that was deleted."""
        run = self._runs.pop((owner, response_id), None)
        if run is not None:
            run.stop()

    async def drained(self, timeout_s: float) -> None:
        """Return when no response is being written, or after this time."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def close(self) -> None:
        """End what is left: the backend is closed, so that each fails by itself and is kept."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
        left = [*self._tasks, *([self._renewing] if self._renewing is not None else ())]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _supervise(self, run: BackgroundRun) -> None:
        """End a response, however its writing ended."""
        assert run.writing is not None, "it is being written"
        try:
            await asyncio.wait({run.writing})
            await self._keep(run, _end_of(run, run.writing))
        except Exception:
            logger.exception("a background response could not be ended; it fails when its lease has passed")
        finally:
            run.writing.cancel()
            run.log.close()
            run.has_ended.set()

    async def _keep(self, run: BackgroundRun, end: EndEvent) -> None:
        """Keep the end before any reader has it; where that fails they have it with a note, and it is tried again."""
        events = run.log.pack(frame_of(end))
        for num_tries in range(KEEP_TRIES):
            try:
                kept = await run.memory.end(run.plan.items, end.response, events)
                run.end = end = end if kept is end.response else _ended_elsewhere(end, kept)
                break
            except StoreFailed as error:
                if num_tries == 0:
                    run.end = not_kept(end, str(error))
                    run.log.append(frame_of(run.end), is_last=True)
                    run.has_ended.set()
                await asyncio.sleep(RETRY_S)
        else:
            logger.error("the end of a background response could not be kept: the database fails")
        if not run.has_ended.is_set():
            run.log.append(frame_of(end), is_last=True)

    async def _renew(self) -> None:
        while self._runs:
            await asyncio.sleep(RENEW_S)
            begun = {run.plan.response.id: run for run in self._runs.values() if run.writing is not None}
            if self._store.database is None or not begun:
                continue
            try:
                held = await self._store.run(self._store.database.renew, list(begun), time.time() + LEASE_S)
            except StoreFailed:
                continue  # logged by the store; the leases may pass meanwhile
            for response_id in begun.keys() - held:  # cancelled by way of another server
                begun[response_id].stop()


def _end_of(run: BackgroundRun, writing: asyncio.Task[None]) -> EndEvent:
    """The end that its writing came to, or was brought to."""
    fault = None if writing.cancelled() else writing.exception()
    if fault is not None:
        logger.error("unhandled exception in a background response", exc_info=fault)
    if run.end is None:
        failed = RequestFailed("The server had an error while writing this response.")
        run.end = run.plan.cancel() if fault is None else run.plan.fail(failed)
    return run.end


def _ended_elsewhere(end: EndEvent, response: ResponseObject) -> EndEvent:
    """The last event of a response that has ended otherwise: cancelled, or failed with its lease, by another server."""
    kinds: dict[str, type[EndEvent]] = {"completed": ResponseCompleted, "failed": ResponseFailed}
    return kinds.get(response.status, ResponseIncomplete)(end.sequence_number, response)


def unlogged(body: bytes, after: int) -> EventLog:
    """The log of a response that failed with its server, read from `after` on: one event says so."""
    log = EventLog()
    log.num_events = after + 1
    fields = json.loads(body)
    kind = "failed" if fields["status"] == "failed" else "incomplete"
    event = {"type": f"response.{kind}", "sequence_number": log.num_events, "response": fields}
    log.append(f"event: response.{kind}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n", is_last=True)
    return log


def _too_many(text: str) -> RequestRefused:
    return RequestRefused(error_of(QueueFull(f"{text}; retry shortly")))
