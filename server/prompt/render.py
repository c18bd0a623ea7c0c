"""Render a normalized conversation to text and ids, with everything from outside masked.

Tools are the same from request to request, so their masked form is cached; the ids of repeated pieces are cached by
the encoder. Rendering 128 tools again costs what the template itself costs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from server.byte_cache import ByteCache
from server.checkpoint.encode import EncodedPiece, Encoder
from server.checkpoint.mask import Mask
from server.checkpoint.template import ChatTemplate
from server.errors import BadRequest
from server.prompt.normalize import NormalizedMessage, normalize_tools

# Variables that a request may not set: they are what the conversation itself says.
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
TOOL_CACHE_BYTES = 32 << 20
OBJECT_FACTOR = 8  # bytes of Python objects for each byte of their JSON
PREFILL_END = "\ud800"  # a lone surrogate: in no text from outside, and no sentinel of the mask


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation. `text` still hides what came from outside; `pieces` cover it in order.

    A text too long for the window is not encoded: it has no pieces, and `min_tokens` tokens at least.
    """

    text: str
    pieces: tuple[EncodedPiece, ...]
    min_tokens: int = 0

    @property
    def token_ids(self) -> list[int]:
        """The ids of the whole prompt."""
        return [token_id for piece in self.pieces for token_id in piece.token_ids]

    @property
    def num_tokens(self) -> int:
        """Number of ids, or the least that it can be."""
        return self.min_tokens or sum(len(piece.token_ids) for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class TemplateInput:
    """What a template is given, hidden already. With `prefill` the reply goes on where the last message ends."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    variables: Mapping[str, Any]
    prefill: bool = False
    ask_for_reply: bool = True  # the prompt ends with the head of an assistant's turn


class Renderer:
    """Thread-safe. Knows one template and one tokenizer."""

    def __init__(self, template: ChatTemplate, mask: Mask, encoder: Encoder) -> None:
        self._template = template
        self._mask = mask
        self._encoder = encoder
        self._tools: ByteCache[bytes, tuple[dict[str, Any], ...]] = ByteCache(
            TOOL_CACHE_BYTES, lambda key, _: OBJECT_FACTOR * len(key)
        )

    def template_input(
        self,
        messages: Sequence[NormalizedMessage],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        prefill: bool = False,
    ) -> TemplateInput:
        """Mask everything from outside. Raises BadRequest for variables that a request may not set."""
        taken = sorted(variables.keys() & (RESERVED | self._template.token_variables.keys()))
        if taken:
            names = ", ".join(taken)
            raise BadRequest(f"chat_template_kwargs may not set {names}", param="chat_template_kwargs")
        if prefill and (not messages or messages[-1].role != "assistant" or "tool_calls" in messages[-1].message):
            text = "continue_final_message needs a last message of the assistant, without calls"
            raise BadRequest(text, param="messages")
        masked = tuple(self._mask_message(one.message) for one in messages)
        return TemplateInput(masked, self._mask_tools(tools), self._mask.hide_all(variables), prefill)

    def render(self, template_input: TemplateInput, max_tokens: int | None = None) -> Prompt:
        """Text and ids; no ids where they are certainly more than `max_tokens`.

        Raises BadRequest where the template refuses or fails.
        """
        text = self.render_text(template_input)
        if max_tokens is not None and (min_tokens := self._encoder.min_tokens(text, max_tokens)) > max_tokens:
            return Prompt(text, (), min_tokens)
        return Prompt(text, tuple(self._encoder.pieces(text, self._mask)))

    def render_text(self, template_input: TemplateInput) -> str:
        """The text alone, still hidden."""
        messages = list(template_input.messages)
        if template_input.prefill:
            last = messages[-1]
            # The space tells afterwards whether the template trims what it prints.
            messages[-1] = {**last, "content": last["content"] + PREFILL_END + " "}
        text = self._template.render(
            {
                **template_input.variables,
                "messages": messages,
                "tools": list(template_input.tools) or None,
                "documents": None,
                "add_generation_prompt": template_input.ask_for_reply and not template_input.prefill,
            }
        )
        return _cut_at_prefill(text) if template_input.prefill else text

    def token_starts(self, prompt: Prompt) -> Iterator[int]:
        """Where in the prompt's text each token begins."""
        return self._encoder.token_starts(prompt.text, self._mask, prompt.pieces)

    def _mask_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {key: item if key == "role" else self._mask.hide_all(item) for key, item in message.items()}

    def _mask_tools(self, tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        if not tools:
            return ()
        return self._tools.get(
            msgspec.json.encode(tools), lambda: tuple(self._mask.hide_all(tool) for tool in normalize_tools(tools))
        )


def _cut_at_prefill(text: str) -> str:
    at = text.rfind(PREFILL_END)
    if at < 0:
        raise BadRequest(
            "the chat template does not print the last message as it stands, so it cannot be continued",
            param="continue_final_message",
        )
    kept = text[:at]
    return kept if text.startswith(PREFILL_END + " ", at) else kept.rstrip()
