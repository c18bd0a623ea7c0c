"""Turns of the event loop for requests: a crowd that arrives at once does not keep it from everything else."""

from starlette.types import ASGIApp, Receive, Scope, Send

from server.runtime.turns import Turns

SHARED_METHOD = "POST"
REQUESTS_PER_TURN = 1  # each takes a millisecond before it first waits


class TurnsMiddleware:
    """Begins POST requests one by one in turns of the event loop, in order of arrival; other requests at once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns(REQUESTS_PER_TURN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on in its turn."""
        if scope["type"] == "http" and scope["method"] == SHARED_METHOD:
            await self._turns.wait()
        await self._app(scope, receive, send)
