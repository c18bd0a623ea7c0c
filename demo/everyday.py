"""Hand-written tools of everyday.txt, the ones that people try first, each with several names and wordings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.invent import COUNTED, LISTS, ROLES, named
from demo.tools import Kind, Parameter, Tool, draw_style
from demo.values import FLAVOURS
from demo.words import World

# Tools that answer the same sentences: never offered together, as the choice between them would be arbitrary.
RIVALS = (
    ("get_time", "get_local_time"), ("add", "calculator"), ("multiply", "calculator"),
    ("convert_currency", "convert_units"), ("web_search", "get_news", "define_word"),
    ("read_file", "list_files", "fetch_url"), ("create_reminder", "add_task", "create_note"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sketch:
    """A parameter with all its alternative names and descriptions."""

    names: tuple[str, ...]
    kind: Kind
    flavour: str
    choices: tuple[str, ...]
    descriptions: tuple[str, ...]
    clauses: tuple[str, ...]
    required: bool


@dataclass(frozen=True, slots=True)
class Everyday:
    """A hand-written tool before its names and wordings are chosen."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    sketches: tuple[Sketch, ...]
    asks: tuple[str, ...]
    results: tuple[tuple[str, str], ...]

    def draw(self, world: World) -> Tool:
        """Return one of its variants."""
        rng = world.rng
        renamed: dict[str, str] = {}
        parameters = []
        for sketch in self.sketches:
            if not sketch.required and rng.random() < 0.45:
                continue
            free = [name for name in sketch.names if name not in renamed.values()]
            name = free[0] if rng.random() < 0.5 else rng.choice(free)
            renamed[sketch.names[0]] = name
            required = sketch.required or rng.random() < 0.08
            parameters.append(draw_parameter(world, sketch, name, required))
        asks = tuple(rename(ask, renamed) for ask in rng.sample(self.asks, min(4, len(self.asks))))
        name = self.names[0] if rng.random() < 0.4 else rng.choice(self.names)
        return Tool(
            name,
            rng.choice(self.descriptions),
            tuple(parameters),
            asks,
            self.results,
            draw_style(world),
            self._meanings(),
        )

    def _meanings(self) -> frozenset[str]:
        own = self.names[0]
        return frozenset([own, *(f"like {' '.join(group)}" for group in RIVALS if own in group)])


def draw_parameter(world: World, sketch: Sketch, name: str, required: bool) -> Parameter:
    described = bool(sketch.descriptions) and world.rng.random() < 0.65
    text = world.rng.choice(sketch.descriptions) if described else ""
    clauses = sketch.clauses or named(name)
    return Parameter(name, sketch.kind, text, required, sketch.flavour, sketch.choices, (), clauses)


def rename(ask: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        ask = ask.replace(f"{{{old}}}", f"{{#{new}}}")
    return ask.replace("{#", "{")


def read_everyday() -> tuple[Everyday, ...]:
    """Return all hand-written tools in the order of the file."""
    text = (Path(__file__).parent / "everyday.txt").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in text.split("\n\n")]
    kept = [[line for line in block if not line.startswith("#")] for block in blocks]
    return tuple(read_block(block) for block in kept if block)


def read_block(lines: Sequence[str]) -> Everyday:
    names, descriptions = lines[0].split(" = ")
    asks = [ask for line in lines if line.startswith("> ") for ask in line[2:].split("|")]
    results = [pair.split(":") for line in lines if line.startswith("< ") for pair in line[2:].split("|")]
    return Everyday(
        names=tuple(names.split("|")),
        descriptions=tuple(descriptions.split("|")),
        sketches=tuple(read_sketch(line[2:]) for line in lines if line.startswith("- ")),
        asks=tuple(asks),
        results=tuple((key, flavour) for key, flavour in results),
    )


def read_sketch(line: str) -> Sketch:
    parts = [part.strip() for part in line.split(" : ")]
    names = parts[0].split("|")
    required = not names[0].endswith("?")
    names[0] = names[0].rstrip("?")
    what, _, detail = parts[1].partition(" ")
    flavour, kind = "word", what
    choices: tuple[str, ...] = ()
    if what == "enum":
        choices = tuple(detail.split(","))
    elif what == "array":
        flavour = detail
    elif what in FLAVOURS:
        kind, flavour = "string", what
    assert kind in ("string", "integer", "number", "boolean", "enum", "array"), line
    return Sketch(
        names=tuple(names),
        kind=kind,  # type: ignore[arg-type]
        flavour=flavour,
        choices=choices,
        descriptions=tuple(parts[2].split("|")) if len(parts) > 2 and parts[2] else (),
        clauses=tuple(parts[3].split("|")) if len(parts) > 3 else (),
        required=required,
    )


def known_words() -> frozenset[str]:
    """Return every word of everyday.txt and of the familiar parameter names in lower case: none may be held out."""
    familiar = [*COUNTED, *LISTS, *(name for _, names, _ in ROLES for name in names)]
    text = (Path(__file__).parent / "everyday.txt").read_text(encoding="utf-8")
    everything = " ".join([text, *familiar]).lower()
    return frozenset("".join(c if c.isalpha() else " " for c in everything).split())
