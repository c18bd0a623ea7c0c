"""Models that requests may name: the base model, and its adapters, which come and go."""

import time
from collections.abc import Collection, Iterable, Mapping

from server.adapter_folder import fault_of_name


class ServedModels:
    """`aliases` are other names of the base model `name`; `any_name`: it also has every name that is not known."""

    def __init__(
        self, name: str, aliases: Collection[str] = (), adapters: Iterable[str] = (), *, any_name: bool = False
    ) -> None:
        self.name = name
        self.created = int(time.time())
        self._names = frozenset((name, *aliases))
        self._any_name = any_name
        self._adapters = dict.fromkeys(adapters, self.created)

    @property
    def adapters(self) -> Mapping[str, int]:
        """The adapters by name, and when each was loaded, in seconds since the epoch."""
        return self._adapters

    def is_known(self, name: object) -> bool:
        """Whether a model has this name."""
        return isinstance(name, str) and (name in self._names or name in self._adapters)

    def is_served(self, name: object) -> bool:
        """Whether requests may name it."""
        return self._any_name or self.is_known(name)

    def adapter_of(self, name: str) -> str:
        """The adapter that answers requests for this name; empty: the base model alone."""
        return name if name in self._adapters else ""

    def fault_of(self, name: str) -> str:
        """Why no new adapter can have this name; empty if one can."""
        return fault_of_name(name, (*self._names, *self._adapters))

    def add(self, name: str) -> None:
        """An adapter has been loaded."""
        self._adapters[name] = int(time.time())

    def remove(self, name: str) -> None:
        """An adapter has been unloaded."""
        self._adapters.pop(name, None)
