"""One engine elsewhere: a connection that is kept, what is asked of it, and what becomes of that when it is lost.

`connection.py` says how `toolwire engine` is reached, `vllm.py` how a vLLM server is; here both are a Connection.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import Literal, Protocol

from server.backends.local import LONGEST_BACKOFF_S, backoff_s
from server.backends.open_requests import OpenRequest, OpenRequests, error_of
from server.backends.prefix_index import FINE_BLOCK, PrefixIndex
from server.backends.protocol import Draining, FromRemote, OtherLoad, ToRemote, Unavailable
from server.backends.reports import fault_of_delta, fault_of_failed, fault_of_load, fault_of_ready, shortened
from server.checkpoint.fingerprint import Fingerprint
from server.errors import ServeError
from server.messages import Abort, Delta, Failed, Pulse, Ready

logger = logging.getLogger("toolwire.engine")

EngineState = Literal["connecting", "up", "draining", "unreachable", "refused"]
REFUSED_PAUSE_S = 30.0  # before an engine that cannot be used is tried again: another may be started at its address
FIRST_PAUSE_S = 0.2
MIN_INDEX_ENTRIES = 256


class EngineLost(Exception):
    """The connection to an engine has ended. `planned`: by the engine itself, whose requests are not to blame."""

    def __init__(self, reason: str, *, planned: bool = False) -> None:
        super().__init__(reason)
        self.planned = planned


class EngineRefused(Exception):
    """This engine cannot be used as it is: its key, its checkpoint, its protocol, or what it sends."""


class Connection(Protocol):
    """A connection to an engine that is ready."""

    @property
    def ready(self) -> Ready:
        """The engine's own figures."""

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The checkpoint that it serves; None where it cannot say."""

    @property
    def kind(self) -> str:
        """The program behind it, for people."""

    def send(self, message: ToRemote) -> None:
        """Send soon, in order; never blocks. One that is lost gets nothing."""

    async def receive(self) -> list[FromRemote]:
        """The next messages. Raises EngineLost and EngineRefused."""

    async def close(self) -> None:
        """End it; what runs there is aborted."""


class Connect(Protocol):
    """How an engine is reached."""

    async def __call__(self, url: str, /) -> Connection:
        """A new connection. Raises EngineLost where nobody answers yet, and EngineRefused."""


class EngineOwner(Protocol):
    """Who places requests on engines, and is notified of their outcome."""

    def accept(self, fingerprint: Fingerprint | None) -> None:
        """Check the checkpoint of an engine; raises EngineRefused."""

    def max_index_entries(self) -> int:
        """How large the index of one engine may become."""

    def engine_up(self, engine: "RemoteEngine") -> None:
        """It takes requests from now on."""

    def engine_refused(self, engine: "RemoteEngine") -> None:
        """It cannot be used; `detail` says why."""

    def replace(self, engine: "RemoteEngine", requests: list[OpenRequest]) -> None:
        """These are to go on elsewhere."""

    def declined(self, engine: "RemoteEngine", one: OpenRequest, error: ServeError | None) -> None:
        """It has not begun this one: it is busy (`error`), or about to end (None)."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """An engine as an operator sees it. `requests` are this API process's; the others are the engine's own figures."""

    url: str
    kind: str
    state: EngineState
    detail: str
    requests: int
    routed: int
    running: int
    waiting: int
    cache_use: float


class RemoteEngine:
    """An engine at an address. `run` keeps the connection until it is cancelled."""

    def __init__(self, url: str, connect: Connect, owner: EngineOwner) -> None:
        self.url = url
        self.state: EngineState = "connecting"
        self.detail = ""
        self.is_leaving = False  # the operator has drained or removed it
        self.index = PrefixIndex(MIN_INDEX_ENTRIES)
        self.pulse: Pulse | None = None
        self.num_routed = 0
        self._connect = connect
        self._owner = owner
        self._connection: Connection | None = None
        self._requests = OpenRequests()
        self._foreign_load = 0  # requests of other API processes
        self._kind = ""

    @property
    def is_open(self) -> bool:
        """Whether it takes new requests."""
        return self.state == "up" and not self.is_leaving

    @property
    def is_up(self) -> bool:
        """Whether it computes."""
        return self._connection is not None

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self._requests) + self._foreign_load

    @property
    def num_requests(self) -> int:
        """Requests of this process that it has."""
        return len(self._requests)

    @property
    def ready(self) -> Ready:
        """Its figures; only while it is up."""
        assert self._connection is not None
        return self._connection.ready

    def status(self) -> EngineStatus:
        """What an operator sees of it."""
        pulse = self.pulse or Pulse(0.0, 0, 0, 0, 0, 0)
        state: EngineState = "draining" if self.is_leaving and self.state == "up" else self.state
        use = pulse.used_blocks / pulse.total_blocks if pulse.total_blocks else 0.0
        return EngineStatus(
            self.url, self._kind, state, self.detail, self.num_requests, self.num_routed, pulse.running, pulse.waiting,
            use,
        )  # fmt: skip

    # -- requests --------------------------------------------------------------------------------------------------

    def adopt(self, one: OpenRequest) -> None:
        """Compute this request, or what is left of it."""
        self.num_routed += 1
        self._requests.adopt(one)
        self._send_due()

    def leave(self, one: OpenRequest) -> None:
        """Its reader has gone, or has everything."""
        if one.is_sent and not one.is_over and self._connection is not None:
            self._connection.send(Abort(one.request.id))
        self._requests.close(one)
        self._send_due()

    def _send_due(self) -> None:
        if self._connection is not None:
            for one in self._requests.due():
                self._connection.send(one.message())

    # -- connection ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost, until cancelled."""
        num_short_lives = 0  # in a row: an engine that dies of every request would otherwise get all of them
        while True:
            began_s = time.monotonic()
            try:
                connection = await self._connect(self.url)
                try:
                    self._owner.accept(connection.fingerprint)
                    _refuse_for(fault_of_ready(connection.ready))
                    await self._serve(connection)
                finally:
                    await connection.close()
            except EngineRefused as error:
                self._report("refused", str(error))
                self._owner.engine_refused(self)
                pause_s = REFUSED_PAUSE_S
            except EngineLost as error:
                self._report("unreachable", str(error))
                is_short = not error.planned and time.monotonic() - began_s < LONGEST_BACKOFF_S
                num_short_lives = num_short_lives + 1 if is_short else 0
                pause_s = backoff_s(FIRST_PAUSE_S, num_short_lives)
            except Exception as error:  # whatever breaks here must not end the supervision
                logger.exception("the connection to engine %s cannot go on", self.url)
                self._report("unreachable", f"{type(error).__name__}: {error}")
                pause_s = REFUSED_PAUSE_S
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

    async def _serve(self, connection: Connection) -> None:
        self._connection, self._kind = connection, connection.kind
        self.index = PrefixIndex(_num_entries(connection.ready, self._owner.max_index_entries()))
        planned = False
        try:
            self._report("up", "")
            self._owner.engine_up(self)
            self._send_due()
            while True:
                for message in await connection.receive():
                    self._handle(message)
                self._send_due()
        except EngineLost as lost:
            planned = lost.planned
            raise
        except EngineRefused:  # what it sends is no request's fault
            planned = True
            raise
        finally:
            self._connection, self.pulse, self._foreign_load = None, None, 0
            self.state = "unreachable"
            num_left = self._requests.engine_died(planned=planned)
            if num_left:
                logger.warning("engine %s: %d requests under way go on elsewhere", self.url, num_left)
            self._owner.replace(self, self._requests.release())

    def _handle(self, message: FromRemote) -> None:
        match message:
            case Delta(id=id):
                if (one := self._requests.get(id)) is not None:
                    _refuse_for(fault_of_delta(one, message, self.ready.vocab_size))
                    one.deliver(message)
            case Failed(id=id, kind=kind):
                if (one := self._requests.get(id)) is None:
                    return
                _refuse_for(fault_of_failed(message))
                error = error_of(shortened(message))
                # What one engine does not support another one may: a vLLM server beside one of our own.
                if kind in ("queue_full", "no_memory", "unsupported") and not one.is_computed:
                    self._decline(one, error)
                else:
                    one.fail(error)
            case Unavailable(id=id):
                if (one := self._requests.get(id)) is not None:
                    self._decline(one, None)
            case Pulse():
                _refuse_for(fault_of_load(message))
                self.pulse = message
            case OtherLoad(num_requests=num_requests):
                _refuse_for(fault_of_load(message))
                self._foreign_load = num_requests
            case Draining():
                self._report("draining", "it will end")

    def _decline(self, one: OpenRequest, error: ServeError | None) -> None:
        self._requests.withdraw(one)
        self._owner.declined(self, one, error)

    def _report(self, state: EngineState, detail: str) -> None:
        """Log a change in one line."""
        if (state, detail) != (self.state, self.detail):
            level = logging.INFO if state in ("up", "draining") else logging.WARNING
            logger.log(level, "engine %s: %s%s", self.url, state, f": {detail}" if detail else "")
        self.state, self.detail = state, detail


def _refuse_for(fault: str) -> None:
    if fault:
        raise EngineRefused(fault)


def _num_entries(ready: Ready, at_most: int) -> int:
    """Entries of an index that stand for as many tokens as the engine's cache holds; all of them if it cannot say."""
    cached_tokens = ready.num_blocks * ready.block_size
    wanted_entries = cached_tokens // FINE_BLOCK if cached_tokens else at_most
    return max(MIN_INDEX_ENTRIES, min(wanted_entries, at_most))
