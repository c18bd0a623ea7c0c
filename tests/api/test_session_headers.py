"""Headers that name a client's session: those that a router reads reach the engine's side, and nothing else does."""

import json
from typing import Any

import pytest

from tests.api.conftest import MODEL, Serve
from tests.api.test_surfaces import SURFACES, Reply

SENT = {"X-Session-Id": "abc-1", "session_id": "one of a coding agent's", "x-user-id": "someone", "cookie": "secret"}
PASSED_ON = (("x-session-id", "abc-1"), ("session_id", "one of a coding agent's"))


@pytest.mark.parametrize("surface", SURFACES)
async def test_they_go_with_the_request_on_every_surface(serve: Serve, reply: Reply, surface: str) -> None:
    """A router between this server and its engines would send each round to another one."""
    path, body = SURFACES[surface]
    async with serve(reply("Hi")) as served:
        content = json.dumps({"model": MODEL, **body})
        assert (await served.http.post(path, content=content, headers=SENT)).status_code == 200
        assert (await served.http.post(path, content=content)).status_code == 200
        assert [request.session for request in served.backend.asked] == [PASSED_ON, ()]


@pytest.mark.parametrize("value", ["", "x" * 257, "ü", "a\tb"])
async def test_a_value_that_is_none_is_not_passed_on(serve: Serve, reply: Reply, value: str) -> None:
    """It would be refused, or read as something else, by the next program."""
    path, body = SURFACES["chat"]
    headers: Any = {b"x-session-id": value.encode("latin-1")}
    async with serve(reply("Hi")) as served:
        content = json.dumps({"model": MODEL, **body})
        assert (await served.http.post(path, content=content, headers=headers)).status_code == 200
        assert served.backend.asked[-1].session == ()
