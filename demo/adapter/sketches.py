"""Hand-written tools of tools/*.txt, each with several names, wordings and parameters. home.txt explains the format."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "tools"
SEGMENT = re.compile(r"\[(\w+):([^\]]*)\]")
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter with its alternative names and descriptions; `kind` is a type with limits or a list of values."""

    names: tuple[str, ...]
    kind: str
    descriptions: tuple[str, ...]
    required: bool

    @property
    def key(self) -> str:
        """The name by which wordings refer to it."""
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Wording:
    """A request with places for values. `fixed` are values that the words themselves imply."""

    text: str
    fixed: tuple[tuple[str, str], ...] = ()
    needed: tuple[str, ...] = ()

    def places(self) -> set[str]:
        """The slots outside of optional segments."""
        return set(PLACE.findall(SEGMENT.sub("", self.text)))


@dataclass(frozen=True, slots=True)
class Sketch:
    """A tool before its names and wordings are chosen."""

    domain: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    slots: tuple[Slot, ...]
    orders: tuple[Wording, ...]
    sentences: tuple[Wording, ...]
    contexts: tuple[str, ...]
    results: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Its first name, which no other sketch has in this domain."""
        return self.names[0]

    def slot(self, key: str) -> Slot:
        """The slot of this name."""
        return next(slot for slot in self.slots if slot.key == key)


@cache
def read_sketches() -> tuple[Sketch, ...]:
    """All sketches, in the order of the files' names."""
    return tuple(sketch for path in sorted(FOLDER.glob("*.txt")) for sketch in _read_file(path))


def _read_file(path: Path) -> list[Sketch]:
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    return [
        _read_block(path.stem, block)
        for block in blocks
        if any(not line.startswith("#") for line in block.splitlines())
    ]


def _read_block(domain: str, block: str) -> Sketch:
    lines = [line for line in block.splitlines() if line and not line.startswith("#")]
    names, descriptions = lines[0].split(" = ", 1)
    marked = {mark: [line[2:] for line in lines[1:] if line.startswith(f"{mark} ")] for mark in "->=~<"}
    assert sum(map(len, marked.values())) == len(lines) - 1, f"{domain}: {lines[0]}"
    sketch = Sketch(
        domain,
        tuple(names.split("|")),
        tuple(descriptions.split("|")),
        tuple(_read_slot(line) for line in marked["-"]),
        _wordings(marked[">"]),
        _wordings(marked["="]),
        tuple(text for line in marked["~"] for text in line.split("|")),
        tuple(_pair(pair) for line in marked["<"] for pair in line.split("|")),
    )
    _check(sketch)
    return sketch


def _pair(text: str) -> tuple[str, str]:
    key, kind = text.split(":")
    return key, kind


def _read_slot(line: str) -> Slot:
    names, kind, descriptions = line.split(" : ", 2)
    keys = names.split("|")
    required = not keys[0].endswith("?")
    return Slot((keys[0].rstrip("?"), *keys[1:]), kind.strip(), tuple(descriptions.split("|")), required)


def _wordings(lines: list[str]) -> tuple[Wording, ...]:
    return tuple(_wording(text) for line in lines for text in line.split("|"))


def _wording(text: str) -> Wording:
    parts = re.split(r"#(?=\w+(?:=\w+)?(?:#|$))", text)
    marks = [part.split("=") for part in parts[1:]]
    fixed = tuple((mark[0], mark[1]) for mark in marks if len(mark) == 2)
    return Wording(parts[0], fixed, tuple(mark[0] for mark in marks if len(mark) == 1))


def _check(sketch: Sketch) -> None:
    """Raises AssertionError for a wording that names no slot, or that lacks a required one."""
    keys = {slot.key: slot for slot in sketch.slots}
    for wording in (*sketch.orders, *sketch.sentences):
        segments = {key for key, _ in SEGMENT.findall(wording.text)}
        known = {*wording.places(), *(key for key, _ in wording.fixed)}
        assert known | segments | set(wording.needed) <= set(keys), f"{sketch.key}: {wording.text}"
        optional = {key for key in wording.places() if not keys[key].required}
        assert optional <= set(wording.needed), f"{sketch.key}: {wording.text}: {optional} must be needed"
        assert {key for key, slot in keys.items() if slot.required} <= known, f"{sketch.key}: {wording.text}"
