"""The engine process: `python -m server.engine --address ipc://...`, configured on standard input. Composition root.

It connects to the address, imports torch, reads an EngineConfig (JSON) up to end of file, sends Progress while
it loads, then Ready or EngineFailed, and serves until Shutdown or until its parent process ends. SIGINT and SIGTERM are
ignored. Exit code: 0 after Shutdown or without a configuration, 1 after a crash, 2 if it cannot start.
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
from server.messages import EngineFailed, FromEngine, Progress, ToEngine

ORPHAN_CHECK_S = 0.5
LINGER_MS = 1000  # for messages still unsent at `close`


class PairMailbox:
    """ZeroMQ PAIR socket to the API process: one message a frame in, one list a frame out.

    `wake` may be called from any thread and from a signal handler.
    """

    def __init__(self, address: str) -> None:
        self._zmq = zmq.Context()
        self._socket = self._zmq.socket(zmq.PAIR)
        self._socket.set_hwm(0)  # the request queue is bounded by the scheduler
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
        """Return all pending messages in order; wait up to `timeout_s` for the first one or a `wake`."""
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
        except BlockingIOError:  # the pipe is full of wake-ups already
            return

    def close(self) -> None:
        """Flush unsent messages, then close."""
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
    gc.disable()  # collecting among the million imported objects takes a second and frees none
    try:
        try:
            # Importing torch takes seconds: Progress was sent before it.
            from server.engine.assemble import EngineConfig, assemble
        finally:
            config = sys.stdin.buffer.read()  # its sender has bound its socket: nothing is lost from here on
        if not config:
            return 0
        gc.freeze()
        gc.enable()
        engine = assemble(msgspec.json.decode(config, type=EngineConfig), mailbox)
    except CannotStart as error:
        mailbox.send([EngineFailed(str(error))])
        return 2
    except Exception as error:
        mailbox.send([EngineFailed(f"the engine broke while it started: {type(error).__name__}: {error}")])
        raise
    mailbox.send([engine.ready])
    engine.loop.run()
    engine.close()
    return 0


def _exit_with_parent(parent: int) -> None:
    """Exit when the parent process has ended, even if the main thread is busy."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_S)
    os._exit(1)


def _run() -> int:
    try:
        return main()
    except Exception:  # noqa: BLE001 process boundary: clients have their errors, this is for the log
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    code = _run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # do not join threads: a hung grammar compilation must not keep the process alive
