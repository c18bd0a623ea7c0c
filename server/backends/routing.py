"""Backend over several engines elsewhere: each request goes to the one that holds most of its prompt.

A request that an engine has not begun goes to another at once if that one is busy, ends or is lost. One that has begun
goes on elsewhere with the ids written so far, the same seed and the same constraint; without any engine it waits for
one. Requests that may have been the reason why an engine died are computed one at a time (`open_requests.py`).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from server.backends.engine_list import EngineList
from server.backends.open_requests import OpenRequest, Seeds
from server.backends.prefix_index import ENTRY_BYTES, choose_by_prefix, num_tokens, prefix_hashes
from server.backends.remote import Connect, EngineRefused, EngineStatus, RemoteEngine
from server.backends.reports import joined_pulse, joined_ready
from server.checkpoint.fingerprint import Fingerprint
from server.errors import CannotStart, EngineDied, RequestFailed, ServeError, ShuttingDown, Starting, Unsupported
from server.messages import Delta, Generate, Progress, Pulse, Ready

logger = logging.getLogger("toolwire.engine")

POLL_S = 1.0  # of the list of engines, and of replies that wait for one
NO_ENGINE_S = 60.0  # that a begun reply waits while no engine can go on with it
MAX_INDEX_BYTES = 128 * 1024 * 1024  # of the prefixes of all engines together


Choose = Callable[[Sequence[RemoteEngine], Sequence[bytes]], RemoteEngine]


@dataclass(slots=True, eq=False)
class RoutedRequest:
    """A request under way, and where."""

    one: OpenRequest
    hashes: Sequence[bytes]
    engine: RemoteEngine | None = None
    declined_by: set[str] = field(default_factory=set)  # addresses of engines that are too busy for it
    waits_since_s: float = 0.0  # on the monotonic clock, since no engine has it or one that had it was too busy


class RoutingCounts:
    """Counters for metrics."""

    def __init__(self) -> None:
        self.moved: Counter[str] = Counter()  # requests, by "begun" and "not begun"
        self.prompt_tokens = 0
        self.known_tokens = 0  # of prompts, that the chosen engine is taken to hold


class RoutingBackend:
    """Backend over the engines of a list that may change while it runs. `choose` says where a request goes."""

    def __init__(
        self,
        engines: EngineList,
        connect: Connect,
        expected: Fingerprint,
        seed: int = 0,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_ready: Callable[[Ready], None] = lambda _: None,
        choose: Choose = choose_by_prefix,
    ) -> None:
        self._choose = choose
        self._list = engines
        self._connect = connect
        self._expected = expected
        self._seeds = Seeds(seed)
        self._on_progress = on_progress
        self._on_ready = on_ready
        self._engines: dict[str, RemoteEngine] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._routed: dict[str, RoutedRequest] = {}
        self._ready: asyncio.Future[Ready] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._is_closing = False
        self.counts = RoutingCounts()

    async def start(self) -> Ready:
        """Wait for the first engine; raises CannotStart if none of them can be used."""
        self._ready = asyncio.get_running_loop().create_future()
        self._on_progress(Progress("waiting for an engine", 0.0))
        self._apply_list()
        self._watcher = asyncio.create_task(self._watch(), name="list of engines")
        return await asyncio.shield(self._ready)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """Generate one sequence; closing the generator aborts it."""
        self._require_engine()
        if request.id in self._routed:
            raise RequestFailed(f"a request with the id {request.id} is running already")
        one = OpenRequest(self._seeds.give(request))
        routed = self._routed[request.id] = RoutedRequest(one, prefix_hashes(request.token_ids, request.cache_salt))
        try:
            self._place(routed)
            finished = False
            while not finished:
                delta = await one.next_delta()
                finished = delta.finish is not None
                yield delta
        finally:
            self._leave(routed)

    async def health(self) -> Pulse:
        """The sum of the engines' heartbeats; raises Starting while there is none."""
        self._require_engine()
        pulses = [engine.pulse for engine in self._engines.values() if engine.is_up and engine.pulse is not None]
        if not pulses:
            raise Starting("waiting for the first heartbeat", 1.0)
        return joined_pulse(pulses)

    def engines(self) -> list[EngineStatus]:
        """Every engine of the list, and those that are still finishing replies."""
        return [engine.status() for engine in self._engines.values()]

    async def close(self) -> None:
        """Leave every engine; running generators raise ShuttingDown."""
        self._is_closing = True
        for routed in self._routed.values():
            routed.one.fail(ShuttingDown())
        tasks = [*self._tasks.values(), *([self._watcher] if self._watcher else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(CannotStart("the server ended before an engine was ready"))

    # -- placing ---------------------------------------------------------------------------------------------------

    def _place(self, routed: RoutedRequest) -> None:
        """Give it to an engine, or have it wait for one."""
        open_engines = [one for one in self._engines.values() if one.is_open and one.url not in routed.declined_by]
        routed.engine = engine = self._choose(open_engines, routed.hashes) if open_engines else None
        if engine is None:
            routed.waits_since_s = routed.waits_since_s or time.monotonic()
            return
        self.counts.prompt_tokens += len(routed.one.request.token_ids)
        self.counts.known_tokens += num_tokens(engine.index.match(routed.hashes))
        engine.index.insert(routed.hashes)
        engine.adopt(routed.one)

    def _leave(self, routed: RoutedRequest) -> None:
        one, engine = routed.one, routed.engine
        del self._routed[one.request.id]
        if engine is None:
            return
        engine.leave(one)
        if one.reply_ids:  # the engine holds them too: the next round of a conversation begins with them
            token_ids = [*one.request.token_ids, *one.reply_ids]
            engine.index.insert(prefix_hashes(token_ids, one.request.cache_salt))
        if engine.is_leaving:
            self._forget_if_idle(engine)

    # -- what engines report ---------------------------------------------------------------------------------------

    def accept(self, fingerprint: Fingerprint | None) -> None:
        """Raise EngineRefused for another checkpoint; the first engine's weights count where none are here."""
        if fingerprint is None:
            return
        if difference := self._expected.difference(fingerprint):
            raise EngineRefused(f"it serves another checkpoint: its {difference} differs")
        if not self._expected.weights:
            self._expected = fingerprint

    def max_index_entries(self) -> int:
        """An engine's part of what all indexes may hold."""
        return MAX_INDEX_BYTES // ENTRY_BYTES // max(1, len(self._engines))

    def engine_up(self, engine: RemoteEngine) -> None:
        """Give it what waits."""
        ready = joined_ready([one.ready for one in self._engines.values() if one.is_up])
        self._on_ready(ready)
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(ready)
        self._place_waiting()

    def engine_refused(self, engine: RemoteEngine) -> None:
        """End the start where no engine can be used."""
        refused = [one for one in self._engines.values() if one.state == "refused"]
        if self._ready is not None and not self._ready.done() and len(refused) == len(self._engines):
            reasons = "; ".join(f"{one.url}: {one.detail}" for one in refused)
            self._ready.set_exception(CannotStart(f"no engine can be used: {reasons}"))

    def replace(self, engine: RemoteEngine, requests: Sequence[OpenRequest]) -> None:
        """Place the requests of an engine that is lost."""
        for one in requests:
            routed = self._routed[one.request.id]
            routed.declined_by.clear()  # an engine that was busy then may be the only one left
            routed.waits_since_s = 0.0
            self.counts.moved["begun" if one.is_admitted else "not begun"] += 1
            self._place(routed)
        if engine.is_leaving:
            self._forget_if_idle(engine)

    def declined(self, engine: RemoteEngine, one: OpenRequest, error: ServeError | None) -> None:
        """Try the engines that have not declined it; the last one's refusal is the request's."""
        routed = self._routed[one.request.id]
        routed.declined_by.add(engine.url)
        routed.waits_since_s = routed.waits_since_s or time.monotonic()
        self.counts.moved["begun" if one.is_admitted else "not begun"] += 1
        self._place(routed)
        if routed.engine is not None:
            return
        if error is not None and (not one.is_admitted or isinstance(error, Unsupported)):
            one.fail(error)
        else:
            routed.declined_by.clear()  # it waits: its client has a part of the reply, or the engines are about to end
            _fail_if_too_long(routed)

    # -- the list --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                if await asyncio.to_thread(self._list.refresh):
                    self._apply_list()
                self._place_waiting()
            except Exception:  # the next second is another one
                logger.exception("the list of engines cannot be applied")

    def _place_waiting(self) -> None:
        """Place what waits for an engine, and fail what has waited for too long."""
        for routed in [one for one in self._routed.values() if one.engine is None and not one.one.is_over]:
            self._place(routed)
            if routed.engine is None:
                _fail_if_too_long(routed)

    def _apply_list(self) -> None:
        """Begin with new engines; drained and removed ones finish what they have."""
        listed = self._list.engines
        for url in [url for url in listed if url not in self._engines]:
            engine = self._engines[url] = RemoteEngine(url, self._connect, self)
            self._tasks[url] = asyncio.create_task(engine.run(), name=f"engine {url}")
        for url, engine in list(self._engines.items()):
            was_leaving = engine.is_leaving
            engine.is_leaving = listed.get(url, True)
            if engine.is_leaving != was_leaving:
                how = "taken back" if not engine.is_leaving else "drained" if url in listed else "removed"
                logger.info("engine %s: %s", url, how)
            if engine.is_leaving:
                self._forget_if_idle(engine)

    def _forget_if_idle(self, engine: RemoteEngine) -> None:
        """End the connection to an engine that is no longer listed, once its replies have ended."""
        if engine.url not in self._list.engines and not engine.num_requests:
            self._engines.pop(engine.url, None)
            if (task := self._tasks.pop(engine.url, None)) is not None:
                task.cancel()

    def _require_engine(self) -> None:
        if self._is_closing:
            raise ShuttingDown
        if not any(engine.is_open for engine in self._engines.values()):
            raise Starting("waiting for an engine", 0.0)


def _fail_if_too_long(routed: RoutedRequest) -> None:
    """End a request that no engine has taken for a minute."""
    if time.monotonic() - routed.waits_since_s > NO_ENGINE_S:
        routed.one.fail(EngineDied(f"no engine has taken the request for {NO_ENGINE_S:.0f} s"))
