"""Interface to an inference engine: token ids in, token ids out."""

from collections.abc import AsyncGenerator
from typing import Protocol

from server.messages import Delta, Generate, Pulse, Ready


class Backend(Protocol):
    """An inference engine.

    `generate` yields at least one Delta, of which the first may be empty and means that the request was
    admitted; the last one has `finish` set. A refusal or a failure is raised as a `ServeError` (Rejected, Busy,
    Broken), before the first Delta if it is known by then. Closing the generator is the only way to abort.
    """

    async def start(self) -> Ready:
        """Load the model; raises CannotStart."""

    def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """Generate one sequence."""

    async def health(self) -> Pulse:
        """The engine's latest heartbeat; raises Starting while it loads, EngineDied if it has gone silent."""

    async def close(self) -> None:
        """Free everything; running generators raise ShuttingDown."""
