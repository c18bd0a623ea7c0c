"""The reasoning phase of a reply: whether it begins with a think block, and how long that may be.

What decides whether a model thinks, the first that is set:
1. `chat_template_kwargs.enable_thinking`
2. `reasoning_effort` ("none" is off)
3. the last `/think` or `/no_think` in a user message
4. the template
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.chat_request import ChatRequest, Thinking
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.template import THINK_OPEN
from server.messages import ReasoningPhase
from server.prompt.normalize import NormalizedMessage
from server.prompt.render import Prompt

SWITCHES = ("enable_thinking", "thinking")  # variables of Qwen's and of other families' templates
WRITTEN_SWITCHES = (("/no_think", False), ("/think", True))
MIN_CALL_TOKENS = 256  # kept for a forced call behind a think block, where `max_tokens` is at least twice as much


def thinking_variables(
    checkpoint: Checkpoint, request: ChatRequest, messages: Sequence[NormalizedMessage]
) -> dict[str, Any]:
    """The template's variables: the request's own, and the thinking switch where one is set."""
    variables = dict(request.template_kwargs)
    name = next((name for name in SWITCHES if name in checkpoint.template.variables), None)
    if name is None or name in variables:
        return variables
    switches = (variables.get(SWITCHES[0]), request.thinking, written_switch(messages))
    switch = next((message for message in switches if message is not None), None)
    return variables if switch is None else {**variables, name: switch}


def written_switch(messages: Sequence[NormalizedMessage]) -> bool | None:
    """The last `/think` or `/no_think` of the user, as a switch; None without one."""
    for message in reversed(messages):
        if message.role == "user":
            text = message.message["content"]
            last, switch = max((_find_last_word(text, word), switch) for word, switch in WRITTEN_SWITCHES)
            if last >= 0:
                return switch
    return None


def _find_last_word(text: str, word: str) -> int:
    """Where this word stands last between blanks, -1 without it.

    A regular expression tries every place, and no other thread runs meanwhile: half a second for 15 MiB.
    """
    at = text.rfind(word)
    while at >= 0:
        end = at + len(word)
        if not text[at - 1 : at].strip() and not text[end : end + 1].strip():
            return at
        at = text.rfind(word, 0, at)
    return -1


def find_thinking(checkpoint: Checkpoint, prompt: Prompt, prefill: bool) -> Thinking:
    """How the reply to this prompt begins, from the tokens that the prompt ends with."""
    if checkpoint.think is None:
        return "off"
    for piece in reversed(prompt.pieces):
        if not piece.control:
            if prompt.text[piece.start : piece.end].isspace():
                continue
            break
        if piece.token_ids[0] == checkpoint.think.open:
            return "open"
        if piece.token_ids[0] == checkpoint.think.close:
            return "off"
        break
    if prefill or THINK_OPEN not in checkpoint.template.source:
        return "off"
    return "may_open"


def num_think_tokens(checkpoint: Checkpoint, prompt: Prompt) -> int:
    """Tokens at the end of the prompt that open a think block, or are an empty one."""
    if checkpoint.think is None:
        return 0
    num_read = num_tokens = 0
    for piece in reversed(prompt.pieces):
        is_think = piece.control and piece.token_ids[0] in (checkpoint.think.open, checkpoint.think.close)
        if not (is_think or prompt.text[piece.start : piece.end].isspace()):
            break
        num_read += len(piece.token_ids)
        if is_think:
            num_tokens = num_read
    return num_tokens


@dataclass(frozen=True, slots=True)
class CallOpeners:
    """What opens a call inside a think block as well: token ids, and texts that the vocabulary has no token for."""

    ids: tuple[int, ...] = ()
    markers: tuple[str, ...] = ()


def call_openers(checkpoint: Checkpoint, request: ChatRequest) -> CallOpeners:
    """The dialect's opening marker, where a call may come and need not.

    Written inside a think block it ends the block, and the call is held to its schema. Where a call is required it
    comes behind the block, under the grammar; a marker inside is thought about, not meant.
    """
    if request.choice.mode != "auto" or not request.callable_tools:
        return CallOpeners()
    known, opener = checkpoint.marker_ids, checkpoint.dialect.markers[:1]
    return CallOpeners(
        tuple(known[text] for text in opener if text in known), tuple(text for text in opener if text not in known)
    )


def reasoning_phase_for(
    checkpoint: Checkpoint, thinking: Thinking, budget: int | None, forces_call: bool, max_tokens: int
) -> ReasoningPhase | None:
    """The free ids before the constraint; None where no think block can come.

    `budget` is the request's. Where a call is forced, thinking ends early enough to leave it a quarter of `max_tokens`,
    at least MIN_CALL_TOKENS, or half of `max_tokens` where that is less.
    """
    if thinking == "off" or checkpoint.think is None:
        return None
    close_ids = (*checkpoint.encoder.encode_text("\n"), checkpoint.think.close)
    limits = [] if budget is None else [budget]
    if forces_call:
        call_tokens = min(max(MIN_CALL_TOKENS, max_tokens // 4), max_tokens // 2)
        limits.append(max_tokens - call_tokens - len(close_ids))
    open_id = None if thinking == "open" else checkpoint.think.open
    if not limits:
        return ReasoningPhase(checkpoint.think.close, open_id)
    return ReasoningPhase(checkpoint.think.close, open_id, max(0, min(limits)), close_ids)
