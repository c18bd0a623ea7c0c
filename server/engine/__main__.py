"""The engine process: `python -m server.engine --address ipc://...`, its order on standard input. Composition root.

It connects to the address, imports what takes seconds, reads its order (an EngineOrder as JSON, up to the end of the
input), tells Progress while it loads, then Ready or Unable, and serves until Shutdown or the death of the process that
started it; signals it ignores. Exit code 0 after a told end or without an order, 1 after a crash, 2 if it cannot
start.
"""

import argparse
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback

import msgspec

from server.engine.mailbox import PairMailbox
from server.errors import CannotStart
from server.messages import Progress, StartFailed

ORPHAN_CHECK_S = 0.5


def main() -> int:
    """Run the engine to its end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.engine")
    parser.add_argument("--address", required=True, help="ZeroMQ address of the API process")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="engine: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):  # both may go to the whole group; the API process drains and decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
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
            order = sys.stdin.buffer.read()  # whoever has ordered listens: from here on nothing we say is lost
        if not order:
            return 0
        gc.freeze()
        gc.enable()
        engine = assemble(msgspec.json.decode(order, type=EngineConfig), mailbox)
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


def _die_with(parent: int) -> None:
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
