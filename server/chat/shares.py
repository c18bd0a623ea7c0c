"""Which part of a conversation each prompt token belongs to."""

from server.chat.ask import Share
from server.chat.render import Prompt


def whole(prompt: Prompt) -> tuple[Share, ...]:
    """Everything as one part."""
    return (Share("template", prompt.num_tokens),)
