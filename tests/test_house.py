"""The house rules that a linter cannot hold: small rooms, one reader of the environment, a true map."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = sorted([*ROOT.glob("server/**/*.py"), *ROOT.glob("clients/**/*.py")])
CODE = [*ROOMS, *sorted(ROOT.glob("demo/**/*.py")), *sorted(ROOT.glob("benchmarks/**/*.py"))]
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 7


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in function.decorator_list)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CODE, ids=name)
def test_a_room_stays_small(path: Path) -> None:
    """A file that outgrows its noun is two nouns; a function of a screen and a half is two sentences."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for function in functions(path):
        assert (function.end_lineno or 0) - function.lineno < MAX_FUNCTION_LINES, function.name
        if is_kernel(function):
            continue  # takes its tensors, strides and constants one by one: the compiler knows nothing else
        arguments = [a for a in (*function.args.args, *function.args.kwonlyargs) if a.arg not in ("self", "cls")]
        assert len(arguments) <= MAX_PARAMETERS, function.name


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_only_settings_read_the_environment(path: Path) -> None:
    """A value read from the environment elsewhere would be missing from `toolwire config`."""
    if path.name != "settings.py":
        assert not re.search(r"\bos\.(environ|getenv)\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [path for path in CODE if path.name == "__init__.py"], ids=name)
def test_every_init_is_empty(path: Path) -> None:
    """An import in an `__init__` would make a torch-free room a fiction."""
    assert path.read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_every_room_says_what_it_is(path: Path) -> None:
    """The first line of a file is what a newcomer reads; without one the map is the only guide."""
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_map_names_exactly_the_rooms_that_exist() -> None:
    """A map that has drifted from the tree misleads the next reader."""
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:server|clients)/[\w/]+\.py)`", text))
    existing = {name(path) for path in ROOMS if path.name != "__init__.py"}
    assert existing - named == set(), "rooms missing from docs/map.md"
    assert named - existing == set(), "docs/map.md names rooms that do not exist"


def test_the_walk_names_only_rooms_that_exist() -> None:
    """One request's walk through the rooms is how a newcomer learns the house."""
    text = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
    for path in re.findall(r"`(server/[\w/]+\.py)`", text):
        assert (ROOT / path).exists(), path
