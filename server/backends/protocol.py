"""Protocol between the API process and `toolwire engine`: a WebSocket, greeted by a Welcome, then messages both ways.

    GET /engine/v1                    upgraded to a WebSocket; Authorization: Bearer KEY where there is an engine key
    engine -> API   text frame        one Welcome, as JSON: its number shows a newer or older protocol
    API -> engine   binary frames     lists of Generate and Abort, as msgpack
    engine -> API   binary frames     lists of Delta, Failed, Pulse, OtherLoad, Unavailable and Draining; one a second

A connection lives as long as the engine process behind it: when it closes, the API process sends what was under way to
another engine, or to the next process of this one. Deadlines are the API process's: it sends Abort.
"""

from typing import Final

import msgspec

from server.checkpoint.fingerprint import Fingerprint
from server.messages import Abort, Delta, Failed, Generate, Message, Pulse, Ready

PROTOCOL: Final = 3  # counts up with every change of a message
PATH: Final = "/engine/v1"
HEARTBEAT_S = 1.0
MAX_FRAME_BYTES = 256 * 1024 * 1024  # a list of prompts and grammars, which the API process has bounded one by one
GOING_AWAY = 1001  # code of a connection that is closed on purpose: nothing was wrong with its requests


class Draining(Message, frozen=True, tag="draining"):
    """The engine takes no new request and will end; what runs goes on."""


class OtherLoad(Message, frozen=True, tag="other_load"):
    """Requests that the engine has of other API processes now."""

    num_requests: int


class Unavailable(Message, frozen=True, tag="unavailable"):
    """This request was not begun: the engine is about to end, or not ready yet. Another one may take it at once."""

    id: str


class Welcome(msgspec.Struct, frozen=True):
    """The first frame of an engine."""

    protocol: int
    version: str  # of toolwire
    fingerprint: Fingerprint
    ready: Ready
    clock_s: float  # its monotonic clock now, to which the times of its messages refer


class ProtocolNumber(msgspec.Struct, frozen=True):
    """The part of a Welcome that every version can read."""

    protocol: int


# What a frame raises that is no message.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
ToRemote = Generate | Abort
FromRemote = Delta | Failed | Pulse | OtherLoad | Unavailable | Draining

encode = msgspec.msgpack.Encoder().encode
decode_requests = msgspec.msgpack.Decoder(list[ToRemote]).decode
decode_replies = msgspec.msgpack.Decoder(list[FromRemote]).decode
