"""Requests under way, and the order in which a restarted engine gets them back.

A request whose engine has died is sent again with the ids that it has written, and goes on behind them. One that may
have been in the failed step is a suspect: suspects are sent one at a time, each after the one before has got through
`PROOF_DELTAS` steps, and new requests wait. So an engine that dies again has died of the suspect sent last. Changes of
its adapters are made again before.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count

import msgspec

from server.errors import (
    BadRequest,
    ConstraintFailed,
    NoMemory,
    PromptTooLong,
    QueueFull,
    RequestFailed,
    ServeError,
    UnknownModel,
    Unsupported,
)
from server.messages import (
    AdapterChanged,
    Delta,
    Failed,
    FailureKind,
    Generate,
    LoadAdapter,
    StageTime,
    UnloadAdapter,
)

logger = logging.getLogger("toolwire.engine")

PROOF_DELTAS = 2  # the first has the id that the failed step was to write, the second is decoded behind it
MAX_DEATHS = 4  # of engines that died while several requests might have been the reason


@dataclass(slots=True, eq=False)
class OpenRequest:
    """One request under way."""

    request: Generate
    inbox: asyncio.Queue[Delta | ServeError] = field(default_factory=asyncio.Queue)
    reply_ids: list[int] = field(default_factory=list)  # written here, behind those of the request
    num_scored: int = 0  # ids of the prompt whose logprobs are delivered
    is_admitted: bool = False  # by any engine
    is_over: bool = False  # the reader gets nothing beyond what is in the inbox
    is_sent: bool = False  # to the engine that runs
    is_computed: bool = False  # the engine that runs has admitted it
    is_suspect: bool = False
    num_proofs: int = 0  # Deltas with ids from the engine that runs
    deaths: int = 0  # of engines that may have died of it
    died_s: float = 0.0

    def message(self) -> Generate:
        """The request as it is sent: with what is written of its reply."""
        num_scored = self.request.num_scored + self.num_scored
        reply_ids = [*self.request.reply_ids, *self.reply_ids]
        return msgspec.structs.replace(self.request, reply_ids=reply_ids, num_scored=num_scored)

    async def next_delta(self) -> Delta:
        """The next Delta for its reader. Raises the ServeError that ends it."""
        item = await self.inbox.get()
        if isinstance(item, ServeError):
            raise item
        return item

    def deliver(self, delta: Delta) -> None:
        """Record what the engine has written, and pass it on."""
        if self.is_admitted and not self.is_computed:
            delta = self._readmission(delta)
        self.is_admitted = self.is_computed = True
        self.is_over = delta.finish is not None
        self.reply_ids += delta.token_ids
        self.num_scored += len(delta.prompt_logprobs)
        self.num_proofs += bool(delta.token_ids)
        self.inbox.put_nowait(delta)

    def fail(self, error: ServeError) -> None:
        """End it with this error, unless it is over already."""
        if not self.is_over:
            self.is_over = True
            self.inbox.put_nowait(error)

    def lose_engine(self, now_s: float) -> None:
        """Forget the engine that has died, at this time of the monotonic clock."""
        self.is_sent = self.is_computed = False
        self.num_proofs, self.died_s = 0, now_s

    def _readmission(self, delta: Delta) -> Delta:
        """The first Delta of another engine: to its reader the sequence was preempted and resumed."""
        resumed_s = next((one.time_s for one in delta.stage_times if one.stage == "admitted"), time.monotonic())
        times = (StageTime("preempted", self.died_s), StageTime("resumed", resumed_s))
        ended = tuple(one for one in delta.stage_times if one.stage == "ended")
        return msgspec.structs.replace(delta, cached=None, stage_times=(*times, *ended))


class OpenRequests:
    """All requests under way, in order of arrival. Not thread-safe."""

    def __init__(self) -> None:
        self._by_id: dict[str, OpenRequest] = {}
        self._unsent: deque[OpenRequest] = deque()
        self._on_trial: OpenRequest | None = None  # the suspect sent last

    def open(self, request: Generate) -> OpenRequest:
        """Register a request; `due` returns it when it is to be sent. Raises RequestFailed for an id that is open."""
        if request.id in self._by_id:
            raise RequestFailed(f"a request with the id {request.id} is running already")
        one = OpenRequest(request)
        self.adopt(one)
        return one

    def adopt(self, one: OpenRequest) -> None:
        """Register a request that another engine may have begun."""
        self._by_id[one.request.id] = one
        self._unsent.append(one)
        if one.is_suspect:
            self._put_suspects_first()

    def release(self) -> list[OpenRequest]:
        """Forget the requests that are not over, behind `engine_died`; other engines may adopt them in this order."""
        released = list(self._unsent)
        self._unsent.clear()
        for one in released:
            del self._by_id[one.request.id]
        return released

    def close(self, one: OpenRequest) -> None:
        """Forget a request."""
        del self._by_id[one.request.id]
        if not one.is_sent and one in self._unsent:
            self._unsent.remove(one)
        one.is_over = True

    def withdraw(self, one: OpenRequest) -> None:
        """Forget a request that goes on at another engine."""
        del self._by_id[one.request.id]
        if one is self._on_trial:
            self._on_trial = None
        one.lose_engine(time.monotonic())

    def get(self, id: str) -> OpenRequest | None:
        """The request with this id; None if it is closed."""
        return self._by_id.get(id)

    def due(self) -> list[OpenRequest]:
        """The requests to send to the engine at once; they count as sent."""
        trial = self._on_trial
        if trial is not None and (trial.is_over or trial.num_proofs >= PROOF_DELTAS):
            trial.is_suspect, self._on_trial = False, None
        due = []
        while self._unsent and self._on_trial is None:
            one = self._unsent.popleft()
            one.is_sent = True
            if one.is_suspect:
                self._on_trial = one
            due.append(one)
        return due

    def engine_died(self, *, planned: bool = False) -> int:
        """Fail the request that the engine has died of twice, if any; queue the others, and return how many they are.

        Suspects come first. Without one on trial every request that was sent may have been the reason; none is the
        reason of an end that was `planned`.
        """
        trial, self._on_trial = self._on_trial, None
        if trial is not None and trial.is_over:
            trial = None
        for one in self._by_id.values():
            if planned:
                one.lose_engine(time.monotonic())
                continue
            if one is trial or (trial is None and one.is_sent):
                one.deaths += 1
                one.is_suspect = one.is_suspect or one.is_computed or one.deaths > 1
            if (one is trial and one.is_computed) or one.deaths >= MAX_DEATHS:
                text = f"the engine process died {one.deaths} times while it computed this request"
                one.fail(RequestFailed(text))
            one.lose_engine(time.monotonic())
        self._unsent = deque(one for one in self._by_id.values() if not one.is_over)
        self._put_suspects_first()
        return len(self._unsent)

    def fail_all(self, error: ServeError) -> None:
        """End every request with this error."""
        for one in self._by_id.values():
            one.fail(error)
        self._unsent.clear()

    def __len__(self) -> int:
        return len(self._by_id)

    def _put_suspects_first(self) -> None:
        self._unsent = deque(sorted(self._unsent, key=lambda one: not one.is_suspect))


class AdapterChanges:
    """Changes of an engine's adapters, one at a time; an engine that is started again has to make them too."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self._made: list[LoadAdapter | UnloadAdapter] = []
        self._pending: tuple[LoadAdapter | UnloadAdapter, asyncio.Future[None]] | None = None

    def made(self) -> list[LoadAdapter | UnloadAdapter]:
        """What the next engine process is to change, in order."""
        return list(self._made)

    def expect(self, message: LoadAdapter | UnloadAdapter) -> asyncio.Future[None]:
        """The outcome of this change, which is about to be sent; a BadRequest has the engine's reason."""
        answer = asyncio.get_running_loop().create_future()
        self._pending = message, answer
        return answer

    def resolve(self, changed: AdapterChanged) -> None:
        """Record what the engine says of a change: the one that is expected, or one that it has made again."""
        if self._pending is None or self._pending[0].name != changed.name:
            if changed.fault:
                logger.error("the engine that was started again has no adapter %s: %s", changed.name, changed.fault)
            return
        (message, answer), self._pending = self._pending, None
        if not changed.fault:
            self._record(message)
        if not answer.done():
            if changed.fault:
                answer.set_exception(BadRequest(changed.fault, param="lora_name"))
            else:
                answer.set_result(None)

    def fail(self, error: ServeError) -> None:
        """End the change under way, if there is one, with this error."""
        if self._pending is not None and not self._pending[1].done():
            self._pending[1].set_exception(error)
        self._pending = None

    def _record(self, message: LoadAdapter | UnloadAdapter) -> None:
        loads = [one for one in self._made if isinstance(one, LoadAdapter) and one.name == message.name]
        if isinstance(message, UnloadAdapter) and loads:
            self._made.remove(loads[-1])
        else:
            self._made.append(message)


class Seeds:
    """Seeds of requests that bring none: an engine that takes a reply over must draw the same numbers."""

    def __init__(self, first: int) -> None:
        self._next = count(first)

    def give(self, request: Generate) -> Generate:
        """The request with a seed."""
        if request.sampling.seed is not None:
            return request
        sampling = msgspec.structs.replace(request.sampling, seed=next(self._next))
        return msgspec.structs.replace(request, sampling=sampling)


def error_of(failed: Failed) -> ServeError:
    """The error that ends a request which the engine has refused or failed."""
    match failed.kind:
        case "too_long":
            return PromptTooLong(failed.text, param="messages", code="context_length_exceeded")
        case "bad_constraint":
            return ConstraintFailed(failed.text)
        case "unsupported":
            return Unsupported(failed.text)
        case "unknown_model":
            return UnknownModel(failed.text, param="model", code="model_not_found")
        case "queue_full":
            return QueueFull(failed.text, retry_after_s=failed.retry_after_s or 1.0)
        case "no_memory":
            return NoMemory(failed.text, retry_after_s=failed.retry_after_s or 1.0)
        case "request_failed":
            return RequestFailed(failed.text)


def failure_of(error: ServeError) -> tuple[FailureKind, float | None] | None:
    """The inverse of `error_of`: kind and time of a retry; None for an error of the engine, not of the request."""
    match error:
        case PromptTooLong():
            return "too_long", None
        case ConstraintFailed():
            return "bad_constraint", None
        case Unsupported():
            return "unsupported", None
        case UnknownModel():
            return "unknown_model", None
        case QueueFull(retry_after_s=retry_after_s):
            return "queue_full", retry_after_s
        case NoMemory(retry_after_s=retry_after_s):
            return "no_memory", retry_after_s
        case RequestFailed():
            return "request_failed", None
        case _:
            return None
