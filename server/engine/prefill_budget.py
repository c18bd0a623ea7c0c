"""How the prompt tokens of one step are dealt out: most to the oldest prompt, never all of them while others wait."""

from server.engine.sequence import Sequence
from server.engine.step import ScheduledRow

OLDEST_SHARE = 0.75  # of what is left: behind a very long prompt, short ones still get on
LEAST_PORTION = 32  # tokens; a younger prompt gets no smaller chunk unless that is all it needs


class PrefillBudget:
    """One step's chunks of prompts. `num_left` tokens are not dealt yet."""

    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens
        self._counts: dict[Sequence, int] = {}

    def has_room(self, num_pending: int) -> bool:
        """Whether one more prompt with this much to catch up should get some."""
        share = int(OLDEST_SHARE * self.num_left)
        return self.num_left > 0 and (not self._counts or num_pending <= self.num_left or share >= LEAST_PORTION)

    def deal(self, sequence: Sequence) -> None:
        """A share of what is left for this prompt, which is younger than those before; nothing without room."""
        if self.has_room(sequence.num_pending):
            share = max(LEAST_PORTION, int(OLDEST_SHARE * self.num_left))
            self._add(sequence, share)

    def deal_rest(self) -> None:
        """Whatever is left goes to those who were dealt some already, the oldest first."""
        for sequence in self._counts:
            self._add(sequence, self.num_left)

    def shares(self) -> list[ScheduledRow]:
        """The chunks."""
        return [ScheduledRow(sequence, count, ()) for sequence, count in self._counts.items() if count]

    def _add(self, sequence: Sequence, most: int) -> None:
        has = self._counts.get(sequence, 0)
        place = sequence.num_computed + has
        # The chunk ends where the recurrent state is to be kept.
        ends = [position for position in sequence.snapshots_at if sequence.num_computed < position]
        count = max(0, min(most, self.num_left, min(ends, default=len(sequence.ids)) - place))
        self._counts[sequence] = has + count
        self.num_left -= count
