"""How many tokens a step may have: as many as the settings say, fewer for a while after memory ran out."""

FIRST_PENANCE_STEPS = 16
LONGEST_PENANCE_STEPS = 4096


class Budget:
    """Halves when a step runs out of memory; doubles back after ever more steps that went well.

    The pause before doubling grows with every failure, so that a sequence whose progress is lost by one gets
    through in the end, however little memory there is.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = max_tokens
        self._penance_steps = FIRST_PENANCE_STEPS
        self._steps_left = 0

    def shrink(self, num_tokens: int) -> None:
        """A step of this many tokens ran out of memory."""
        self.num_tokens = max(1, num_tokens // 2)
        self._steps_left = self._penance_steps
        self._penance_steps = min(2 * self._penance_steps, LONGEST_PENANCE_STEPS)

    def recover(self) -> None:
        """A step went well."""
        if self._steps_left > 0:
            self._steps_left -= 1
        elif self.num_tokens < self.max_tokens:
            self.num_tokens = min(2 * self.num_tokens, self.max_tokens)
            self._steps_left = self._penance_steps if self.num_tokens < self.max_tokens else LONGEST_PENANCE_STEPS
        else:
            self._penance_steps = FIRST_PENANCE_STEPS
