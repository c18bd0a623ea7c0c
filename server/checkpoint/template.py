"""A model's chat template: what it is made of, and the text it makes of a conversation."""

from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes

from server.checkpoint.template_environment import MAX_CHARACTERS, RenderBudget, Sandbox, TemplateLimitExceeded
from server.errors import BadRequest, CannotStart


class ChatTemplate:
    """One compiled template. `strings` are the tokenizer's own variables (`bos_token` and so on).

    `literals` are the texts that it may print by itself, `variables` the names that it reads. Thread-safe.
    Raises CannotStart if the source is no template.
    """

    def __init__(self, source: str, origin: str, strings: Mapping[str, str]) -> None:
        self.source = source
        self.origin = origin
        self.strings = dict(strings)
        self._sandbox = Sandbox()
        try:
            tree = self._sandbox.parse(source)
            self.literals = frozenset(_literals(tree))
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            self._template = self._sandbox.compiled(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise CannotStart(f"the chat template {origin} cannot be compiled: {error}") from error

    @property
    def knows_tools(self) -> bool:
        """Whether it reads `tools` at all."""
        return "tools" in self.variables

    def render(self, variables: Mapping[str, Any], allowance: RenderBudget | None = None) -> str:
        """The prompt's text. Raises BadRequest with the template's own words where it refuses or fails."""
        try:
            with self._sandbox.metered(allowance or RenderBudget()):
                text = "".join(_measured(self._template.generate({**self.strings, **variables})))
        except jinja2.TemplateError as error:
            raise BadRequest(f"The chat template refuses this conversation: {error}", param="messages") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            said = f"{type(error).__name__}: {error}"
            raise BadRequest(f"The chat template fails on this conversation: {said}", param="messages") from error
        except RecursionError as error:
            raise BadRequest("The chat template goes too deep on this conversation", param="messages") from error
        return text


def _measured(chunks: Iterator[str]) -> Iterator[str]:
    left = MAX_CHARACTERS
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise TemplateLimitExceeded("it writes too much")
        yield chunk


def _literals(tree: nodes.Template) -> Iterator[str]:
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
