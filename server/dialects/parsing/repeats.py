"""When a reply has begun to repeat itself: the same call, word for word, again and again.

The policy: a call with the same name and the same arguments as the two before it ends the reply. Twice in a row can be
meant ("roll the die twice"); weak or quantized models under `required` go on to the token limit instead.
"""

LIMIT = 3  # identical calls in a row


class RepeatDetector:
    """Watches the finished calls of one reply."""

    def __init__(self) -> None:
        self._last: tuple[str, str] | None = None
        self._count = 0

    def feed(self, name: str, arguments: str) -> bool:
        """A call is complete; True if the reply should end with it."""
        call = (name, arguments)
        self._count = self._count + 1 if call == self._last else 1
        self._last = call
        return self._count >= LIMIT
