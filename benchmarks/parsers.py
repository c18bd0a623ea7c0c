"""Speed of the parsers: megabytes of model text a second, in every tool format.

    python -m benchmarks.parsers

`whole` feeds a reply at once, `tokens` in pieces of four characters, about a token, as in a stream. CPU time of one
core, independent of other load on the machine.
"""

import sys
import time
from collections.abc import Sequence

from server.dialects.base import Dialect
from server.dialects.registry import DIALECTS
from tests.dialects.fuzz import TOOLS, write_call
from tests.dialects.parse_helpers import cut_evenly

PROSE = "The weather in Paris is mild, a < b, and nothing here opens a call.\n" * 40
LONG = {"body": 'def f(x):\n    return "x < 3"\n' * 120, "to": "someone"}
SHORT = {"city": "Zürich", "days": 3, "detail": True}


def megabytes_a_second(dialect: Dialect, pieces: Sequence[str], rounds: int = 5) -> float:
    """The best of some rounds, each of which reads all pieces."""
    best = float("inf")
    for _ in range(rounds):
        parser = dialect.parser(TOOLS)
        begun = time.process_time()
        for piece in pieces:
            parser.feed(piece)
        parser.close()
        best = min(best, time.process_time() - begun)
    return sum(len(piece.encode()) for piece in pieces) / best / 1e6


def main() -> None:
    """Print one line for each format and kind of reply."""
    sys.stdout.write(f"{'format':14}{'reply':14}{'whole MB/s':>12}{'tokens MB/s':>13}{'us a token':>12}\n")
    for dialect in DIALECTS:
        replies = {
            "prose": PROSE * 10,
            "long string": write_call(dialect.name, "send-mail_2", LONG, 0) * 10,
            "short calls": "\n".join(write_call(dialect.name, "get_weather", SHORT, i) for i in range(200)),
        }
        for kind, text in replies.items():
            pieces = cut_evenly(text, 4)
            whole, tokens = megabytes_a_second(dialect, [text]), megabytes_a_second(dialect, pieces)
            us_a_token = len(text.encode()) / len(pieces) / tokens
            sys.stdout.write(f"{dialect.name:14}{kind:14}{whole:12.1f}{tokens:13.2f}{us_a_token:12.2f}\n")


if __name__ == "__main__":
    main()
