"""A process that speaks the engine's messages: counts up from the last id it is given. Stands in for the model alone.

Prompt [0]: dies at once. Prompt [1]: answers one Delta, then dies. Prompt [2]: fails. Anything else: counts, slowly.
"""

import argparse
import os
import sys
import time

import msgspec
import zmq

from server.messages import (
    Abort,
    Delta,
    Failed,
    Generate,
    Progress,
    Pulse,
    Ready,
    Shutdown,
    StartFailed,
    ToEngine,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    options = parser.parse_args()
    order = sys.stdin.read()
    socket = zmq.Context.instance().socket(zmq.PAIR)
    socket.connect(options.address)
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(ToEngine).decode

    def say(*mail: Delta | Failed | Progress | Ready | StartFailed | Pulse) -> None:
        socket.send(encode(list(mail)))

    if order == "unable":
        say(StartFailed("no such thing as a free model"))
        time.sleep(0.1)
        raise SystemExit(1)
    if order == "crash":
        raise SystemExit(3)
    say(Progress("weights", 0.5))
    say(Ready("cpu", "float32", 100, 64, 10, 16, 0, 0.0))
    running: dict[str, list[int]] = {}
    aborted = 0
    while True:
        say(Pulse(time.time(), len(running), aborted, 10, 0, 0))
        while socket.poll(10):
            message = decode(socket.recv())
            match message:
                case Shutdown():
                    raise SystemExit(0)
                case Abort(id=id):
                    aborted += running.pop(id, None) is not None
                case Generate(id=id, token_ids=[0]):
                    os._exit(7)
                case Generate(id=id, token_ids=[2]):
                    say(Failed(id, "queue_full", "come back later", 3.0))
                case Generate(id=id, token_ids=ids):
                    running[id] = [ids[-1], message.sampling.max_tokens]
                    say(Delta(id, cached=0))
        for id, (last, left) in list(running.items()):
            running[id] = [last + 1, left - 1]
            say(Delta(id, [last + 1], finish="length" if left == 1 else None))
            if left == 1:
                del running[id]
            if last == 1:
                time.sleep(0.05)
                os._exit(7)


if __name__ == "__main__":
    main()
