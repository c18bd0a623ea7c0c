"""Servers for the contract beside the shared one (`live`)."""

from collections.abc import Iterator

import pytest

from tests.contract.requests import KEY, SLASHED
from tests.contract.scripted import scripted_server
from tests.live import Live, live_server


@pytest.fixture(scope="session")
def guarded() -> Iterator[Live]:
    """With an API key, a slash in the model's name, and OpenAI's strictness about keys, names and schemas."""
    with live_server("--strict", "--api-key", KEY, "--served-model-name", SLASHED) as server:
        yield server


@pytest.fixture(scope="session")
def small() -> Iterator[Live]:
    """One sequence at a time and no queue; its engine may be killed."""
    with live_server("--max-running", "1", "--max-queue", "0") as server:
        yield server


@pytest.fixture(scope="session")
def script() -> Iterator[str]:
    """Address of the API with a scripted engine that always writes two calls."""
    with scripted_server() as url:
        yield url
