"""Build the prompt of a ChatRequest, and the Generate messages that go to the engine.

    normalize -> render -> encode -> window -> constrain

The prompt depends on the messages, the tools and the template's variables alone. `tool_choice`,
`parallel_tool_calls`, `response_format` and `allowed_tools` change what may be written, never the prompt, so that a
conversation keeps its cached prefix whatever the next reply must be.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from server.chat_request import ChatRequest, PartTokens, PreparedRequest, RawPrompt, Thinking
from server.checkpoint.checkpoint import Checkpoint
from server.checkpoint.template import RenderedText
from server.dialects.base import ConstraintSpec
from server.dialects.schema.compiled import schema_notes
from server.errors import BadRequest, PromptTooLong
from server.messages import Generate
from server.notes import Note, bounded
from server.prompt import window
from server.prompt.normalize import NormalizedMessage, normalize_messages
from server.prompt.reasoning import (
    call_openers,
    find_thinking,
    num_think_tokens,
    reasoning_phase_for,
    thinking_variables,
)
from server.prompt.render import Prompt, Renderer, TemplateInput
from server.prompt.token_attribution import attribute
from server.settings import Settings

MAX_PROMPT_SCORES = 1 << 20  # of one request: some 100 MB while its reply is written


@dataclass(frozen=True, slots=True)
class Fitted:
    """A rendered conversation, and how many messages were dropped to make it fit the window."""

    messages: tuple[NormalizedMessage, ...]
    template_input: TemplateInput
    prompt: Prompt
    dropped_messages: int = 0


class PromptBuilder:
    """Prepares prompts for one checkpoint. Thread-safe: it is called off the event loop."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self.window = window.Window(checkpoint.max_model_len)
        self._max_new_tokens = settings.api.max_new_tokens
        self._on_overflow = settings.api.on_overflow
        self._renderer = Renderer(
            checkpoint.template, checkpoint.encoder, trust_text=settings.model.trust_control_tokens
        )

    def prepare(self, request: ChatRequest) -> PreparedRequest:
        """The prompt and one Generate a choice.

        Raises BadRequest (the template refuses), PromptTooLong, BadSchema (the reply cannot be constrained).
        """
        if request.raw_prompts:
            return self._prepare_raw(request)
        fitted = self._fit(request)
        if not window.fits(self.window.limit, fitted.prompt.num_tokens):
            raise self._too_long(request, fitted)
        token_ids = fitted.prompt.token_ids
        thinking = find_thinking(self._checkpoint, fitted.prompt, request.continue_final_message)
        # The default is one of text: thoughts and calls would be cut in their middle.
        more_than_text = request.max_tokens is None and (thinking != "off" or bool(request.callable_tools))
        default = self.window.limit if more_than_text else self._max_new_tokens
        max_tokens = window.reply_tokens(self.window.limit, len(token_ids), request.max_tokens, default)
        openers = call_openers(self._checkpoint, request)
        num_volatile = num_think_tokens(self._checkpoint, fitted.prompt)
        generates = self._generates(request, token_ids, thinking, max_tokens, openers.ids, num_volatile)
        names = {tool.name for tool in request.callable_tools}
        return PreparedRequest(
            generates=generates,
            prompt_tokens=len(token_ids),
            thinking=thinking,
            max_text_tokens=self._max_new_tokens if more_than_text else None,
            dropped_messages=fitted.dropped_messages,
            notes=bounded(
                [
                    *request.notes,
                    *_note_on_thinking(request.thinking, thinking),
                    *schema_notes(request.tools, names, request.answer, self._checkpoint.dialect.raw_strings),
                ]
            ),
            call_ids=openers.ids,
            call_markers=openers.markers,
        )

    def count(self, request: ChatRequest) -> tuple[PartTokens, ...]:
        """The prompt's tokens by part; their sum is `prompt_tokens` of the same request, or what is too many.

        Raises BadRequest where the template refuses, PromptTooLong for a text that is too long to be counted.
        """
        fitted = self._fit(request)
        if fitted.prompt.min_tokens:
            raise self._too_long(request, fitted)
        return self._part_tokens(fitted)

    def _prepare_raw(self, request: ChatRequest) -> PreparedRequest:
        """Raises PromptTooLong, BadRequest for more logprobs than a reply may have."""
        generates: list[Generate] = []
        num_tokens = 0
        for position, prompt in enumerate(request.raw_prompts):
            token_ids = self._encode_raw(prompt, 0 if request.max_tokens == 0 else window.MIN_REPLY_TOKENS)
            num_tokens += len(token_ids)
            limit, max_tokens = self.window.limit, 0
            if request.max_tokens != 0:
                max_tokens = window.reply_tokens(limit, len(token_ids), request.max_tokens, self._max_new_tokens)
            one = replace(request, id=f"{request.id}-{position}")
            generates += (
                msgspec.structs.replace(
                    generate,
                    stop_ids=(*generate.stop_ids, *prompt.stop_ids),
                    prompt_logprobs=request.prompt_logprobs,
                )
                for generate in self._generates(one, token_ids, "off", max_tokens, ())
            )
        _check_scores(request, num_tokens)
        return PreparedRequest(
            generates=tuple(generates),
            prompt_tokens=num_tokens,
            thinking="off",
            notes=bounded([*request.notes, *schema_notes((), (), request.answer)]),
            num_prompts=len(request.raw_prompts),
        )

    def _encode_raw(self, prompt: RawPrompt, min_reply: int) -> list[int]:
        """The prompt's ids. Raises PromptTooLong, of a text that is certainly too long before it is encoded."""
        encoder, limit = self._checkpoint.encoder, self.window.limit
        texts = [part for part in prompt.parts if isinstance(part, str)]
        if (least := sum(encoder.min_tokens(text, limit) for text in texts)) > limit:
            raise _raw_too_long(limit, least, at_least=True)
        token_ids = [
            token_id
            for part in prompt.parts
            for token_id in (encoder.encode(RenderedText(part)) if isinstance(part, str) else part)
        ]
        if len(token_ids) + min_reply > limit:
            raise _raw_too_long(limit, len(token_ids), at_least=False)
        return token_ids

    def _fit(self, request: ChatRequest) -> Fitted:
        """The whole prompt, or one without its oldest messages where the request allows it."""
        checkpoint = self._checkpoint
        names = [tool.name for tool in request.tools]
        messages = tuple(
            normalize_messages(request.messages, checkpoint.capabilities, checkpoint.dialect.call_id, names)
        )
        variables = thinking_variables(self._checkpoint, request, messages)

        def render(kept: Sequence[NormalizedMessage]) -> Fitted:
            template_input = self._renderer.template_input(
                kept, request.tool_definitions, variables, request.continue_final_message
            )
            dropped = sum(len(one.sources) for one in messages) - sum(len(one.sources) for one in kept)
            return Fitted(
                tuple(kept), template_input, self._renderer.render(template_input, self.window.limit), dropped
            )

        whole = render(messages)
        refuses = (request.on_overflow or self._on_overflow) == "refuse"
        if refuses or window.fits(self.window.limit, whole.prompt.num_tokens):
            return whole
        max_prompt_tokens = window.max_prompt_tokens(self.window.limit, request.max_tokens, self._max_new_tokens)
        return _drop_oldest(messages, render, max_prompt_tokens, self.window.limit) or whole

    def _part_tokens(self, fitted: Fitted) -> tuple[PartTokens, ...]:
        return attribute(self._checkpoint, self._renderer, fitted.template_input, fitted.prompt, fitted.messages)

    def _too_long(self, request: ChatRequest, fitted: Fitted) -> PromptTooLong:
        if fitted.prompt.min_tokens:
            return window.too_long(self.window.limit, fitted.prompt.min_tokens, 0, at_least=True)
        parts = self._part_tokens(fitted) if request.tool_definitions else ()
        function_tokens = sum(part.tokens for part in parts if part.part.startswith("tools"))
        return window.too_long(self.window.limit, fitted.prompt.num_tokens - function_tokens, function_tokens)

    def _generates(
        self,
        request: ChatRequest,
        token_ids: list[int],
        thinking: Thinking,
        max_tokens: int,
        call_ids: tuple[int, ...],
        num_volatile: int = 0,
    ) -> tuple[Generate, ...]:
        checkpoint = self._checkpoint
        spec = ConstraintSpec(
            request.tools,
            request.choice,
            request.answer,
            checkpoint.marker_ids,
            after_thinking=thinking != "off",
            must_answer=request.must_answer,
        )
        constraint = checkpoint.dialect.constrain(spec)
        forces_call = request.choice.mode == "required"
        reasoning_phase = reasoning_phase_for(checkpoint, thinking, request.thinking_budget, forces_call, max_tokens)
        if reasoning_phase is not None and call_ids:
            reasoning_phase = msgspec.structs.replace(reasoning_phase, break_ids=call_ids)
        seed = request.sampling.seed
        return tuple(
            Generate(
                id=f"{request.id}-{i}",
                token_ids=token_ids,
                sampling=msgspec.structs.replace(
                    request.sampling, max_tokens=max_tokens, seed=None if seed is None else seed + i
                ),
                stop_ids=checkpoint.stop_ids,
                constraint=constraint,
                reasoning_phase=reasoning_phase,
                cache_salt=request.cache_salt,
                num_volatile=num_volatile,
                trace=request.trace,
                session=request.session,
                adapter=request.adapter,
            )
            for i in range(request.n)
        )


def _check_scores(request: ChatRequest, num_tokens: int) -> None:
    num_scores = request.n * num_tokens * (1 + (request.prompt_logprobs or 0))
    if request.prompt_logprobs is not None and num_scores > MAX_PROMPT_SCORES:
        text = (
            f"'echo' with 'logprobs' gives at most {MAX_PROMPT_SCORES} values in one reply, but {num_scores} are asked "
        )
        text += f"for: {num_tokens} tokens of prompt, each with {request.prompt_logprobs} alternatives"
        text += f", in {request.n} choices" * (request.n > 1)
        raise BadRequest(f"{text}. Send fewer prompts in a request, or lower 'logprobs'.", param="logprobs")


def _raw_too_long(limit: int, num_tokens: int, at_least: bool) -> PromptTooLong:
    text = f"This model's maximum context length is {limit} tokens. However, your prompt has "
    text += f"{'at least ' if at_least else ''}{num_tokens} tokens. Please reduce the length of the prompt."
    return PromptTooLong(text, num_tokens, limit, param="prompt", code="context_length_exceeded")


def _note_on_thinking(wished: bool | None, begins: Thinking) -> Iterator[Note]:
    """Yield a note where the reply will not think, or will, against the request's switch."""
    if wished is False and begins == "open":
        yield Note("thinking", "", "This model cannot answer without thinking.")
    elif wished and begins == "off":
        yield Note("thinking", "", "This model, or its template here, cannot think.")


def _drop_oldest(
    messages: Sequence[NormalizedMessage],
    render: Callable[[Sequence[NormalizedMessage]], Fitted],
    max_prompt_tokens: int,
    limit: int,
) -> Fitted | None:
    """The conversation without its oldest groups, as few as possible; None if it cannot fit at all."""
    groups = window.droppable(messages)
    low, high = 1, len(groups)
    best: Fitted | None = None
    while low <= high:  # the fewest groups whose going is enough
        middle = (low + high) // 2
        tried = render(window.without(messages, groups[:middle]))
        if tried.prompt.num_tokens <= max_prompt_tokens:
            best, high = tried, middle - 1
        else:
            low = middle + 1
            if middle == len(groups) and window.fits(limit, tried.prompt.num_tokens):
                best = tried
    return best
