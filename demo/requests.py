"""User sentences that request a call, and the expected call."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo.tools import Parameter, SpokenValue, Tool, clause_for, draw_value, join_words
from demo.words import World

PREPOSITIONS = ("in", "for", "of", "at", "from", "to", "about", "on", "with", "by", "called", "saying")
SLOT = re.compile(r"\{(\w[\w-]*)\}")
# Text removed with a missing value: " in {city}", " and the body {body}".
DROPPED_SLOT = r"(?: and)?(?: {0})(?: the)?(?: \w+)??(?: \w+)? \{{{1}\}}"
POLITE_STARTS = ("Please ", "Hi, ", "Hello, ", "Hey, ", "Ok, ", "Now ", "Quick, ", "Good morning, ")
POLITE_ENDS = (" please", ", please", ", thanks", " for me", " now", ", thank you")


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool, arguments in the order of its schema."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """The user's text, the calls that it requests, and the required parameters that it omits."""

    text: str
    calls: tuple[Call, ...]
    missing: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # names of the calls in the answer: "Paris", "Rome"


def ask_once(world: World, tool: Tool) -> Request:
    """Return a request for one call with every required value."""
    said = draw_arguments(world, tool)
    text = write_sentence(world, tool, world.rng.choice(tool.asks), said)
    return Request(polish(world, text), (Call(tool.name, in_order(tool, said)),))


def ask_incomplete(world: World, tool: Tool) -> Request | None:
    """Return a request without one or all of the required values; None if no sentence allows it."""
    rng = world.rng
    required = [p.name for p in tool.parameters if p.required and p.kind != "boolean"]
    if not required:
        return None
    missing = required if rng.random() < 0.4 else [rng.choice(required)]
    ask: str | None = rng.choice(tool.asks)
    for name in missing:
        ask = without_slot(ask, name) if ask else None
    if not ask:
        return None
    said = {name: value for name, value in draw_arguments(world, tool).items() if name not in missing}
    text = write_sentence(world, tool, ask, said)
    return Request(polish(world, text), (Call(tool.name, in_order(tool, said)),), tuple(missing))


def ask_same_twice(world: World, tool: Tool) -> Request | None:
    """Return a request for two or three calls of one tool, "in Paris and in Rome"; None if the tool allows none."""
    rng = world.rng
    target = repeatable(tool)
    if target is None:
        return None
    said = draw_arguments(world, tool)
    count = 3 if rng.random() < 0.12 else 2
    values = distinct_values(world, target, count)
    ask = rng.choice(tool.asks)
    before = re.search(r"(\w+) \{" + re.escape(target.name) + r"\}", ask)
    repeated = before and before.group(1) in PREPOSITIONS and rng.random() < 0.5
    words = [value.words for value in values]
    if repeated and before:
        words = [words[0], *[f"{before.group(1)} {word}" for word in words[1:]]]
    joined = join_words(words, rng.choice((" and ", " and ", " and ", " and also ")))
    text = write_sentence(world, tool, ask, {**said, target.name: SpokenValue(values[0].value, joined)})
    calls = tuple(Call(tool.name, in_order(tool, {**said, target.name: value})) for value in values)
    return Request(polish(world, text), calls, labels=tuple(str(value.value) for value in values))


def ask_two_tools(world: World, first: Tool, second: Tool) -> Request:
    """Return one request for a call of each tool."""
    rng = world.rng
    one, two = ask_once(world, first), ask_once(world, second)
    ending = one.text[-1] if one.text[-1] in ".?!" else "."
    bare = one.text.rstrip(".?!")
    joint = rng.choice((" and ", " and ", ", and ", " and then ", f"{ending} ", f"{ending} Also, ", ", then "))
    tail = two.text if joint == f"{ending} " else lower_first(two.text)
    labels = tuple(call.name for call in (*one.calls, *two.calls))
    return Request(bare + joint + tail, (*one.calls, *two.calls), labels=labels)


def reply_with(world: World, tool: Tool, request: Request) -> Request:
    """Return the user's answer to the question for missing values, with the complete call."""
    given = {name: draw_value(world, tool.parameter(name)) for name in request.missing}
    if len(given) == 1:
        ((name, said),) = given.items()
        spoken = tool.parameter(name).spoken
        forms = (said.words, said.words, f"The {spoken} is {said.words}", f"{said.words} please", f"Use {said.words}")
        text = world.rng.choice(forms)
    else:
        text = join_words([f"the {tool.parameter(n).spoken} is {s.words}" for n, s in given.items()], " and ")
        text = text[0].upper() + text[1:]
    known = request.calls[0].arguments
    arguments = {
        p.name: given[p.name].value if p.name in given else known[p.name]
        for p in tool.parameters
        if p.name in given or p.name in known
    }
    return Request(text, (Call(tool.name, arguments),))


def ask_again(world: World, tool: Tool, call: Call) -> Request | None:
    """Return a follow-up, "And in Rome?", for the same call with another value; None if the tool allows none."""
    rng = world.rng
    target = repeatable(tool)
    if target is None:
        return None
    said = draw_value(world, target)
    before = re.search(r"(\w+) \{" + re.escape(target.name) + r"\}", rng.choice(tool.asks))
    word = f"{before.group(1)} " if before and before.group(1) in PREPOSITIONS and rng.random() < 0.5 else ""
    start = rng.choice(("And", "And", "What about", "How about", "Now", "Now the same"))
    word = word or ("for " if start.endswith("same") else "")
    text = f"{start} {word}{said.words}" + rng.choice(("?", "?", "", "."))
    return Request(text, (Call(tool.name, {**call.arguments, target.name: said.value}),))


def draw_arguments(world: World, tool: Tool) -> dict[str, SpokenValue]:
    chosen = [p for p in tool.parameters if p.required or world.rng.random() < 0.45]
    return {p.name: draw_value(world, p) for p in chosen}


def in_order(tool: Tool, said: dict[str, SpokenValue]) -> dict[str, Any]:
    return {p.name: said[p.name].value for p in tool.parameters if p.name in said}


def write_sentence(world: World, tool: Tool, ask: str, said: dict[str, SpokenValue]) -> str:
    """Return the sentence with its slots filled and all other values appended as clauses."""
    rng = world.rng
    slots: list[str] = SLOT.findall(ask)
    for slot in slots:
        ask = ask.replace(f"{{{slot}}}", said[slot].words if slot in said else "")
    clauses = [clause_for(world, tool.parameter(name), value) for name, value in said.items() if name not in slots]
    if rng.random() < 0.4:
        rng.shuffle(clauses)
    ending = ask[-1] if ask[-1] in ".?!" else ""
    text = ask.removesuffix(ending) if ending else ask
    for index, clause in enumerate(clauses):
        if clause.startswith((",", "and ")):
            text += clause if clause.startswith(",") else f" {clause}"
        elif index and rng.random() < 0.5:
            text += rng.choice((", ", " and ", ", and ")) + clause
        else:
            text += f" {clause}"
    return text + ending


def polish(world: World, text: str) -> str:
    """Vary the text without changing its meaning: politeness, a lower-case start, final punctuation."""
    rng = world.rng
    ending = text[-1] if text[-1] in "?!" else ""
    text = text.removesuffix(ending) if ending else text
    if rng.random() < 0.1:
        text = rng.choice(POLITE_STARTS) + lower_first(text)
    elif rng.random() < 0.12:
        text = lower_first(text)
    if rng.random() < 0.08:
        text += rng.choice(POLITE_ENDS)
    asks = text.lower().startswith(("what", "can", "could", "how", "who", "where", "would", "is", "will"))
    if not ending:
        ending = rng.choice(("?", "?", "")) if asks else rng.choice((".", ".", "", "", "!"))
    elif rng.random() < 0.15:
        ending = ""
    return text + ending


def lower_first(text: str) -> str:
    """Lower the first letter, unless the sentence starts with "I" or an abbreviation."""
    head = text.split(" ", 1)[0]
    plain = head.isalpha() and head[1:].islower()
    return text[0].lower() + text[1:] if plain else text


def without_slot(ask: str, name: str) -> str | None:
    """Remove a slot and its preposition; None if the rest is no sentence."""
    if f"{{{name}}}" not in ask:
        return ask
    pattern = DROPPED_SLOT.format(f"(?:{'|'.join(PREPOSITIONS)})", re.escape(name))
    cut = re.sub(pattern, "", ask, count=1)
    if f"{{{name}}}" in cut or len(cut.split()) < 2:
        return None
    return cut


def repeatable(tool: Tool) -> Parameter | None:
    """Return the parameter that is the only slot of every sentence, so that its value can be repeated."""
    for parameter in tool.parameters:
        alone = all(SLOT.findall(ask) == [parameter.name] for ask in tool.asks)
        if alone and parameter.kind in ("string", "integer", "number") and parameter.flavour != "message":
            return parameter
    return None


def distinct_values(world: World, parameter: Parameter, count: int) -> list[SpokenValue]:
    values: dict[str, SpokenValue] = {}
    while len(values) < count:
        said = draw_value(world, parameter)
        values[str(said.value)] = said
    return list(values.values())


def missing_question(tool: Tool, missing: Sequence[str]) -> str:
    return f"Please tell me {join_words([f'the {tool.parameter(name).spoken}' for name in missing], ' and ')}."
