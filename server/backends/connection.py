"""Connection to a `toolwire engine`, as `protocol.py` describes it."""

import asyncio
import contextlib
import time
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from server.backends.protocol import (
    GOING_AWAY,
    MAX_FRAME_BYTES,
    PATH,
    PROTOCOL,
    UNREADABLE,
    FromRemote,
    ProtocolNumber,
    ToRemote,
    Welcome,
    decode_replies,
    encode,
)
from server.backends.remote import EngineLost, EngineRefused
from server.checkpoint.fingerprint import Fingerprint
from server.messages import Delta, Pulse, Ready, StageTime

CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 10.0  # an engine sends a message a second, whatever it computes
CLOSE_TIMEOUT_S = 1.0


class NotToolwire(Exception):
    """An HTTP server answers at the address that knows nothing of this protocol."""


class _Connect(connect):
    """A client that follows no redirect: it would carry the key to another address."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Leave the answer as it is."""
        return exc


class ToolwireConnection:
    """A connection whose Welcome has been read."""

    kind = "toolwire"

    def __init__(self, socket: ClientConnection, welcome: Welcome, silence_s: float = SILENCE_S) -> None:
        self._socket = socket
        self._welcome = welcome
        self._silence_s = silence_s
        self._ahead_s = time.monotonic() - welcome.clock_s  # of the engine's clock
        self._unsent: list[msgspec.Raw] = []
        self._has_unsent = asyncio.Event()
        self._sender = asyncio.create_task(self._send_all(), name="messages to an engine")

    @property
    def ready(self) -> Ready:
        """The engine's own figures."""
        return self._welcome.ready

    @property
    def fingerprint(self) -> Fingerprint:
        """The checkpoint that it serves."""
        return self._welcome.fingerprint

    def send(self, message: ToRemote) -> None:
        """Send soon, with what else is to be sent. What cannot be encoded is raised here, to its own request."""
        self._unsent.append(msgspec.Raw(encode(message)))
        self._has_unsent.set()

    async def receive(self) -> list[FromRemote]:
        """The messages of the next frame, their times on the clock of this process."""
        try:
            async with asyncio.timeout(self._silence_s):
                frame = await self._socket.recv()
        except TimeoutError as error:
            raise EngineLost(f"it has sent nothing for {self._silence_s:g} s") from error
        except ConnectionClosed as error:
            raise _lost(error) from error
        try:
            if isinstance(frame, str):
                raise msgspec.DecodeError("a text frame")
            return [self._on_our_clock(message) for message in decode_replies(frame)]
        except UNREADABLE as error:
            raise EngineRefused(f"it sends what is no message of this protocol: {error}") from error

    async def close(self) -> None:
        """End it; the engine aborts what runs."""
        self._sender.cancel()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._socket.close()
        finally:  # the engine may have been removed from the list, which cancels this
            self._socket.transport.abort()
        await asyncio.gather(self._sender, return_exceptions=True)

    async def _send_all(self) -> None:
        with contextlib.suppress(ConnectionClosed):  # `receive` raises it too
            while True:
                await self._has_unsent.wait()
                self._has_unsent.clear()
                messages, self._unsent = self._unsent, []
                await self._socket.send(encode(messages))

    def _on_our_clock(self, message: FromRemote) -> FromRemote:
        match message:
            case Delta(stage_times=times) if times:
                ours = tuple(StageTime(one.stage, one.time_s + self._ahead_s) for one in times)
                return msgspec.structs.replace(message, stage_times=ours)
            case Pulse(time_s=time_s):
                return msgspec.structs.replace(message, time_s=time_s + self._ahead_s)
            case _:
                return message


async def connect_toolwire(url: str, key: str, silence_s: float = SILENCE_S) -> ToolwireConnection:
    """A connection to the engine at this URL.

    Raises NotToolwire where another HTTP server answers, EngineLost where nobody does or the engine is loading, and
    EngineRefused for another key or protocol.
    """
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}[parts.scheme]
    address = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}{PATH}"
    try:
        socket = await _Connect(
            address,
            additional_headers={"Authorization": f"Bearer {key}"} if key else None,
            compression=None,
            proxy=None,
            open_timeout=CONNECT_TIMEOUT_S,
            max_size=MAX_FRAME_BYTES,
        )
    except InvalidStatus as error:
        raise _refusal(error.response.status_code) from error
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI, EOFError, UnicodeError) as error:  # of long names too
        raise EngineLost(f"it cannot be reached: {_text(error)}") from error
    try:
        return ToolwireConnection(socket, await _read_welcome(socket), silence_s)
    except BaseException:
        socket.transport.abort()
        raise


async def _read_welcome(socket: ClientConnection) -> Welcome:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            frame = await socket.recv()
        number = msgspec.json.decode(frame, type=ProtocolNumber).protocol
        if number != PROTOCOL:
            text = f"it speaks protocol {number}, this server {PROTOCOL}: run the same version of toolwire on both"
            raise EngineRefused(text)
        return msgspec.json.decode(frame, type=Welcome)
    except TimeoutError as error:
        raise EngineLost("it accepts connections and says nothing") from error
    except ConnectionClosed as error:
        raise _lost(error) from error
    except UNREADABLE as error:
        raise EngineRefused(f"it is no toolwire engine of this version: {error}") from error


def _refusal(status: int) -> Exception:
    match status:
        case 401:
            return EngineRefused("it requires another key (--engine-key)")
        case 503:
            return EngineLost("it is loading the model, or about to end")
        case 502 | 504:
            return EngineLost(f"a proxy in front of it answers {status}")
        case _:
            return NotToolwire(f"it answers {status}")


def _lost(error: ConnectionClosed) -> EngineLost:
    received = error.rcvd
    if received is None:
        return EngineLost("its connection was cut off")
    reason = f": {received.reason}" if received.reason else f" (code {received.code})"
    return EngineLost(f"it has closed the connection{reason}", planned=received.code == GOING_AWAY)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
