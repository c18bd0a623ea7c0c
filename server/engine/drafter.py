"""Prompt lookup decoding: draft the ids that followed the last few ids earlier in the same sequence.

Arguments of calls copy words of the prompt, and edits quote code: there several drafts are accepted in one pass.
While acceptance is poor the drafter pauses, longer each time.
"""

from collections.abc import Sequence

NGRAM = 3  # ids that must agree before something is copied
TRIAL = 16  # drafts after which acceptance is judged
WORTHWHILE = 0.25  # accepted share below which it pauses
FIRST_PAUSE = 32  # sampled ids; doubled at every further pause
LONGEST_PAUSE = 1024


class Drafter:
    """Prompt lookup for one sequence; each id is indexed once."""

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._followers: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest occurrence ends
        self._num_indexed = 0
        self._tried = 0
        self._accepted = 0
        self._pause = FIRST_PAUSE
        self._paused_until = 0

    def draft(self, ids: Sequence[int]) -> Sequence[int]:
        """Ids that may follow `ids`; often none."""
        length = len(ids)
        if length < self._paused_until or length <= NGRAM:
            return ()
        followers = self._followers
        for end in range(max(self._num_indexed, NGRAM), length):
            followers[tuple(ids[end - NGRAM : end])] = end
        self._num_indexed = length
        start = followers.get(tuple(ids[length - NGRAM : length]))
        return () if start is None else ids[start : start + self._max_drafts]

    def learn(self, num_drafts: int, num_accepted: int, length: int) -> None:
        """Record the acceptance of the last drafts; `length` is the sequence's current length."""
        self._tried += num_drafts
        self._accepted += num_accepted
        if self._tried < TRIAL:
            return
        if self._accepted < WORTHWHILE * self._tried:
            self._paused_until = length + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._pause = FIRST_PAUSE
        self._tried = self._accepted = 0
