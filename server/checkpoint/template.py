"""Chat template of a checkpoint: its source, the variables in it, and rendering."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.checkpoint.render_process import RenderProcess, RenderRequest
from server.checkpoint.template_text import Spans
from server.errors import BadRequest, CannotStart, TemplateExhausted

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"  # around reasoning, in the templates and replies of every family
MAX_SECONDS = 5.0  # of CPU time a rendering
RENDERER = RenderProcess()


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A prompt's text; `written` are the spans of characters that the template wrote: only they can be tokens."""

    text: str
    written: Spans = ()

    def after(self, start: int) -> "RenderedText":
        """The text from character `start` on."""
        spans = ((max(0, first - start), last - start) for first, last in self.written if last > start)
        return RenderedText(self.text[start:], tuple(spans))


class ChatTemplate:
    """One template. `token_variables` are the tokenizer's own variables (`bos_token` and so on).

    `variables` are the names that it reads. Thread-safe. Raises CannotStart if the source cannot be compiled.
    """

    def __init__(self, source: str, origin: str, token_variables: Mapping[str, str]) -> None:
        self.source = source
        self.origin = origin
        self.token_variables = dict(token_variables)
        try:
            reply, _ = RENDERER.render(RenderRequest(source, {}, None, MAX_SECONDS))
        except TemplateExhausted as error:
            raise CannotStart(f"the chat template {origin} cannot be compiled: {error}") from error
        if fault := reply.refusal or reply.failure:
            raise CannotStart(f"the chat template {origin} cannot be compiled: {fault}")
        self.variables = frozenset(reply.variables)

    @property
    def knows_tools(self) -> bool:
        """Whether it reads `tools` at all."""
        return "tools" in self.variables

    def render(self, variables: Mapping[str, Any], seconds: float | None = None) -> RenderedText:
        """The prompt's text.

        Raises BadRequest with the template's own message where it refuses or fails, TemplateExhausted where it needs
        too much time or memory.
        """
        request = RenderRequest(self.source, self.token_variables, dict(variables), seconds or MAX_SECONDS)
        try:
            reply, text = RENDERER.render(request)
        except TemplateExhausted as error:
            reason = f"The chat template cannot render this conversation: {error}"
            raise TemplateExhausted(reason, param="messages") from error
        if reply.refusal:
            raise BadRequest(f"The chat template refuses this conversation: {reply.refusal}", param="messages")
        if reply.failure:
            raise BadRequest(f"The chat template fails on this conversation: {reply.failure}", param="messages")
        return RenderedText(text, reply.written)
