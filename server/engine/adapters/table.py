"""Adapters that sequences may use: by name, and kept until the last sequence that has one ends. No weights."""

from dataclasses import dataclass
from itertools import count


@dataclass(slots=True, eq=False)
class Adapter:
    """An adapter of the model. Those with equal digests are equal, and share cached prefixes."""

    name: str
    handle: int  # of the model's rows
    digest: bytes
    num_bytes: int
    num_sequences: int = 0
    is_listed: bool = True  # new sequences may have it


class AdapterTable:
    """Adapters by name. One that is removed is dropped when no sequence has it any more."""

    def __init__(self) -> None:
        self._listed: dict[str, Adapter] = {}
        self._unused: list[Adapter] = []
        self._handles = count(1)
        self.num_bytes = 0  # of all that are not dropped

    def add(self, name: str, digest: bytes, num_bytes: int) -> Adapter:
        """A new adapter under a name that is not taken."""
        assert name not in self._listed, "a name has one adapter"
        adapter = self._listed[name] = Adapter(name, next(self._handles), digest, num_bytes)
        self.num_bytes += num_bytes
        return adapter

    @property
    def num_listed(self) -> int:
        """How many new sequences may have."""
        return len(self._listed)

    def find(self, name: str) -> Adapter | None:
        """The adapter with this name."""
        return self._listed.get(name)

    def remove(self, name: str) -> bool:
        """Take the name away; False if there is none."""
        adapter = self._listed.pop(name, None)
        if adapter is None:
            return False
        adapter.is_listed = False
        self._drop_if_unused(adapter)
        return True

    def hold(self, adapter: Adapter) -> None:
        """Keep it for one more sequence."""
        adapter.num_sequences += 1

    def release(self, adapter: Adapter) -> None:
        """A sequence that had it has ended."""
        adapter.num_sequences -= 1
        self._drop_if_unused(adapter)

    def take_unused(self) -> list[Adapter]:
        """Those that have become unused since the last call: no sequence will have them."""
        unused, self._unused = self._unused, []
        return unused

    def _drop_if_unused(self, adapter: Adapter) -> None:
        if not adapter.is_listed and not adapter.num_sequences:
            self._unused.append(adapter)
            self.num_bytes -= adapter.num_bytes
