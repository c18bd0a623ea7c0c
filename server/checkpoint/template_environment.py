"""Jinja environment of chat templates: the one that transformers builds, with a budget of time and text a rendering.

jinja2's sandbox keeps a template from reaching Python, but not from looping for hours or filling memory, and a running
template cannot be stopped from another thread. So loop passes, macro calls and text are charged to a budget, and each
charge checks the clock. Text is charged before it is made where one operation can multiply it, else afterwards.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 5.0
MAX_CHARACTERS = 256 << 20
ITEM_CHARACTERS = 8  # charged for an item of a list
MAX_BITS = 4096  # of a number
MAX_EXPONENT = 64
MAX_PADDING = 1 << 16
PADDING = frozenset({"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "zfill"})
GROWING_FILTERS = {
    "batch", "center", "e", "escape", "forceescape", "format", "indent", "list", "pprint", "round", "slice", "string",
    "urlize", "wordwrap", "xmlattr",
}  # fmt: skip
LONG_PADDING = re.compile(r"\d{5}|%[-#0 +.\d]*\*|\{[^{}]*\{")  # as in "%99999d", "%*d" and "{:{}}"
CONCATENATE = "toolwire_concatenate"


class RawArguments(str):
    """Arguments of an earlier call that are not a JSON object; templates print them unchanged."""

    __slots__ = ()


class TemplateLimitExceeded(jinja2.TemplateError):
    """The template has used up the time or the text of one rendering."""


class RenderBudget:
    """Time and characters left to one rendering. Every text made on the way counts, not only the prompt."""

    def __init__(self, seconds: float = MAX_SECONDS, characters: int = MAX_CHARACTERS) -> None:
        self._seconds = seconds
        self._deadline_s = time.monotonic() + seconds
        self._characters = characters

    def spend(self, characters: int) -> None:
        """Charge this many characters and check the clock. Raises TemplateLimitExceeded."""
        self._characters -= characters
        if self._characters < 0:
            raise TemplateLimitExceeded("it makes too much text")
        if time.monotonic() > self._deadline_s:
            raise TemplateLimitExceeded(f"it takes longer than {self._seconds:g} s")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Thread-safe; what a template does inside `limited` is charged to that budget."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._budget: ContextVar[RenderBudget] = ContextVar("budget")
        self.filters |= {name: self._charged(name, self.filters[name]) for name in GROWING_FILTERS}
        self.filters |= {"tojson": self._to_json, "replace": self._replace, "join": self._join, CONCATENATE: self._join}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _make_dict,
            "namespace": _Namespace,
        }
        self.globals.pop("lipsum")

    def compile_tree(self, tree: nodes.Template) -> jinja2.Template:
        """The tree as a template that charges its loop passes, macro calls and `~`."""
        blocks: Iterable[Any] = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        for block in blocks:
            call = nodes.Call(nodes.EnvironmentAttribute("spend"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(call))
        _ConcatToFilter().visit(tree)
        tree.set_environment(self)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    @contextmanager
    def limited(self, budget: RenderBudget) -> Iterator[None]:
        """Charge everything that this thread renders inside to `budget`."""
        token = self._budget.set(budget)
        try:
            yield
        finally:
            self._budget.reset(token)

    def spend(self, characters: int = 0) -> None:
        """Charge the budget of the rendering. Raises TemplateLimitExceeded."""
        self._current().spend(characters)

    def concat(self, parts: Iterable[str]) -> str:
        """Join what a template, macro or block prints."""
        spend = self._current().spend
        charged = []
        for part in parts:
            spend(len(part) + ITEM_CHARACTERS)
            charged.append(part)
        return "".join(charged)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`. Raises TemplateLimitExceeded or SecurityError if the result is too large."""
        if operator == "+":
            self.spend(_characters(left) + _characters(right))
        elif operator == "%" and isinstance(left, str):
            _check_layout(left)
        elif operator == "*" and (size := _characters(left) + _characters(right)):
            self.spend(size * max(0, *(times for times in (left, right, 0) if isinstance(times, int))))
        elif operator in ("*", "**") and not (_is_small(left) and _is_small(right)):
            raise SecurityError("it makes too large a number")
        elif operator == "**" and abs(right) > MAX_EXPONENT:
            raise SecurityError("it raises to too high a power")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call from a template; methods of strings are charged like the filters of the same name."""
        owner = getattr(obj, "__self__", None)
        if not isinstance(owner, str):
            return super().call(context, obj, *args, **kwargs)
        if obj.__name__ == "replace":
            return self._replace(owner, *args, **kwargs)
        if obj.__name__ == "join":
            return self._join(args[0], owner)
        if obj.__name__ in PADDING:
            self._spend_on_padding(owner, *args, *kwargs.values())
        result = super().call(context, obj, *args, **kwargs)
        self.spend(_characters(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """jinja2's safe `format`, for layouts that do not pad far."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_layout(value.__self__)
        return wrapped

    def _current(self) -> RenderBudget:
        return self._budget.get(None) or RenderBudget()  # none where the compiler evaluates constants

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps jinja2's marks of what the filter is passed
        def charged(*args: Any, **kwargs: Any) -> Any:
            if name in PADDING:
                self._spend_on_padding(*args, *kwargs.values())
            elif name == "format":
                _check_layout(str(args[0]))
            result = function(*args, **kwargs)
            self.spend(_characters(result))
            return result

        return charged

    def _spend_on_padding(self, value: Any, *arguments: Any) -> None:
        """Charge the padding of each line and tab. Raises SecurityError if it is too wide."""
        widths = [len(one) if isinstance(one, str) else abs(one) for one in arguments if isinstance(one, str | int)]
        width = max(widths, default=0)
        if width > MAX_PADDING:
            raise SecurityError("it pads too far")
        text = value if isinstance(value, str) else ""
        self.spend(width * (1 + text.count("\n") + text.count("\t")))

    def _replace(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = str(s), str(old), str(new)
        self.spend(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = value if attribute is None else (self.getitem(item, attribute) for item in value)
        texts = [str(item) for item in items]
        self.spend(sum(map(len, texts)) + len(texts) * len(str(d)))
        return str(d).join(texts)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as transformers writes it: no HTML escapes, key order kept."""
        if isinstance(value, RawArguments):
            return str(value)
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        if indent is not None:
            self._spend_on_padding("", indent)
            return self.concat(encoder.iterencode(value))
        text = encoder.encode(value)
        self.spend(len(text))
        return text


class _Generation(Extension):
    """`{% generation %}` blocks mark the assistant's text for training; here they only print their body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _ConcatToFilter(NodeTransformer):
    """Replaces each `~`, which jinja2 does not let an environment intercept, by a filter."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), CONCATENATE, [], [], None, None, lineno=node.lineno)


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


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return len(value) * ITEM_CHARACTERS if isinstance(value, list | tuple) else 0


def _is_small(value: Any) -> bool:
    return not isinstance(value, int) or value.bit_length() <= MAX_BITS


def _check_layout(layout: str) -> None:
    if LONG_PADDING.search(layout):
        raise SecurityError("it pads too far")
