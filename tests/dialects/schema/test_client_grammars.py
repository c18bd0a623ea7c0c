"""Lark as clients write it: aliases, imports, priorities; the grammars of a coding agent's tools compile and hold."""

import pytest

from server.dialects.base import Choice, CustomFormat, Dialect, Tool
from server.dialects.registry import DIALECTS
from server.dialects.schema.custom import format_fault, satisfies
from tests.dialects.parse_helpers import Call, read, texts_and_calls
from tests.dialects.patches import paths_of_patch
from tests.dialects.random_walks import spec_for, walk

PATCH = r"""start: head section+ tail
head: "*** Begin Patch" LF
tail: "*** End Patch" LF?
section: added | removed | changed
added: "*** Add File: " path LF new_line+
removed: "*** Delete File: " path LF
changed: "*** Update File: " path LF moved? body?
path: /(.+)/
new_line: "+" /(.*)/ LF -> line
moved: "*** Move to: " path LF
body: (anchor | edit)+ last?
anchor: ("@@" | "@@ " /(.+)/) LF
edit: ("+" | "-" | " ") /(.*)/ LF
last: "*** End of File" LF
%import common.LF
"""
MARKED = r"""start: marked | plain
marked: MARK EOL CODE
plain: CODE
MARK: /[ \t]*\/\/ @run:[^\r\n]*/
EOL: /\r?\n/
CODE: /[\s\S]+/
"""
ADD = "*** Begin Patch\n*** Add File: a/b.py\n+print(1)\n+\n*** End Patch"
CHANGE = "*** Begin Patch\n*** Update File: a.py\n*** Move to: b.py\n@@ f\n-x\n+y\n z\n*** End of File\n*** End Patch\n"
REMOVE = "*** Begin Patch\n*** Delete File: a.py\n*** End Patch"


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (ADD, True), (CHANGE, True), (REMOVE, True), (ADD[:-4], False), (ADD.replace("+p", "p"), False),
        (CHANGE.replace("*** Begin Patch\n", ""), False), (REMOVE.replace("a.py", ""), False), ("", False),
        ("*** Begin Patch\n*** End Patch", False), (f"Here it is:\n{ADD}", False),
    ],
)  # fmt: skip
def test_the_patch_format_holds(text: str, holds: bool) -> None:
    patch = CustomFormat("lark", PATCH)
    assert format_fault(patch) == "" and satisfies(patch, text) is holds


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_random_model_writes_only_patches(dialect: Dialect) -> None:
    """The text of every call is a patch to a reader that knows no grammar, or the call is flagged.

    A path may hold what closes a call in formats without a line of its own for it; the call ends there.
    """
    patch = Tool("apply_patch", custom=True, format=CustomFormat("lark", PATCH))
    spec = spec_for([patch], Choice("required", parallel=False))
    endings, num_files = ("\n", "x", "*** End Patch"), 0
    for seed in range(6):
        found = walk(dialect, spec, (dialect.name, seed), most=200, endings=endings)
        if found.ended:
            call, *rest = texts_and_calls(read(dialect, [patch], [found.text]))
            assert isinstance(call, Call) and call.name == "apply_patch"
            assert call.flags == (("invalid",) if rest else ())
            num_files += 0 if rest else len(paths_of_patch(call.arguments))
    assert num_files > 0


@pytest.mark.parametrize(("text", "holds"), [("// @run: fast\nlet a;\n", True), ("let a;", True), ("", False)])
def test_the_marked_text_holds(text: str, holds: bool) -> None:
    marked = CustomFormat("lark", MARKED)
    assert format_fault(marked) == "" and satisfies(marked, text) is holds


def test_priorities_are_taken() -> None:
    """The grammar engine refuses them, and clients write them."""
    grammar = 'start: word | NUMBER\n!word.2: WORD\nWORD.-1 : /[a-z.]+/\nNUMBER.10: /[0-9]/ ".5: "\n'
    definition = CustomFormat("lark", grammar)
    assert format_fault(definition) == ""
    assert satisfies(definition, "ab.c") and satisfies(definition, "1.5: ") and not satisfies(definition, "1")


def test_templates_are_refused_by_name() -> None:
    fault = format_fault(CustomFormat("lark", 'start: list{"a"}\nlist{x}: x ("," x)*\n'))
    assert "templates" in fault and "write them out" in fault
