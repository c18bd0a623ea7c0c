"""One server with the built-in model for all tests that need no options of their own."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.live import Live, live_server


def pytest_configure(config: pytest.Config) -> None:
    """Triton's kernels run in its interpreter, except in `make test-gpu`; Triton asks for it once, when imported.

    A run that a shell has put into the background is deaf to SIGINT, and so would be every server that a test starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """The built-in model behind a real server process, shared by the whole run."""
    with live_server() as server:
        yield server
