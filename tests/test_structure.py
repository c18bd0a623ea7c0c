"""Rules on the source tree that the linters do not check; what is advised, not demanded, is printed after the run."""

import ast
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.live import ROOT

SHIPPED = ("server", "clients")
ALL = (*SHIPPED, "demo", "benchmarks", "tests")
ADVISED_FILE_LINES, MAX_FILE_LINES = 300, 500
MAX_FUNCTION_LINES = 50
ADVISED_PARAMETERS = 7

Advise = Callable[[list[str]], None]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.fixture
def advise(record_property: Callable[[str, object], None]) -> Advise:
    """Print lines after the run without failing it."""

    def record(lines: list[str]) -> None:
        for line in lines:
            record_property("advice", line)

    return record


@cache
def sources() -> tuple[tuple[str, str, ast.Module], ...]:
    """Path, text and tree of every Python file of ours."""
    found = []
    for folder in ALL:
        for root, folders, files in os.walk(ROOT / folder):
            folders[:] = sorted(set(folders) - {"node_modules"})
            for path in (Path(root, name) for name in sorted(files) if name.endswith(".py")):
                text = path.read_text(encoding="utf-8")
                found.append((path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    return tuple(found)


def modules(*folders: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Those below these folders."""
    return (one for one in sources() if one[0].startswith(tuple(f"{folder}/" for folder in folders)))


def functions(*folders: str) -> Iterator[tuple[str, Function]]:
    for path, _, tree in modules(*folders):
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{path}:{node.lineno} {node.name}", node


def test_files_are_short(advise: Advise) -> None:
    lines = {path: text.count("\n") for path, text, _ in modules(*ALL)}
    advise([f"{path} has {num} lines" for path, num in lines.items() if ADVISED_FILE_LINES < num <= MAX_FILE_LINES])
    assert [f"{path} has {num} lines" for path, num in lines.items() if num > MAX_FILE_LINES] == []


def test_functions_are_short() -> None:
    found = functions(*SHIPPED, "demo", "benchmarks")
    assert [where for where, node in found if (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES] == []


def test_functions_have_few_parameters(advise: Advise) -> None:
    """Kernels excepted: they take their tensors, strides and constants one by one, Triton knows nothing else."""
    for where, node in functions(*SHIPPED, "demo", "benchmarks"):
        if any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list):
            continue
        names = [one.arg for one in (*node.args.args, *node.args.kwonlyargs) if one.arg not in ("self", "cls")]
        if len(names) > ADVISED_PARAMETERS:
            advise([f"{where} has {len(names)} parameters"])


def test_every_module_has_a_docstring() -> None:
    lacking = []
    for path, _, tree in modules(*ALL):
        docstring = ast.get_docstring(tree)
        if not path.endswith("__init__.py"):
            lacking += [path] if docstring is None else []
    assert lacking == []


def test_every_init_is_empty() -> None:
    """An import in an `__init__` would bring torch into the API process."""
    assert [path for path, text, _ in modules(*ALL) if path.endswith("__init__.py") and text] == []


def test_a_class_name_has_one_owner() -> None:
    """A Protocol may share its name with the classes that implement it."""
    owners = defaultdict(list)
    for path, _, tree in modules(*SHIPPED):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                owners[node.name].append((path, node))
    shared = {
        name: [path for path, _ in found]
        for name, found in owners.items()
        if len(found) > 1 and not _is_protocol_with_implementations([node for _, node in found])
    }
    assert shared == {}


def _is_protocol_with_implementations(classes: list[ast.ClassDef]) -> bool:
    protocols = [node for node in classes if any("Protocol" in ast.unparse(base) for base in node.bases)]
    if len(protocols) != 1:
        return False
    return all(_members(node) >= _members(protocols[0]) for node in classes)


def _members(node: ast.ClassDef) -> set[str]:
    methods = {part.name for part in node.body if isinstance(part, Function)}
    return methods | {ast.unparse(part.target) for part in node.body if isinstance(part, ast.AnnAssign)}


def test_only_settings_read_the_environment() -> None:
    """A value read from the environment elsewhere would be missing from `toolwire config`."""
    readers = set()
    for path, _, tree in modules(*SHIPPED):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv"):
                readers.add(path)
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                readers |= {path for one in node.names if one.name in ("environ", "getenv")}
    assert readers - {"server/settings.py"} == set()


def test_the_map_names_exactly_the_modules_that_exist() -> None:
    text = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:server|clients)/[\w/]+\.py)`", text))
    existing = {path for path, _, _ in modules(*SHIPPED) if not path.endswith("__init__.py")}
    assert (sorted(existing - named), sorted(named - existing)) == ([], []), "missing from docs/map.md, and gone"


def test_the_walk_names_only_modules_that_exist() -> None:
    text = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
    named = re.findall(r"`(server/[\w/]+\.py)`", text)
    assert named and [path for path in named if not (ROOT / path).exists()] == []
