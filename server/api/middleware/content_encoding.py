"""Bodies sent compressed: gzip, deflate and zstd, decoded piece by piece within the limit on bodies."""

import asyncio
import zlib
from collections.abc import Callable, Iterator, Mapping

import zstandard
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, RequestRefused, too_large

PIECE_BYTES = 64 * 1024  # decoded at once; other requests run between two pieces
MAX_WINDOW_BYTES = 8 << 20  # of zstd, as RFC 9659 says
ZSTD_BYTES = 128  # fed at once: a block of 4 bytes decodes to up to 128 KiB
MAX_FRAMES = 1000  # of a body
MAX_CODINGS = 3  # of one body


class ContentEncodingMiddleware:
    """Decodes the bodies of POST requests (RFC 9110 8.4); 415 for a coding that is not known here.

    The decoded bytes count for the request's place in admission, as the sent ones do.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body decoded."""
        if scope["type"] != "http" or not (codings := _codings_of(scope)):
            await self._app(scope, receive, send)
            return
        pieces: Iterator[bytes] | None = None
        num_bytes, is_complete = 0, False

        async def decode() -> Message:
            nonlocal pieces, num_bytes, is_complete
            if is_complete:
                return await receive()
            if pieces is None:
                pieces = iter([await _whole_body(receive)])
                for coding in reversed(codings):
                    pieces = DECODERS[coding](pieces)
            await asyncio.sleep(0)
            try:
                piece = next(pieces, None)
            except (zlib.error, zstandard.ZstdError, EOFError) as error:
                text = f"The body is not of its Content-Encoding ({', '.join(codings)}): {error}."
                raise RequestRefused(ApiError(400, text, code="invalid_content_encoding")) from error
            is_complete = piece is None
            piece = piece or b""
            num_bytes += len(piece)
            if num_bytes > self._max_body_bytes:
                raise RequestRefused(too_large(self._max_body_bytes))
            if "place" in scope["state"]:
                scope["state"]["place"].received_body(len(piece))
            return {"type": "http.request", "body": piece, "more_body": not is_complete}

        await self._app(scope, decode, send)


async def _whole_body(receive: Receive) -> bytes:
    """The body as it was sent; its length is bounded by the middleware outside."""
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
    return b"".join(pieces)


def _codings_of(scope: Scope) -> list[str]:
    """The codings in the order in which they were applied, without those that change nothing. Raises RequestRefused."""
    sent = ",".join(Headers(scope=scope).getlist("content-encoding")).lower()
    codings = [coding.strip() for coding in sent.split(",") if coding.strip() not in ("", "identity")]
    unknown = next((coding for coding in codings if coding not in DECODERS), None)
    if unknown is not None or len(codings) > MAX_CODINGS:
        text = f"Unsupported Content-Encoding: '{unknown or sent}'. Send the body plainly, or as gzip, deflate or zstd."
        headers = {"accept-encoding": "gzip, deflate, zstd"}
        raise RequestRefused(ApiError(415, text, code="unsupported_content_encoding", headers=headers))
    return codings


def _inflate(pieces: Iterator[bytes], window_bits: int) -> Iterator[bytes]:
    """Decoded pieces of at most PIECE_BYTES; members of gzip may follow each other. Raises zlib.error, EOFError."""
    decoder = zlib.decompressobj(window_bits)
    for data in pieces:
        while data or not decoder.eof:
            if decoder.eof:
                decoder = zlib.decompressobj(window_bits)
            piece = decoder.decompress(data, PIECE_BYTES)
            data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            if piece:
                yield piece
            if not data and len(piece) < PIECE_BYTES:
                break
    if not decoder.eof:
        raise EOFError("it ends too early")


def _gunzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    return _inflate(pieces, 16 + zlib.MAX_WBITS)


def _undeflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Deflate with zlib's header, as RFC 9110 says, or without, as some clients send it."""
    whole = b"".join(pieces)
    has_header = len(whole) > 1 and whole[0] & 15 == 8 and int.from_bytes(whole[:2]) % 31 == 0
    return _inflate(iter([whole]), zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


def _unzstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decoded pieces, some of them empty; frames may follow each other. Raises ZstdError, EOFError."""
    whole = b"".join(pieces)
    at = num_frames = 0
    decoder: zstandard.ZstdDecompressionObj | None = None
    while at < len(whole):
        if decoder is None or decoder.eof:
            num_frames += 1
            if num_frames > MAX_FRAMES:
                raise EOFError(f"it has more than {MAX_FRAMES} frames")
            decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
        part = whole[at : at + ZSTD_BYTES]
        yield decoder.decompress(part)
        at += len(part) - len(decoder.unused_data)
    if decoder is None or not decoder.eof:
        raise EOFError("it ends too early")


DECODERS: Mapping[str, Callable[[Iterator[bytes]], Iterator[bytes]]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _undeflate,
    "zstd": _unzstd,
}
