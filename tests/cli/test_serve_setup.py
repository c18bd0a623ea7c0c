"""Warnings before the server starts."""

import http.client
import time
from contextlib import closing

import pytest

from server.cli.serve import warn_if_open_to_all
from server.settings import ApiSettings
from tests.live import live_server


@pytest.mark.parametrize(
    ("api", "warns"),
    [
        ({}, False),  # 127.0.0.1 by default
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "0.0.0.0", "api_key": "k"}, False),
        ({"host": "0.0.0.0", "api_key_file": "keys"}, False),
    ],
)
def test_a_server_reachable_without_a_key_logs_a_warning(
    api: dict[str, str], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A model server found open on the internet was one whose owner had not noticed."""
    warn_if_open_to_all(ApiSettings(**api))  # type: ignore[arg-type]
    assert bool([record for record in caplog.records if record.levelname == "WARNING"]) is warns


@pytest.mark.long
def test_an_idle_connection_stays_open_for_longer_than_clients_use_it() -> None:
    """The server closed it after 5 s, as httpx does: a request sent in that moment was lost as a ReadError."""
    with live_server() as server, closing(http.client.HTTPConnection(server.url.removeprefix("http://"))) as connection:
        for _ in range(2):
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            kept = connection.sock
            time.sleep(6)
        assert connection.sock is kept
