"""What a docstring says of a function and of its parameters, in the two common styles."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_GOOGLE_SECTION = re.compile(r"^(Args|Arguments|Parameters):\s*$", re.MULTILINE)
_GOOGLE_ENTRY = re.compile(r"^(?P<indent>\s+)(?P<name>\w+)\s*(?:\([^)]*\))?:\s*(?P<text>.*)$")
_SPHINX_ENTRY = re.compile(r"^:param\s+(?:[\w\[\], ]+\s)?(\w+):\s*(.*(?:\n[ \t]+.*)*)", re.MULTILINE)
_SECTION_OR_FIELD = re.compile(r"^(?:[A-Z]\w*:\s*$|:\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Described:
    """`summary` is everything before the first section; `parameters` holds a line by name."""

    summary: str
    parameters: Mapping[str, str]


def read_docstring(text: str) -> Described:
    """Reads Google style (`Args:` and an indented list) and Sphinx style (`:param name: …`)."""
    first = _SECTION_OR_FIELD.search(text)
    summary = _one_line(text[: first.start()] if first else text)
    parameters = {name: _one_line(about) for name, about in _SPHINX_ENTRY.findall(text)}
    if section := _GOOGLE_SECTION.search(text):
        parameters |= _google_entries(text[section.end() :])
    return Described(summary, parameters)


def _google_entries(text: str) -> dict[str, str]:
    entries: dict[str, list[str]] = {}
    indent, name = None, ""
    for line in text.splitlines():
        if not line.strip():
            continue
        if not line[0].isspace():
            break  # the next section
        found = _GOOGLE_ENTRY.match(line)
        if found and indent in (None, found["indent"]):
            indent, name = found["indent"], found["name"]
            entries[name] = [found["text"]]
        elif name:
            entries[name].append(line)
    return {name: _one_line(" ".join(lines)) for name, lines in entries.items()}


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
