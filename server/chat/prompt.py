"""One Ask -> what goes through the door: ids, sampling, stop ids, constraint, room to think.

    shape -> hide -> render -> encode -> window -> constrain

The prompt depends on the messages, the tools and the template's variables alone. `tool_choice`,
`parallel_tool_calls`, `response_format` and `allowed_tools` change what may be written, never what is read, so that a
conversation keeps its prefix whatever is asked of the next reply.
"""

from dataclasses import dataclass

import msgspec

from server.chat import window
from server.chat.ask import Ask, Prepared, Share, Thinking
from server.chat.checkpoint import Checkpoint
from server.chat.preamble import find_thinking, preamble_for, thinking_variables
from server.chat.render import Prompt, Renderer, Script
from server.chat.shapes import Shaped, shape
from server.chat.shares import whole
from server.dialects.protocol import Wanted
from server.messages import Generate
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits the window, and what went to make it fit."""

    shaped: tuple[Shaped, ...]
    script: Script
    prompt: Prompt
    dropped_messages: int = 0


class Prompter:
    """Prepares prompts for one checkpoint. Thread-safe: the API calls it off the event loop."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self._limit = checkpoint.max_model_len
        self._max_new_tokens = settings.api.max_new_tokens
        self._on_overflow = settings.api.on_overflow
        self._renderer = Renderer(checkpoint.template, checkpoint.mask, checkpoint.encoder)

    def prepare(self, ask: Ask) -> Prepared:
        """The prompt and one Generate a choice.

        Raises BadRequest (the template refuses), PromptTooLong, BadSchema (what is wanted cannot be constrained).
        """
        fitted = self._fit(ask)
        token_ids = fitted.prompt.token_ids
        max_tokens = window.reply_room(self._limit, len(token_ids), ask.max_tokens, self._max_new_tokens)
        thinking = find_thinking(self._checkpoint, fitted.prompt, ask.continue_final_message)
        return Prepared(
            generates=self._generates(ask, token_ids, thinking, max_tokens),
            prompt_tokens=len(token_ids),
            thinking=thinking,
            dropped_messages=fitted.dropped_messages,
        )

    def count(self, ask: Ask) -> tuple[Share, ...]:
        """The prompt's tokens by part; their sum is `prompt_tokens` of the same request."""
        return whole(self._fit(ask).prompt)

    def _fit(self, ask: Ask) -> Fitted:
        shaped = tuple(shape(ask.messages, self._checkpoint.habits))
        variables = thinking_variables(self._checkpoint, ask, shaped)
        script = self._renderer.script(shaped, ask.tool_definitions, variables, ask.continue_final_message)
        prompt = self._renderer.render(script)
        if window.fits(self._limit, prompt.num_tokens):
            return Fitted(shaped, script, prompt)
        raise window.too_long(self._limit, prompt.num_tokens, 0)

    def _generates(self, ask: Ask, token_ids: list[int], thinking: Thinking, max_tokens: int) -> tuple[Generate, ...]:
        checkpoint = self._checkpoint
        wanted = Wanted(ask.tools, ask.choice, ask.answer, checkpoint.marker_ids)
        call_tokens = None
        if ask.choice.mode == "required":
            call_tokens = len(checkpoint.tokenizer.encode(checkpoint.dialect.shortest(wanted)).ids)
        constraint = checkpoint.dialect.constrain(wanted)
        preamble = preamble_for(checkpoint, thinking, ask.thinking_budget, call_tokens, max_tokens)
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
                preamble=preamble,
                group=ask.id if ask.n > 1 else None,
            )
            for i in range(ask.n)
        )
