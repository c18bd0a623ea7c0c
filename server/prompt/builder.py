"""One Ask -> what goes through the door: ids, sampling, stop ids, constraint, room to think.

    shape -> hide -> render -> encode -> window -> constrain

The prompt depends on the messages, the tools and the template's variables alone. `tool_choice`,
`parallel_tool_calls`, `response_format` and `allowed_tools` change what may be written, never what is read, so that a
conversation keeps its prefix whatever is asked of the next reply.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from server.chat_request import ChatRequest, PartTokens, PreparedRequest, Thinking
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.mask import Mask
from server.dialects.base import ConstraintSpec
from server.errors import PromptTooLong
from server.messages import Generate
from server.prompt import window
from server.prompt.normalize import NormalizedMessage, normalize_messages
from server.prompt.reasoning import call_openers, find_thinking, reasoning_phase_for, thinking_variables
from server.prompt.render import Prompt, Renderer, TemplateInput
from server.prompt.token_attribution import attribute
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits the window, and what went to make it fit."""

    shaped: tuple[NormalizedMessage, ...]
    script: TemplateInput
    prompt: Prompt
    dropped_messages: int = 0


class PromptBuilder:
    """Prepares prompts for one checkpoint. Thread-safe: the API calls it off the event loop."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self.window = window.Window(checkpoint.max_model_len)
        self._max_new_tokens = settings.api.max_new_tokens
        self._on_overflow = settings.api.on_overflow
        mask = Mask([]) if settings.model.trust_control_tokens else checkpoint.mask
        self._renderer = Renderer(checkpoint.template, mask, checkpoint.encoder)

    def prepare(self, ask: ChatRequest) -> PreparedRequest:
        """The prompt and one Generate a choice.

        Raises BadRequest (the template refuses), PromptTooLong, BadSchema (what is wanted cannot be constrained).
        """
        fitted = self._fit(ask)
        if not window.fits(self.window.limit, fitted.prompt.num_tokens):
            raise self._too_long(fitted)
        token_ids = fitted.prompt.token_ids
        max_tokens = window.reply_room(self.window.limit, len(token_ids), ask.max_tokens, self._max_new_tokens)
        thinking = find_thinking(self._checkpoint, fitted.prompt, ask.continue_final_message)
        openers = call_openers(self._checkpoint, ask)
        return PreparedRequest(
            generates=self._generates(ask, token_ids, thinking, max_tokens, openers.ids),
            prompt_tokens=len(token_ids),
            thinking=thinking,
            dropped_messages=fitted.dropped_messages,
            call_ids=openers.ids,
            call_markers=openers.markers,
        )

    def count(self, ask: ChatRequest) -> tuple[PartTokens, ...]:
        """The prompt's tokens by part; their sum is `prompt_tokens` of the same request, or what is too many.

        Raises BadRequest where the template refuses.
        """
        return self._shares(self._fit(ask))

    def _fit(self, ask: ChatRequest) -> Fitted:
        """The whole prompt, or a shorter one where that is wanted and possible."""
        shaped = tuple(normalize_messages(ask.messages, self._checkpoint.capabilities))
        variables = thinking_variables(self._checkpoint, ask, shaped)

        def render(kept: Sequence[NormalizedMessage]) -> Fitted:
            script = self._renderer.script(kept, ask.tool_definitions, variables, ask.continue_final_message)
            dropped = sum(len(one.sources) for one in shaped) - sum(len(one.sources) for one in kept)
            return Fitted(tuple(kept), script, self._renderer.render(script), dropped)

        whole = render(shaped)
        refuses = (ask.on_overflow or self._on_overflow) == "refuse"
        if refuses or window.fits(self.window.limit, whole.prompt.num_tokens):
            return whole
        largest = window.largest_prompt(self.window.limit, ask.max_tokens, self._max_new_tokens)
        return _drop_oldest(shaped, render, largest, self.window.limit) or whole

    def _shares(self, fitted: Fitted) -> tuple[PartTokens, ...]:
        return attribute(self._checkpoint, self._renderer, fitted.script, fitted.prompt, fitted.shaped)

    def _too_long(self, fitted: Fitted) -> PromptTooLong:
        functions = sum(share.tokens for share in self._shares(fitted) if share.part.startswith("tools"))
        return window.too_long(self.window.limit, fitted.prompt.num_tokens - functions, functions)

    def _generates(
        self,
        ask: ChatRequest,
        token_ids: list[int],
        thinking: Thinking,
        max_tokens: int,
        call_ids: tuple[int, ...],
    ) -> tuple[Generate, ...]:
        checkpoint = self._checkpoint
        wanted = ConstraintSpec(
            ask.tools,
            ask.choice,
            ask.answer,
            checkpoint.marker_ids,
            after_thinking=thinking != "off",
            must_answer=ask.must_answer,
        )
        call_tokens = None
        if ask.choice.mode == "required":
            call_tokens = len(checkpoint.tokenizer.encode(checkpoint.dialect.shortest(wanted)).ids)
        constraint = checkpoint.dialect.constrain(wanted)
        reasoning_phase = reasoning_phase_for(checkpoint, thinking, ask.thinking_budget, call_tokens, max_tokens)
        if reasoning_phase is not None and call_ids:
            reasoning_phase = msgspec.structs.replace(reasoning_phase, break_ids=call_ids)
        seed = ask.sampling.seed
        return tuple(
            Generate(
                id=f"{ask.id}-{i}",
                token_ids=token_ids,
                sampling=msgspec.structs.replace(
                    ask.sampling, max_tokens=max_tokens, seed=None if seed is None else seed + i
                ),
                stop_ids=checkpoint.stop_ids,
                constraint=constraint,
                reasoning_phase=reasoning_phase,
            )
            for i in range(ask.n)
        )


def _drop_oldest(
    shaped: Sequence[NormalizedMessage],
    render: Callable[[Sequence[NormalizedMessage]], Fitted],
    largest: int,
    limit: int,
) -> Fitted | None:
    """The conversation without its oldest groups: as few as make it `largest` tokens, or at least fit at all."""
    groups = window.droppable(shaped)
    low, high = 1, len(groups)
    best: Fitted | None = None
    while low <= high:  # the fewest groups whose going is enough
        middle = (low + high) // 2
        tried = render(window.without(shaped, groups[:middle]))
        if tried.prompt.num_tokens <= largest:
            best, high = tried, middle - 1
        else:
            low = middle + 1
            if middle == len(groups) and window.fits(limit, tried.prompt.num_tokens):
                best = tried
    return best
