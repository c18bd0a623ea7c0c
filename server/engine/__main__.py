"""The engine process: `python -m server.engine --address ipc://...`, its order on standard input. Composition root.

It connects to the address, imports what takes seconds, reads its order (an EngineOrder as JSON, up to the end of the
input), tells Progress while it loads, then Ready or Unable, and serves until Shutdown or the death of the process that
started it; signals it ignores. Exit code 0 after a told end or without an config, 1 after a crash, 2 if it cannot
start.
"""

import argparse
import gc
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback

import msgspec
import zmq

from server.errors import CannotStart
from server.messages import FromEngine, Progress, StartFailed, ToEngine

ORPHAN_CHECK_S = 0.5
LINGER_MS = 1000  # for messages still unsent at `close`


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

    def send(self, mail: list[FromEngine]) -> None:
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


def main() -> int:
    """Run the engine to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.engine")
    parser.add_argument("--address", required=True, help="ZeroMQ address of the API process")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="engine: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):  # both may go to the whole group; the API process drains and decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    mailbox = PairMailbox(arguments.address)
    try:
        return _serve(mailbox)
    finally:
        mailbox.close()


def _serve(mailbox: PairMailbox) -> int:
    mailbox.send([Progress("starting", 0.0)])
    gc.disable()  # what is imported stays: looking for garbage among its million objects takes a second and finds none
    try:
        try:
            # Importing torch takes seconds: the API process has heard from us before.
            from server.engine.assemble import EngineConfig, assemble
        finally:
            config = sys.stdin.buffer.read()  # whoever has ordered listens: from here on nothing we say is lost
        if not config:
            return 0
        gc.freeze()
        gc.enable()
        engine = assemble(msgspec.json.decode(config, type=EngineConfig), mailbox)
    except CannotStart as error:
        mailbox.send([StartFailed(str(error))])
        return 2
    except Exception as error:
        mailbox.send([StartFailed(f"the engine broke while it started: {type(error).__name__}: {error}")])
        raise
    mailbox.send([engine.ready])
    engine.loop.run()
    engine.close()
    return 0


def _exit_with_parent(parent: int) -> None:
    """No engine outlives the process that started it, whatever this one's main thread is busy with."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_S)
    os._exit(1)


def _run() -> int:
    try:
        return main()
    except Exception:  # noqa: BLE001 the edge of the process: everyone has been told, this is for the log
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    code = _run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no waiting for threads: a grammar that hangs must not keep the process
