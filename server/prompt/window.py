"""Context window: whether a prompt fits, how long its reply may be, and what may be dropped from a conversation.

    |<------------- limit: prompt and reply together ------------->|
    |  prompt                          |  reply                    |

A prompt fits if at least one token is left for the reply; the reply is limited to what is left. Dropping leaves the
reply all the tokens it may have, up to a quarter of the window.
"""

from collections.abc import Sequence

from server.errors import PromptTooLong
from server.prompt.normalize import NormalizedMessage

MIN_REPLY_TOKENS = 1
REPLY_DIVISOR = 4  # dropping leaves at most this fraction of the window to the reply


class Window:
    """Tokens of prompt and reply together: the model's limit, or less where the engine's cache holds less.

    Read from several threads, written by one.
    """

    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len
        self.limit = max_model_len

    def narrow(self, max_model_len: int) -> None:
        """Apply the engine's own limit; an engine that was started again may have another one."""
        self.limit = min(self._max_model_len, max_model_len)


def reply_tokens(limit: int, prompt_tokens: int, max_tokens: int | None, default: int) -> int:
    """Tokens that the reply may have: `max_tokens` (or the default), limited to what is left; at least one."""
    return max(MIN_REPLY_TOKENS, min(default if max_tokens is None else max_tokens, limit - prompt_tokens))


def fits(limit: int, prompt_tokens: int) -> bool:
    """Whether a reply of one token can follow."""
    return prompt_tokens + MIN_REPLY_TOKENS <= limit


def max_prompt_tokens(limit: int, max_tokens: int | None, default: int) -> int:
    """Tokens that a prompt may have after dropping, so that the reply has its tokens."""
    reply = max(MIN_REPLY_TOKENS, min(default if max_tokens is None else max_tokens, limit // REPLY_DIVISOR))
    return limit - reply


def too_long(limit: int, message_tokens: int, function_tokens: int, *, at_least: bool = False) -> PromptTooLong:
    """OpenAI's refusal, by which agents know that they must shorten the conversation; `at_least`: there may be more."""
    num_tokens = message_tokens + function_tokens
    counts, advice = "", "Please reduce the length of the messages."
    if function_tokens:
        counts = f" ({message_tokens} in the messages, {function_tokens} in the functions)"
        advice = "Please reduce the length of the messages or functions."
    text = (
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in "
        f"{'at least ' if at_least else ''}{num_tokens} tokens{counts}. {advice}"
    )
    return PromptTooLong(text, num_tokens, limit, param="messages", code="context_length_exceeded")


def droppable(messages: Sequence[NormalizedMessage]) -> list[list[int]]:
    """Groups of positions in `messages`, oldest first, in the order in which they may be dropped.

    First whole turns (a user message and what answers it), never the last one; then rounds of the last turn (an
    assistant message with the results of its calls), never the last one. System messages stay.
    """
    turns = _split(messages, range(len(messages)), "user")
    if not turns:
        return []
    *old, current = turns
    rounds = [group for group in _split(messages, current, "assistant") if messages[group[0]].role == "assistant"]
    return [*old, *rounds[:-1]]


def without(messages: Sequence[NormalizedMessage], groups: Sequence[Sequence[int]]) -> list[NormalizedMessage]:
    """The conversation without these groups."""
    dropped = {position for group in groups for position in group}
    return [message for i, message in enumerate(messages) if i not in dropped]


def _split(messages: Sequence[NormalizedMessage], positions: Sequence[int], role: str) -> list[list[int]]:
    """Runs of positions, a new one at each message of this role; what precedes the first is a run as well."""
    runs: list[list[int]] = []
    for position in positions:
        if messages[position].role == "system":
            continue
        if messages[position].role == role or not runs:
            runs.append([])
        runs[-1].append(position)
    return runs
