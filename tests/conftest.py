"""One server with the built-in model for all tests that need no options of their own."""

from collections.abc import Iterator

import pytest

from tests.live import Live, live_server


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """The built-in model behind a real server process, shared by the whole run."""
    with live_server() as server:
        yield server
