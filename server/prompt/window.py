"""The context window: what fits, what is refused, what may be dropped.

    |<------------- limit: prompt and reply together ------------->|
    |  prompt                          |  room for the reply       |

A prompt fits if at least one token is left for the reply; a reply's length is cut to what is left. Dropping makes
room for the whole reply, up to a quarter of the window.
"""

from collections.abc import Sequence

from server.errors import PromptTooLong
from server.prompt.normalize import NormalizedMessage

SMALLEST_REPLY = 1
LARGEST_SHARE = 4  # dropping leaves at most one part in so many to the reply


class Window:
    """Tokens of prompt and reply together: what the model takes, or less where the engine's cache holds less.

    Read from several threads, moved by one.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self.limit = longest

    def narrow(self, held: int) -> None:
        """The engine has said how many tokens one sequence may have; one that starts again may say another number."""
        self.limit = min(self._longest, held)


def reply_room(limit: int, prompt_tokens: int, wanted: int | None, default: int) -> int:
    """Tokens that the reply may have: what was wanted (or the default), cut to what is left; at least one."""
    return max(SMALLEST_REPLY, min(default if wanted is None else wanted, limit - prompt_tokens))


def fits(limit: int, prompt_tokens: int) -> bool:
    """Whether a reply of one token can follow."""
    return prompt_tokens + SMALLEST_REPLY <= limit


def largest_prompt(limit: int, wanted: int | None, default: int) -> int:
    """Tokens that a prompt may have after dropping, so that the reply has its room."""
    room = max(SMALLEST_REPLY, min(default if wanted is None else wanted, limit // LARGEST_SHARE))
    return limit - room


def too_long(limit: int, messages: int, functions: int) -> PromptTooLong:
    """OpenAI's refusal, by which agents know that they must shorten the conversation."""
    shares, advice = "", "Please reduce the length of the messages."
    if functions:
        shares = f" ({messages} in the messages, {functions} in the functions)"
        advice = "Please reduce the length of the messages or functions."
    text = (
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in "
        f"{messages + functions} tokens{shares}. {advice}"
    )
    return PromptTooLong(text, param="messages", code="context_length_exceeded")


def droppable(shaped: Sequence[NormalizedMessage]) -> list[list[int]]:
    """Groups of positions in `shaped`, oldest first, in the order in which they may go.

    First whole turns (a user message and what answers it), never the last one; then rounds of the last turn (an
    assistant message with the results of its calls), never the last one. System messages stay.
    """
    turns = _split(shaped, range(len(shaped)), "user")
    if not turns:
        return []
    *old, current = turns
    rounds = [group for group in _split(shaped, current, "assistant") if shaped[group[0]].role == "assistant"]
    return [*old, *rounds[:-1]]


def without(shaped: Sequence[NormalizedMessage], groups: Sequence[Sequence[int]]) -> list[NormalizedMessage]:
    """The conversation without these groups."""
    gone = {position for group in groups for position in group}
    return [one for i, one in enumerate(shaped) if i not in gone]


def _split(shaped: Sequence[NormalizedMessage], positions: Sequence[int], role: str) -> list[list[int]]:
    """Runs of positions, a new one at each message of this role; what stands before the first is a run as well."""
    runs: list[list[int]] = []
    for position in positions:
        if shaped[position].role == "system":
            continue
        if shaped[position].role == role or not runs:
            runs.append([])
        runs[-1].append(position)
    return runs
