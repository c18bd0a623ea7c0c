"""Jinja environment of chat templates: the one that transformers builds, with a record of what the template wrote.

Every string of the template's source is a TemplateText, and so is whatever it prints.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join
from jinja2.idtracking import VAR_LOAD_RESOLVE
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from server.checkpoint.template_text import RawArguments, TemplateText, join_texts, written_text

ROLES = frozenset({"system", "user", "assistant", "tool"})  # the server's own words, so the template's


class CompiledTemplate:
    """A template ready to be rendered. Raises jinja2.TemplateError, RecursionError or SyntaxError."""

    def __init__(self, source: str) -> None:
        environment = _Environment()
        self._template = environment.from_string(source)
        self.variables = environment.undeclared

    def render(self, tokens: Mapping[str, str], variables: Mapping[str, Any]) -> TemplateText:
        """The prompt's text; `tokens` are the tokenizer's own variables. Raises what the template raises."""
        messages = [
            {**one, "role": written_text(one["role"])} if one.get("role") in ROLES else one
            for one in variables.get("messages", ())
        ]
        own = {name: written_text(text) for name, text in tokens.items()}
        text: TemplateText = self._template.render({**own, **variables, "messages": messages})  # type: ignore[assignment]
        return text


class _CodeGenerator(CodeGenerator):
    """Writes strings of the source as TemplateText and `~` as a join of such texts."""

    def enter_frame(self, frame: Frame) -> None:
        super().enter_frame(frame)
        assert isinstance(self.environment, _Environment)
        loads = frame.symbols.loads.values()
        names = {name for action, name in loads if action == VAR_LOAD_RESOLVE and name is not None}
        self.environment.undeclared |= names - self.environment.globals.keys()

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self._write_literal(node.value)
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self._write_literal(node.data)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(environment.filters['string'], ")
        self.visit(nodes.List(node.nodes), frame)
        self.write("))")

    def _output_child_to_const(self, *_: Any) -> NoReturn:
        raise nodes.Impossible

    def _write_literal(self, text: str) -> None:
        assert isinstance(self.environment, _Environment)
        self.environment.literals.append(written_text(text))
        self.write(f"environment.literals[{len(self.environment.literals) - 1}]")


class _Environment(ImmutableSandboxedEnvironment):
    """Environment of one template: `literals` are the strings of its source, `undeclared` the variables it reads."""

    code_generator_class = _CodeGenerator
    concat = staticmethod(join_texts)  # what a template, a macro or a block prints

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False,
            finalize=_shown,
        )  # fmt: skip
        self.literals: list[TemplateText] = []
        self.undeclared: set[str] = set()
        self.filters |= {"tojson": _to_json, "join": _join, "string": _to_text}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _make_dict,
            "namespace": _Namespace,
        }


class _Generation(Extension):
    """`{% generation %}` blocks mark the assistant's text for training; here they only print their body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """`namespace(...)` without names that begin with an underscore, as in transformers: they reach the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        Namespace.__init__(self, {_public_name(name): value for name, value in dict(*rest, **kwargs).items()})

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(_public_name(name), value)


def _public_name(name: str) -> str:
    if name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name}")
    return name


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _shown(value: Any) -> Any:
    """What is printed of a value. Python's word for null is none of a conversation's: models read and write JSON's."""
    return "null" if value is None else value


def _to_text(value: Any) -> str:
    return str(_shown(value))


@jinja2.pass_eval_context
def _join(context: EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    joined: str = do_join(context, value, d if isinstance(d, TemplateText) else TemplateText(str(d)), attribute)
    return joined


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: no HTML escapes, key order kept."""
    if isinstance(value, RawArguments):
        return str(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
