"""A backend that computes nothing: it replays prepared Deltas. The test double of the engine."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from server.errors import EngineDied, ServeError
from server.messages import Delta, Generate, Pulse, Ready

Script = Sequence[Delta | ServeError | float]  # a number is a pause in seconds

READY = Ready("scripted", "none", 0, 4096, 64, 16, 0, 0.0)
PULSE = Pulse(0.0, 0, 0, 64, 0, 0)


class ScriptedBackend:
    """Replays `write(request)` for each request; the Deltas' own id is replaced by the request's.

    `running` are the ids being replayed now, `asked` all requests so far, `aborted` those closed before their end.
    """

    def __init__(self, write: Callable[[Generate], Script], pulse: Pulse | ServeError = PULSE) -> None:
        self._write = write
        self._pulse = pulse
        self.running: set[str] = set()
        self.asked: list[Generate] = []
        self.aborted: list[str] = []
        self._closed = asyncio.Event()

    async def start(self) -> Ready:
        """Nothing to load."""
        return READY

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        """The script of this request, piece by piece."""
        self.asked.append(request)
        self.running.add(request.id)
        ended = False
        try:
            for piece in self._write(request):
                if self._closed.is_set():
                    raise EngineDied("the scripted engine was closed")
                if isinstance(piece, ServeError):
                    ended = True
                    raise piece
                if isinstance(piece, float | int):
                    await asyncio.sleep(piece)
                    continue
                ended = piece.finish is not None
                yield msgspec.structs.replace(piece, id=request.id)
                await asyncio.sleep(0)
        finally:
            self.running.discard(request.id)
            if not ended:
                self.aborted.append(request.id)

    async def health(self) -> Pulse:
        """The pulse that it was given, with the sequences replayed now; or the fault."""
        if isinstance(self._pulse, ServeError):
            raise self._pulse
        return msgspec.structs.replace(self._pulse, running=len(self.running))

    async def close(self) -> None:
        """Running replays raise EngineDied at their next piece."""
        self._closed.set()


def deltas(token_ids: Sequence[int], finish: str = "stop", step: int = 1) -> list[Delta]:
    """The script of one reply: an empty Delta for the admission, then `step` ids a Delta, the last with `finish`."""
    pieces = [list(token_ids[start : start + step]) for start in range(0, len(token_ids), step)] or [[]]
    script = [Delta("", cached=0), *(Delta("", piece) for piece in pieces)]
    return [*script[:-1], msgspec.structs.replace(script[-1], finish=finish)]
