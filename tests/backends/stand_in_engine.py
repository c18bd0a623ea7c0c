"""Stand-in for the engine process: same messages, but it counts up from the last id of the prompt or of the reply.

Prompt [0]: exits whenever it is computed. [1], [3000], [4000]: sends one Delta, then exits, sends a frame that is no
message, or stops; the next engine goes on. [2]: fails. Others: counts, slowly.
"""

import argparse
import os
import signal
import sys
import time

import msgspec
import zmq

from server.messages import (
    Abort,
    Delta,
    EngineFailed,
    Failed,
    FromEngine,
    Generate,
    Progress,
    Pulse,
    Ready,
    Shutdown,
    ToEngine,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    options = parser.parse_args()
    config = sys.stdin.read()
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.connect(options.address)
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(ToEngine).decode

    def send(*messages: FromEngine) -> None:
        socket.send(encode(list(messages)))

    if config == "unable":
        send(EngineFailed("no such thing as a free model"))
        time.sleep(0.1)
        raise SystemExit(1)
    if config == "crash":
        raise SystemExit(3)
    send(Progress("weights", 0.5))
    send(Ready("cpu", "float32", 100_000, 64, 10, 16, 0, 0.0))
    running: dict[str, list[int]] = {}
    aborted = 0
    while True:
        send(Pulse(time.time(), len(running), aborted, 10, 0, 0))
        while socket.poll(10):
            message = decode(socket.recv())
            match message:
                case Shutdown():
                    raise SystemExit(0)
                case Abort(id=id):
                    aborted += running.pop(id, None) is not None
                case Generate(id=id, token_ids=[0]):
                    send(Delta(id, cached=0))
                    time.sleep(0.05)
                    os._exit(7)
                case Generate(id=id, token_ids=[2]):
                    send(Failed(id, "queue_full", "come back later", 3.0))
                case Generate(id=id, token_ids=ids):
                    written = message.reply_ids
                    running[id] = [[*ids, *written][-1], message.sampling.max_tokens - len(written)]
                    send(Delta(id, cached=0))
        for id, (last, left) in list(running.items()):
            running[id] = [last + 1, left - 1]
            send(Delta(id, [last + 1], finish="length" if left == 1 else None))
            if left == 1:
                del running[id]
            if last in (1, 3000, 4000):
                time.sleep(0.05)
                if last == 1:
                    os._exit(7)
                elif last == 3000:
                    socket.send(b"no message")
                else:
                    os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    main()
