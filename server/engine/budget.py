"""How many tokens a step may have: what the settings say; fewer where that would stall streams, or memory ran out.

A step is as long as its prompt chunks make it. While replies are streaming, prompts get only as many tokens as can be
computed in `STREAM_PAUSE_S`, measured; on a fast device that is no limit at all.
"""

FIRST_PENANCE_STEPS = 16
LONGEST_PENANCE_STEPS = 4096
STREAM_PAUSE_S = 0.2  # how long a prompt may hold up running replies in one step
LEAST_CHUNK = 64  # tokens of prompts beside streams in any case: smaller chunks cost more than they spare
MEASURABLE = 32  # prompt tokens a step must have to tell something about speed
WEIGHT_OF_NEWEST = 0.3


class Budget:
    """Halves when a step runs out of memory; doubles back after ever more steps that went well.

    The pause before doubling grows with every failure, so that a sequence whose progress is lost by one gets
    through in the end, however little memory there is.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = max_tokens
        self.num_failures_of_one = 0  # steps of a single token that failed in a row
        self._penance_steps = FIRST_PENANCE_STEPS
        self._steps_left = 0
        self._token_s: float | None = None  # what a prompt token takes, as far as is known

    def for_prompts(self, num_left: int, *, beside_streams: bool) -> int:
        """How many of the tokens that are left prompts may have in this step."""
        if not beside_streams or self._token_s is None:
            return num_left
        return min(num_left, max(LEAST_CHUNK, int(STREAM_PAUSE_S / self._token_s)))

    def shrink(self, num_tokens: int) -> None:
        """A step of this many tokens ran out of memory."""
        self.num_failures_of_one += num_tokens == 1
        self.num_tokens = max(1, num_tokens // 2)
        self._steps_left = self._penance_steps
        self._penance_steps = min(2 * self._penance_steps, LONGEST_PENANCE_STEPS)

    def recover(self, num_prompt_tokens: int, duration_s: float) -> None:
        """A step went well: it took this long and had this many tokens of prompts."""
        self.num_failures_of_one = 0
        if num_prompt_tokens >= MEASURABLE:
            token_s = max(duration_s, 1e-6) / num_prompt_tokens
            known = token_s if self._token_s is None else self._token_s
            self._token_s = known + WEIGHT_OF_NEWEST * (token_s - known)
        if self._steps_left > 0:
            self._steps_left -= 1
        elif self.num_tokens < self.max_tokens:
            self.num_tokens = min(2 * self.num_tokens, self.max_tokens)
            self._steps_left = self._penance_steps if self.num_tokens < self.max_tokens else LONGEST_PENANCE_STEPS
        else:
            self._penance_steps = FIRST_PENANCE_STEPS
