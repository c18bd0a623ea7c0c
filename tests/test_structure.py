"""Rules on the source tree that the linters do not check; what is advised, not demanded, is printed after the run."""

import ast
import io
import os
import re
import tokenize
from collections import Counter, defaultdict
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
MAX_FILES_IN_A_FOLDER = 16
VAGUE_BEGINNINGS = ("What", "How", "Where", "Who", "Which")

# Words that this project once used for things that have a usual name; docs/internals/lablog.md tells the past in them.
GONE_WORDS = {
    "anew", "answerer", "asking", "door", "doors", "holdable", "lane", "lanes", "obeyed", "outbox", "penance",
    "strangers", "tally", "tallies", "tape", "watchful", "whoever",
}  # fmt: skip
GONE_PHRASES = re.compile(r"\b(of old|a heap of|stands? beside|so many|on wish|nobody foresaw|API room|rooms)\b", re.I)
# As whole names of a function, argument, variable or attribute; within a name or a sentence they are plain English.
GONE_NAMES = {
    "ahead", "ask", "asked", "asks", "deal", "dealt", "give_back", "habits", "hear", "heard", "patience",
    "possible", "preamble", "said", "settle", "settled", "shares", "told", "tell", "wanted", "wishes",
}  # fmt: skip
GONE_CLASSES = {
    "Answer", "Answerer", "Ask", "Asking", "Doors", "Draw", "DrawRow", "Drawing", "Drawn", "Heard", "Outbox",
    "Portions", "Preamble", "Reading", "Said", "Steps", "Tally", "Tape", "Turn", "Wanted",
}  # fmt: skip
PART_OF_A_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

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


def test_folders_hold_few_files() -> None:
    counts = Counter(str(Path(path).parent) for path, _, _ in modules(*SHIPPED) if not path.endswith("__init__.py"))
    assert {folder: num for folder, num in counts.items() if num > MAX_FILES_IN_A_FOLDER} == {}


def test_every_module_has_a_docstring_that_begins_with_a_noun_or_a_verb() -> None:
    lacking, vague = [], []
    for path, _, tree in modules(*ALL):
        docstring = ast.get_docstring(tree)
        if not path.endswith("__init__.py"):
            lacking += [path] if docstring is None else []
            vague += [path] if docstring is not None and docstring.startswith(VAGUE_BEGINNINGS) else []
    assert (lacking, vague) == ([], [])


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


def test_words_that_are_gone_stay_gone() -> None:
    found = []
    for path, text, tree in modules(*SHIPPED, "tests"):
        if path == "tests/test_structure.py":
            continue
        names = GONE_WORDS if path.startswith("tests/") else GONE_WORDS | GONE_NAMES
        found += [
            f"{path}: {name}" for name in sorted(_names(tree)) if _parts(name) & GONE_WORDS or name.strip("_") in names
        ]
        classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        found += [f"{path}: class {name}" for name in sorted(classes & GONE_CLASSES)]
        prose = _prose(text, tree) if path.startswith("tests/") else text
        found += [f"{path}: {word}" for word in _gone_in(prose)]
    for page in sorted((ROOT / "docs").rglob("*.md")):
        if page.name != "lablog.md":
            found += [f"{page.relative_to(ROOT)}: {word}" for word in _gone_in(page.read_text(encoding="utf-8"))]
    assert found == []


def _names(tree: ast.Module) -> set[str]:
    """Names that a module defines."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def _parts(name: str) -> set[str]:
    return {part.lower() for part in PART_OF_A_NAME.findall(name)}


def _prose(text: str, tree: ast.Module) -> str:
    """The comments and docstrings of a module."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n".join([*comments, *(ast.get_docstring(node) or "" for node in nodes)])


def _gone_in(prose: str) -> list[str]:
    words = {word for word in re.findall(r"[a-z]+", prose.lower()) if word in GONE_WORDS}
    return sorted(words | set(GONE_PHRASES.findall(prose)))
