"""Lark as clients write it: aliases, imports, priorities; the grammars of a coding agent's tools compile and hold."""

import pytest

from server.dialects.base import CustomFormat
from server.dialects.schema.custom import format_fault, satisfies

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
