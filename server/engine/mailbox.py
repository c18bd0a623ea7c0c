"""The engine's end of the socket: a ZeroMQ PAIR that connects, one message a frame in, one list a frame out."""

import math
import os

import msgspec
import zmq

from server.messages import EngineFrame, ToEngine

LINGER_MS = 1000  # how long the last words may take to leave after `close`


class PairMailbox:
    """Mail to and from the API process. `wake` may be called from any thread and from a signal handler."""

    def __init__(self, address: str) -> None:
        self._zmq = zmq.Context()
        self._socket = self._zmq.socket(zmq.PAIR)
        self._socket.set_hwm(0)  # the queue of requests is bounded elsewhere, with an answer
        self._socket.connect(address)
        self._waker, self._wake_end = os.pipe()
        os.set_blocking(self._waker, False)
        os.set_blocking(self._wake_end, False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._waker, zmq.POLLIN)
        self._decode = msgspec.msgpack.Decoder(ToEngine).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Everything that has come, in order; waits at most this long for the first message or a `wake`."""
        ready = dict(self._poller.poll(math.ceil(timeout_s * 1000)))
        if self._waker in ready:
            os.read(self._waker, 4096)
        mail: list[ToEngine] = []
        while self._socket in ready:
            try:
                mail.append(self._decode(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        return mail

    def send(self, mail: EngineFrame) -> None:
        """One frame; never blocks."""
        self._socket.send(self._encode(mail))

    def wake(self) -> None:
        """End a waiting `receive` early."""
        try:
            os.write(self._wake_end, b"\0")
        except BlockingIOError:  # it is full of wakes already
            return

    def close(self) -> None:
        """Send what is still to be sent, then close."""
        self._socket.close(linger=LINGER_MS)
        self._zmq.term()
