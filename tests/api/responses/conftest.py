"""A store on SQLite, and scripts that wait."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.api.responses.state import ResponsesState, state_of
from server.messages import Delta
from server.store.database import DAY_S, Database
from server.store.response_store import ResponseStore
from tests.backends.scripted import Script


@pytest.fixture
def state(tmp_path: Path) -> Iterator[ResponsesState]:
    """A store on SQLite."""
    database = Database(f"sqlite:///{tmp_path / 'kept.sqlite'}", DAY_S, 1 << 26)
    yield state_of(ResponseStore(database, 1 << 26))
    database.close()


class HeldScript:
    """A script whose pieces from number `hold_at` on come when it is released."""

    def __init__(self, script: Script, hold_at: int) -> None:
        self._script = script
        self._hold_at = hold_at
        self._released = threading.Event()

    def release(self) -> None:
        """Let the rest come."""
        self._released.set()

    def pieces(self, _: object = None) -> Iterator[Delta | Exception | float]:
        """The pieces, and a pause as often as they are held."""
        for number, piece in enumerate(self._script):
            while number >= self._hold_at and not self._released.is_set():
                yield 0.005
            yield piece
