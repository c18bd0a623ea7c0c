"""Servers that the contract is checked against: the shared one (`live`), and one that is strict and locked."""

from collections.abc import Iterator

import pytest

from tests.contract.asking import KEY
from tests.live import Live, live_server


@pytest.fixture(scope="session")
def guarded() -> Iterator[Live]:
    """The built-in model behind a key, with OpenAI's strictness about unknown keys, names and schemas."""
    with live_server("--strict", "--api-key", KEY) as server:
        yield server
