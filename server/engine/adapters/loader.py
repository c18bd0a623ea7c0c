"""Loads and unloads adapters while the engine runs: files are read in a thread, and used from the next step on.

A load has two parts: the header is read, memory is reserved for what it says, and the weights are read.

Requests for an adapter that is being read wait for it, so that what is sent behind a LoadAdapter finds it.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from server.engine.adapters.table import AdapterTable
from server.errors import CannotStart
from server.messages import AdapterChanged, Generate, LoadAdapter

log = logging.getLogger(__name__)


class ReadAdapter(Protocol):
    """An adapter in memory; what it holds is the model's own business."""

    @property
    def digest(self) -> bytes:
        """Equal for equal adapters."""

    @property
    def num_bytes(self) -> int:
        """Bytes on the model's device."""


class AdapterHolder(Protocol):
    """A model that takes adapters."""

    def size_of_adapter(self, folder: str) -> int:
        """Bytes that the adapter in this folder takes, by its file's header; called in a thread. Raises CannotStart."""

    def read_adapter(self, folder: str) -> Any:
        """The adapter in this folder, a `ReadAdapter`; called in a thread. Raises CannotStart and MemoryError."""

    def install_adapter(self, handle: int, adapter: Any) -> None:
        """Compute rows of this handle with it."""

    def drop_adapter(self, handle: int) -> None:
        """Free it."""


@dataclass(slots=True)
class _Loading:
    """An adapter that is being read: its header while `num_reserved` is None, then its weights."""

    folder: str
    future: "Future[Any]"
    num_reserved: int | None = None


class AdapterLoader:
    """`reserve(num_bytes)` takes memory from the KV cache, or gives it back; it returns why it cannot, or nothing."""

    def __init__(
        self, holder: AdapterHolder, table: AdapterTable, reserve: Callable[[int], str], wake: Callable[[], None]
    ) -> None:
        self._holder = holder
        self._table = table
        self._reserve = reserve
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, "adapters")
        self._reading: dict[str, _Loading] = {}  # by name
        self._waiting: dict[str, list[Generate]] = {}

    def load(self, message: LoadAdapter) -> AdapterChanged | None:
        """Begin to read an adapter; the answer, if it is known at once."""
        name = message.name
        if name in self._reading or self._table.find(name) is not None:
            return AdapterChanged(name, f"the adapter {name} is loaded already; unload it first")
        self._reading[name] = _Loading(message.folder, self._submit(self._holder.size_of_adapter, message.folder))
        return None

    def unload(self, name: str) -> AdapterChanged:
        """Take an adapter away from new requests; those under way keep it.

        One that is not there is no fault: an engine that was started again may have failed to load it again.
        """
        if name in self._reading:
            return AdapterChanged(name, f"the adapter {name} is being loaded")
        self._table.remove(name)
        return AdapterChanged(name)

    def defer(self, request: Generate) -> bool:
        """Keep a request whose adapter is being read, until `finish` gives it back."""
        if request.adapter not in self._reading:
            return False
        self._waiting.setdefault(request.adapter, []).append(request)
        return True

    def abort(self, id: str) -> None:
        """Forget a request that waits; unknown ids are ignored."""
        for name, requests in self._waiting.items():
            self._waiting[name] = [one for one in requests if one.id != id]

    def finish(self) -> tuple[list[AdapterChanged], list[Generate]]:
        """Install what has been read, and free what is unused: the answers, and the requests that may begin."""
        for unused in self._table.take_unused():
            self._holder.drop_adapter(unused.handle)
            self._reserve(-unused.num_bytes)
        changed: list[AdapterChanged] = []
        requests: list[Generate] = []
        for name, loading in [one for one in self._reading.items() if one[1].future.done()]:
            change = self._reserve_for(name, loading) if loading.num_reserved is None else self._install(name, loading)
            if change is not None:
                del self._reading[name]
                changed.append(change)
                requests += self._waiting.pop(name, [])
        return changed, requests

    def close(self) -> None:
        """End the thread; what it reads is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, read: Callable[[str], Any], folder: str) -> "Future[Any]":
        future = self._thread.submit(read, folder)
        future.add_done_callback(lambda _: self._wake())
        return future

    def _reserve_for(self, name: str, loading: _Loading) -> AdapterChanged | None:
        """Begin to read the weights of an adapter whose header has been read; the answer if it is refused."""
        if (error := loading.future.exception()) is not None:
            return _refused(name, error)
        num_bytes: int = loading.future.result()
        if refusal := self._reserve(num_bytes):
            return AdapterChanged(name, refusal)
        loading.num_reserved = num_bytes
        loading.future = self._submit(self._holder.read_adapter, loading.folder)
        return None

    def _install(self, name: str, loading: _Loading) -> AdapterChanged:
        num_reserved = loading.num_reserved or 0
        if (error := loading.future.exception()) is not None:
            self._reserve(-num_reserved)
            return _refused(name, error)
        adapter: ReadAdapter = loading.future.result()
        if refusal := self._reserve(adapter.num_bytes - num_reserved):  # it is larger than its header said
            self._reserve(-num_reserved)
            return AdapterChanged(name, refusal)
        own = self._table.add(name, adapter.digest, adapter.num_bytes)
        self._holder.install_adapter(own.handle, adapter)
        return AdapterChanged(name)


def _refused(name: str, error: BaseException) -> AdapterChanged:
    """The answer to a load that has failed, whatever the fault: nothing else fails with it."""
    if not isinstance(error, CannotStart | MemoryError):
        log.error("the adapter %s cannot be loaded", name, exc_info=error)
    return AdapterChanged(name, str(error) or f"{type(error).__name__}: it does not fit into memory")


def install_all(holder: AdapterHolder, table: AdapterTable, adapters: Iterable[tuple[str, ReadAdapter]]) -> None:
    """Install the adapters of the start, by name."""
    for name, adapter in adapters:
        own = table.add(name, adapter.digest, adapter.num_bytes)
        holder.install_adapter(own.handle, adapter)
