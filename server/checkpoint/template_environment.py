"""Where chat templates run: the environment that transformers builds, with every loop and every growing text metered.

jinja2's sandbox keeps a template from reaching Python; it does not keep it from looping for hours or from filling
memory. Here each loop pass and macro call counts, the clock is read on the way, and whatever multiplies text or
numbers is measured before it is made.
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

MAX_STEPS = 2_000_000  # loop passes and macro calls
MAX_SECONDS = 5.0
MAX_CHARACTERS = 64 << 20  # of the prompt, and of any one text made on the way
MAX_MADE = 256 << 20  # characters of all of these
MAX_ITEMS = 1 << 20  # of a list made by + or *
MAX_BITS = 4096  # of a number
MAX_PADDING = 1 << 16
STEPS_BETWEEN_CLOCKS = 256
PADDING_METHODS = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
PADDING_FILTERS = ("center", "indent", "batch", "slice", "wordwrap", "truncate", "round")
LONG_NUMBER = re.compile(r"\d{5}|\*")


class RawArguments(str):
    """Arguments of an earlier call that are no JSON object, kept to the letter."""

    __slots__ = ()


class TemplateLimitExceeded(jinja2.TemplateError):
    """The template has taken all the time or room that one prompt may take."""


class RenderBudget:
    """How much one rendering may still do."""

    def __init__(self, steps: int = MAX_STEPS, seconds: float = MAX_SECONDS, characters: int = MAX_MADE) -> None:
        self._steps = steps
        self._seconds = seconds
        self._characters = characters
        self._deadline_s = time.monotonic() + seconds

    def tick(self) -> None:
        """One more loop pass or macro call; raises UsedUp."""
        self._steps -= 1
        if self._steps < 0:
            raise TemplateLimitExceeded("it loops too often")
        if self._steps % STEPS_BETWEEN_CLOCKS == 0 and time.monotonic() > self._deadline_s:
            raise TemplateLimitExceeded(f"it takes longer than {self._seconds:g} s")

    def spend(self, characters: int) -> None:
        """So many more characters are about to be made; raises UsedUp."""
        self._characters -= characters
        if self._characters < 0 or characters > MAX_CHARACTERS:
            raise TemplateLimitExceeded("it makes too much text")
        if time.monotonic() > self._deadline_s:
            raise TemplateLimitExceeded(f"it takes longer than {self._seconds:g} s")


class Sandbox(ImmutableSandboxedEnvironment):
    """Thread-safe; what runs inside `metered` counts against that allowance."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._allowance: ContextVar[RenderBudget] = ContextVar("allowance")
        self.filters |= {name: _numbers_checked(self.filters[name]) for name in PADDING_FILTERS}
        self.filters |= {
            "tojson": to_json,
            "replace": self._replace,
            "join": self._join,
            "toolwire_concat": self._concat,
        }
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _make_dict,
            "namespace": _PlainNamespace,
        }
        self.globals.pop("lipsum")

    def compiled(self, tree: nodes.Template) -> jinja2.Template:
        """The tree as a template, with a tick at the head of each loop and macro and each `~` measured."""
        blocks: Iterable[Any] = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        for block in blocks:
            call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(call))
        _Measuring().visit(tree)
        tree.set_environment(self)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    @contextmanager
    def metered(self, allowance: RenderBudget) -> Iterator[None]:
        """Everything rendered inside by this thread counts against `allowance`."""
        token = self._allowance.set(allowance)
        try:
            yield
        finally:
            self._allowance.reset(token)

    def tick(self) -> None:
        """Called by templates at the head of each loop pass and macro."""
        self._current().tick()

    def concat(self, parts: Iterable[str]) -> str:
        """Joins what macros, blocks and the whole template print."""
        parts = list(parts)
        self._current().spend(sum(map(len, parts)))
        return "".join(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, unless that is of absurd size."""
        if operator == "+":
            self._check_sum(left, right)
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**" and not (_small(left) and _small(right) and abs(right) <= 64):
            raise SecurityError("it raises to too high a power")
        elif operator == "%" and isinstance(left, str) and LONG_NUMBER.search(left):
            raise SecurityError("it pads too far")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call from a template; methods of strings that could fill memory are measured."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            if name in PADDING_METHODS:
                _check_numbers((*args, *kwargs.values()))
                self._current().spend(len(owner) + MAX_PADDING)
            elif name == "replace":
                return self._replace(owner, *args, **kwargs)
            elif name == "join":
                return self._join(args[0], owner)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """jinja2's safe `format`, for layouts without long numbers."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and LONG_NUMBER.search(value.__self__):
            raise SecurityError("it pads too far")
        return wrapped

    def _current(self) -> RenderBudget:
        return self._allowance.get(None) or RenderBudget()

    def _concat(self, items: list[Any]) -> str:
        return self.concat(map(str, items))

    def _replace(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = str(s), str(old), str(new)
        self._current().spend(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = list(value)
        if attribute is not None:
            items = [self.getitem(item, attribute) for item in items]
        texts = [str(item) for item in items]
        self._current().spend(sum(map(len, texts)) + len(texts) * len(str(d)))
        return str(d).join(texts)

    def _check_sum(self, left: Any, right: Any) -> None:
        if isinstance(left, str) and isinstance(right, str):
            self._current().spend(len(left) + len(right))
        elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
            if len(left) + len(right) > MAX_ITEMS:
                raise SecurityError("it makes too long a list")
            self._current().spend(len(left) + len(right))

    def _check_product(self, left: Any, right: Any) -> None:
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int):
                if not isinstance(many, str) and len(many) * times > MAX_ITEMS:
                    raise SecurityError("it makes too long a list")
                self._current().spend(len(many) * max(0, times))
                return
        if not (_small(left) and _small(right)):
            raise SecurityError("it makes too large a number")


class _Generation(Extension):
    """`{% generation %}` blocks mark the assistant's text for training; here they only print their body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Measuring(NodeTransformer):
    """Puts a measured filter in the place of each `~`."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "toolwire_concat", [], [], None, None, lineno=node.lineno)


class _PlainNamespace(Namespace):
    """`namespace(...)` without underscored names, through which a template could reach the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        Namespace.__init__(self, {_plain_name(name): value for name, value in dict(*rest, **kwargs).items()})

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(_plain_name(name), value)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers does it: no HTML escapes, key order kept. Arguments that are no JSON come out as they are."""
    if isinstance(value, RawArguments):
        return str(value)
    _check_numbers((indent,))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain_name(name: str) -> str:
    if name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, such as {name}")
    return name


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _small(value: Any) -> bool:
    return not isinstance(value, int) or value.bit_length() <= MAX_BITS


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_PADDING:
            raise SecurityError("it pads too far")


def _numbers_checked(wrapped: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(wrapped)  # keeps jinja2's marks of what the filter is passed
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args, *kwargs.values()))
        return wrapped(*args, **kwargs)

    return checked
