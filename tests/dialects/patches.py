"""The patch format of a coding agent, read line by line as its editor would: independent of any grammar."""

BEGIN, END, LAST = "*** Begin Patch", "*** End Patch", "*** End of File"
ADD, REMOVE, CHANGE, MOVE = "*** Add File: ", "*** Delete File: ", "*** Update File: ", "*** Move to: "


def paths_of_patch(text: str) -> list[str]:
    """The files that a patch touches. Raises ValueError for a text that is no patch."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 3 or lines[0] != BEGIN or lines[-1] != END:
        raise ValueError(f"no patch: {text!r}")
    paths, rest = [], lines[1:-1]
    while rest:
        path, rest = _section(rest)
        paths.append(path)
    return paths


def _section(lines: list[str]) -> tuple[str, list[str]]:
    """The path of the first section, and the lines behind it."""
    head, rest = lines[0], lines[1:]
    kind = next((one for one in (ADD, REMOVE, CHANGE) if head.startswith(one)), None)
    if kind is None or head == kind:
        raise ValueError(f"no head of a section: {head!r}")
    if kind == REMOVE:
        return head.removeprefix(kind), rest
    if kind == CHANGE and rest and rest[0].startswith(MOVE) and rest[0] != MOVE:
        rest = rest[1:]
    marks = ("+",) if kind == ADD else ("+", "-", " ")
    length = 0
    while length < len(rest) and (rest[length].startswith(marks) or (kind == CHANGE and _is_anchor(rest[length]))):
        length += 1
    if kind == ADD and not length:
        raise ValueError(f"no line is added: {head!r}")
    if kind == CHANGE and length and rest[length : length + 1] == [LAST]:
        length += 1
    return head.removeprefix(kind), rest[length:]


def _is_anchor(line: str) -> bool:
    return line == "@@" or (line.startswith("@@ ") and len(line) > 3)
