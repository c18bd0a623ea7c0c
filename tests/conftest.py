"""One server with the built-in model for all tests that need no options of their own."""

import os
from collections.abc import Iterator

import pytest

from tests.live import Live, live_server


def pytest_configure(config: pytest.Config) -> None:
    """Triton's kernels run in its interpreter, except in `make test-gpu`; Triton asks for it once, when imported."""
    if config.option.markexpr != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """The built-in model behind a real server process, shared by the whole run."""
    with live_server() as server:
        yield server
