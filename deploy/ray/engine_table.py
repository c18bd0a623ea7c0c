"""Addresses of the engines of one Ray Serve application, and the key that they require. Knows nothing of Ray.

Nothing is held that engines do not tell again: one that is started afresh knows all of them a second later.
"""

import time

REPORT_INTERVAL_S = 1.0
READER_S = 5.0  # an API replica that has not read for so long has ended
LEASE_S = 10.0  # an engine that has not reported for so long is no longer listed; its connections may live on
SILENCE_S = 3 * REPORT_INTERVAL_S  # after which a new registry knows that there is no engine with a key of its own


class EngineTable:
    """The engines, each with its key, and what each API replica has been told of them."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._key = ""
        self._reported: dict[str, tuple[float, str]] = {}  # by address: when, and its key
        self._read: dict[str, tuple[float, str, list[str]]] = {}  # by API replica: when, its key, and what it was told

    def key(self, proposed: str) -> str:
        """The key of the engines that live, or that API replicas use, else the first one that was proposed.

        Empty while engines may live that have not reported theirs to this registry: ask again.
        """
        if not self._key and time.monotonic() - self._started_s >= SILENCE_S:
            self._key = next((own for _, own, _ in self._read.values()), proposed)
        return self._key

    def report(self, address: str, key: str) -> None:
        """List this engine for the next ten seconds; `key` is the one that it requires."""
        self._drop_silent()
        self._reported[address] = time.monotonic(), key
        if all(own != self._key for _, own in self._reported.values()):
            self._key = key  # no engine has the former one any more

    def withdraw(self, address: str) -> None:
        """List this engine no longer: it gets no new request, and finishes those that it has."""
        self._reported.pop(address, None)

    def engines(self, reader: str, key: str) -> list[str]:
        """The addresses of the engines that require this key, for the API replica of this name, which has it."""
        self._drop_silent()
        listed = sorted(address for address, (_, own) in self._reported.items() if own == key)
        self._read[reader] = time.monotonic(), key, listed
        return listed

    def is_known(self, address: str) -> bool:
        """Whether every API replica that lives, and has the key of this engine, has been told of it."""
        now_s = time.monotonic()
        self._read = {name: read for name, read in self._read.items() if now_s - read[0] < READER_S}
        _, key = self._reported.get(address, (0.0, ""))
        return all(address in listed for _, own, listed in self._read.values() if own == key)

    def _drop_silent(self) -> None:
        now_s = time.monotonic()
        self._reported = {one: report for one, report in self._reported.items() if now_s - report[0] < LEASE_S}
