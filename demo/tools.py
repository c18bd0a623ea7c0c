"""Tools of the generator: names, parameters, and the sentences that request them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from demo import values
from demo.words import World

# Ways in which clients write the same schema.
Style = Literal["omit_empty", "closed", "strict", "bare", "description_last"]
STYLES: tuple[tuple[Style, float], ...] = (
    ("omit_empty", 0.4), ("closed", 0.12), ("strict", 0.06), ("bare", 0.03), ("description_last", 0.15),
)  # fmt: skip
Kind = Literal["string", "integer", "number", "boolean", "enum", "array", "object"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a tool.

    clauses: phrases that give the value, `{}` being its place: "in {}", "with the tempo {}". For a boolean the first
    half of the clauses mean true and the other half false.
    """

    name: str
    kind: Kind
    description: str = ""
    required: bool = True
    flavour: str = "word"
    choices: tuple[str, ...] = ()
    fields: tuple["Parameter", ...] = ()
    clauses: tuple[str, ...] = ()

    @property
    def spoken(self) -> str:
        """Return the name as words: `max_price` and `maxPrice` are "max price"."""
        return spell(self.name)

    def schema(self, description_last: bool = False) -> dict[str, Any]:
        """Return the JSON Schema of the value."""
        if self.kind == "enum":
            shape: dict[str, Any] = {"type": "string", "enum": list(self.choices)}
        elif self.kind == "array":
            shape = {"type": "array", "items": {"type": "string"}}
        elif self.kind == "object":
            shape = {"type": "object", "properties": {inner.name: inner.schema() for inner in self.fields}}
            shape["required"] = [inner.name for inner in self.fields]
        else:
            shape = {"type": self.kind}
        if self.description and description_last:
            shape["description"] = self.description
        elif self.description:
            shape = {"type": shape.pop("type"), "description": self.description, **shape}
        return shape


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool with sentences that request it.

    asks: sentences with `{parameter}` slots; other parameters are appended as clauses.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    asks: tuple[str, ...]
    results: tuple[tuple[str, str], ...] = field(default=())  # key, flavour of the value
    style: tuple[Style, ...] = ()
    meanings: frozenset[str] = frozenset()  # tools that share one could answer the same request

    def parameter(self, name: str) -> Parameter:
        """Return the parameter of this name."""
        return next(p for p in self.parameters if p.name == name)

    def schema(self) -> dict[str, Any]:
        """Return the tool as an OpenAI client sends it."""
        last = "description_last" in self.style
        shape: dict[str, Any] = {
            "type": "object",
            "properties": {p.name: p.schema(last) for p in self.parameters},
            "required": [p.name for p in self.parameters if p.required],
        }
        if not shape["required"] and "omit_empty" in self.style:
            del shape["required"]
        if "closed" in self.style:
            shape["additionalProperties"] = False
        function: dict[str, Any] = {"name": self.name, "description": self.description, "parameters": shape}
        if "bare" in self.style:
            del function["description"]
        if "strict" in self.style:
            function["strict"] = True
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class SpokenValue:
    """A value and the words that a user gives it with."""

    value: Any
    words: str


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def draw_value(world: World, parameter: Parameter) -> SpokenValue:
    """Return a value that is valid for the parameter's schema, with its words."""
    rng = world.rng
    match parameter.kind:
        case "string" if parameter.flavour == "sums":
            return draw_sum(world)
        case "string":
            text = draw_text(world, parameter.flavour)
            return SpokenValue(text, quoted(world, text, parameter.flavour))
        case "integer":
            number = world.whole_number()
            worded = number <= 10 and world.split == "train" and rng.random() < 0.25
            return SpokenValue(number, NUMBER_WORDS[number] if worded else str(number))
        case "number":
            amount = world.decimal() if rng.random() < 0.6 else world.whole_number()
            return SpokenValue(amount, str(amount))
        case "enum":
            choice = rng.choice(parameter.choices)
            return SpokenValue(choice, spell(choice) if rng.random() < 0.5 else choice)
        case "array":
            count = rng.choice((1, 2, 2, 2, 3, 3))
            items = [draw_text(world, parameter.flavour).partition(",")[0] for _ in range(count)]
            return SpokenValue(items, join_words(items, rng.choice((" and ", " and ", ", and ", ", "))))
        case "object":
            inner = [(field_, draw_value(world, field_)) for field_ in parameter.fields]
            joint = rng.choice((" and ", ", "))
            return SpokenValue(
                {f.name: s.value for f, s in inner}, joint.join(f"{f.spoken} {s.words}" for f, s in inner)
            )
        case "boolean":
            truth = rng.random() < 0.5
            half = len(parameter.clauses) // 2
            return SpokenValue(truth, rng.choice(parameter.clauses[:half] if truth else parameter.clauses[half:]))


def draw_text(world: World, flavour: str) -> str:
    """Return a text of this flavour that, as a whole, belongs to this half of the vocabulary."""
    while True:
        text = values.FLAVOURS[flavour](world)
        if world.allows(text):
            return text


OPERATORS = {" + ": " plus ", " - ": " minus ", " * ": " times ", " / ": " divided by "}


def draw_sum(world: World) -> SpokenValue:
    """Return an arithmetic expression, sometimes in words: "12 times 7" for 12 * 7."""
    expression = draw_text(world, "sums")
    spoken = expression
    if world.rng.random() < 0.5:
        for sign, word in OPERATORS.items():
            spoken = spoken.replace(sign, word)
    return SpokenValue(expression, spoken)


def draw_style(world: World) -> tuple[Style, ...]:
    return tuple(style for style, share in STYLES if world.rng.random() < share)


def clause_for(world: World, parameter: Parameter, said: SpokenValue) -> str:
    """Return the words that give this value to this parameter."""
    if parameter.kind == "boolean":
        return said.words
    return world.rng.choice(parameter.clauses).replace("{}", said.words)


def quoted(world: World, text: str, flavour: str) -> str:
    """Put free text into quotation marks, sometimes; the marks are not part of the value."""
    share = {"message": 0.5, "words": 0.3, "title": 0.4, "topic": 0.2, "path": 0.15, "name": 0.1}.get(flavour, 0.04)
    if world.rng.random() < share:
        mark = world.rng.choice(('"', '"', "'"))
        return f"{mark}{text}{mark}"
    return text


def join_words(items: Sequence[str], last: str) -> str:
    """Join items with commas, and with `last` before the last one."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + last + items[-1]


def spell(name: str) -> str:
    """Return an identifier as words: snake_case, kebab-case and camelCase are split."""
    apart = "".join(f" {c.lower()}" if c.isupper() and i and name[i - 1].islower() else c for i, c in enumerate(name))
    return apart.replace("_", " ").replace("-", " ")
