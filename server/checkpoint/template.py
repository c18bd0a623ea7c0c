"""Chat template of a checkpoint: its source, the texts and variables in it, and rendering."""

from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import meta, nodes

from server.checkpoint.template_environment import RenderBudget, TemplateEnvironment
from server.errors import BadRequest, CannotStart

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"  # around reasoning, in the templates and replies of every family


class ChatTemplate:
    """One compiled template. `token_variables` are the tokenizer's own variables (`bos_token` and so on).

    `literals` are the texts that it may print by itself, `variables` the names that it reads. Thread-safe.
    Raises CannotStart if the source cannot be compiled.
    """

    def __init__(self, source: str, origin: str, token_variables: Mapping[str, str]) -> None:
        self.source = source
        self.origin = origin
        self.token_variables = dict(token_variables)
        self._environment = TemplateEnvironment()
        try:
            tree = self._environment.parse(source)
            self.literals = frozenset(_literals(tree))
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            self._template = self._environment.compile_tree(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise CannotStart(f"the chat template {origin} cannot be compiled: {error}") from error

    @property
    def knows_tools(self) -> bool:
        """Whether it reads `tools` at all."""
        return "tools" in self.variables

    def render(self, variables: Mapping[str, Any], budget: RenderBudget | None = None) -> str:
        """The prompt's text. Raises BadRequest with the template's own message where it refuses or fails."""
        try:
            with self._environment.limited(budget or RenderBudget()):
                return self._template.render({**self.token_variables, **variables})
        except jinja2.TemplateError as error:
            raise BadRequest(f"The chat template refuses this conversation: {error}", param="messages") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise BadRequest(f"The chat template fails on this conversation: {cause}", param="messages") from error
        except RecursionError as error:
            raise BadRequest("The chat template goes too deep on this conversation", param="messages") from error


def _literals(tree: nodes.Template) -> Iterator[str]:
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
