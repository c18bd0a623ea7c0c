"""Registry of the engines of one Ray Serve application: an actor that engines report to once a second.

It holds nothing that engines do not tell it again: one that is started afresh knows all of them a second later.
"""

import time

import ray
from ray.actor import ActorHandle

NAMESPACE = "toolwire"
REPORT_INTERVAL_S = 1.0
READER_S = 5.0  # an API replica that has not read for so long has ended
LEASE_S = 10.0  # an engine that has not reported for so long is no longer listed; its connections may live on


class EngineRegistry:
    """Addresses of the engines, and the key that all of them require."""

    def __init__(self) -> None:
        self._key = ""
        self._reported_s: dict[str, float] = {}
        self._read: dict[str, tuple[float, list[str]]] = {}  # by API replica: when, and what it was told

    def key(self, proposed: str) -> str:
        """The key of the engines: the first one that was proposed."""
        self._key = self._key or proposed
        return self._key

    def report(self, address: str, key: str) -> None:
        """List this engine for the next ten seconds; `key` is the one that it requires."""
        self._key = self._key or key
        self._reported_s[address] = time.monotonic()

    def withdraw(self, address: str) -> None:
        """List this engine no longer: it gets no new request, and finishes those that it has."""
        self._reported_s.pop(address, None)

    def engines(self, reader: str) -> list[str]:
        """The addresses of the engines, for the API replica of this name."""
        now_s = time.monotonic()
        self._reported_s = {one: at_s for one, at_s in self._reported_s.items() if now_s - at_s < LEASE_S}
        self._read[reader] = now_s, sorted(self._reported_s)
        return sorted(self._reported_s)

    def is_known(self, address: str) -> bool:
        """Whether every API replica that lives has been told of this engine."""
        now_s = time.monotonic()
        self._read = {name: read for name, read in self._read.items() if now_s - read[0] < READER_S}
        return all(address in listed for _, listed in self._read.values())


def open_registry(application: str) -> ActorHandle:
    """The registry of the application with this name; it outlives the replicas, and is restarted where it fails."""
    options = {"name": f"engines-of-{application}", "namespace": NAMESPACE, "lifetime": "detached"}
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(EngineRegistry)
    return actor.options(**options, get_if_exists=True).remote()
