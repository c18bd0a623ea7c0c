"""Bytes that several owners may hold in memory together."""


class ByteBudget:
    """A limit, and how much of it is taken."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_bytes = 0

    def take(self, num_bytes: int) -> bool:
        """Whether there is room for this number more, which are counted then."""
        if self.num_bytes + num_bytes > self.limit:
            return False
        self.num_bytes += num_bytes
        return True

    def free(self, num_bytes: int) -> None:
        """Give bytes back."""
        self.num_bytes -= num_bytes
