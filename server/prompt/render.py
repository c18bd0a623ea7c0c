"""Render a normalized conversation to text and ids, with a record of what the template wrote.

Tools are the same from request to request, so their normalized form is cached; the ids of repeated pieces are cached by
the encoder. Rendering 128 tools again costs what the template itself costs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from server.byte_cache import ByteCache
from server.checkpoint.encode import EncodedPiece, Encoder
from server.checkpoint.template import ChatTemplate, RenderedText
from server.errors import BadRequest
from server.prompt.normalize import NormalizedMessage, normalize_tools

# Variables that a request may not set: they are what the conversation itself says.
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
TOOL_CACHE_BYTES = 32 << 20
OBJECT_FACTOR = 8  # bytes of Python objects for each byte of their JSON
LONE_SURROGATES = re.compile("[\ud800-\udfff]")
PREFILL_END = "\ud800"  # in no text from outside


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation; `pieces` cover its text in order.

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
    """What a template is given. With `prefill` the reply goes on where the last message ends."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    variables: Mapping[str, Any]
    prefill: bool = False
    ask_for_reply: bool = True  # the prompt ends with the head of an assistant's turn


class Renderer:
    """Thread-safe. Knows one template and one tokenizer.

    With `trust_text` whatever looks like a control token is one, in text from outside too.
    """

    def __init__(self, template: ChatTemplate, encoder: Encoder, trust_text: bool = False) -> None:
        self._template = template
        self._encoder = encoder
        self._trust_text = trust_text
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
        """Replace lone surrogates, which no tokenizer encodes. Raises BadRequest for variables no request may set."""
        taken = sorted(variables.keys() & (RESERVED | self._template.token_variables.keys()))
        if taken:
            names = ", ".join(taken)
            raise BadRequest(f"chat_template_kwargs may not set {names}", param="chat_template_kwargs")
        if prefill and (not messages or messages[-1].role != "assistant" or "tool_calls" in messages[-1].message):
            text = "continue_final_message needs a last message of the assistant, without calls"
            raise BadRequest(text, param="messages")
        cleaned = tuple(_without_surrogates(one.message) for one in messages)
        return TemplateInput(cleaned, self._normalize_tools(tools), _without_surrogates(variables), prefill)

    def render(self, template_input: TemplateInput, max_tokens: int | None = None) -> Prompt:
        """Text and ids; no ids where they are certainly more than `max_tokens`.

        Raises BadRequest where the template refuses or fails.
        """
        rendered = self.render_text(template_input)
        text = rendered.text
        if max_tokens is not None and (min_tokens := self._encoder.min_tokens(text, max_tokens)) > max_tokens:
            return Prompt(text, (), min_tokens)
        return Prompt(text, tuple(self._encoder.pieces(rendered)))

    def render_text(self, template_input: TemplateInput) -> RenderedText:
        """The text alone. Raises as `render`."""
        messages = list(template_input.messages)
        if template_input.prefill:
            last = messages[-1]
            # The space tells afterwards whether the template trims what it prints.
            messages[-1] = {**last, "content": last["content"] + PREFILL_END + " "}
        rendered = self._template.render(
            {
                **template_input.variables,
                "messages": messages,
                "tools": list(template_input.tools) or None,
                "documents": None,
                "add_generation_prompt": template_input.ask_for_reply and not template_input.prefill,
            }
        )
        text = _cut_at_prefill(rendered.text) if template_input.prefill else rendered.text
        return RenderedText(text, ((0, len(text)),) if self._trust_text else rendered.written)

    def count_before(self, prompt: Prompt, places: Sequence[int]) -> list[int]:
        """How many of the prompt's tokens begin before each of these places of its text, which must be sorted."""
        return self._encoder.count_before(prompt.text, prompt.pieces, places)

    def _normalize_tools(self, tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
        if not tools:
            return ()
        return self._tools.get(
            msgspec.json.encode(tools), lambda: tuple(map(_without_surrogates, normalize_tools(tools)))
        )


def _has_surrogates(text: str) -> bool:
    """Whether the text cannot be encoded; a search for them takes twenty times as long."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _without_surrogates(value: Any) -> Any:
    """A copy of a JSON value with a replacement character for each lone surrogate, in keys too."""
    if isinstance(value, str):
        return type(value)(LONE_SURROGATES.sub("\ufffd", value)) if _has_surrogates(value) else value
    if isinstance(value, Mapping):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list | tuple) else value


def _cut_at_prefill(text: str) -> str:
    at = text.rfind(PREFILL_END)
    if at < 0:
        raise BadRequest(
            "the chat template does not print the last message as it stands, so it cannot be continued",
            param="continue_final_message",
        )
    kept = text[:at]
    return kept if text.startswith(PREFILL_END + " ", at) else kept.rstrip()
