"""Tools as a client offers them, and requests with the calls that they mean."""

# ruff: noqa: E501
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from demo.adapter.sketches import PLACE, SEGMENT, Sketch, Slot, Wording
from demo.adapter.values import Value, draw_value, lists, schema_of

NAMED_SHARE = 0.55  # of optional parameters that a wording can name
SUFFIXES = (" Required.", " Must be given.", "")
BEFORE = (
    "Please {}", "please {}", "Could you {}", "Can you {}", "Can you please {}", "Would you {}", "I need you to {}",
    "I'd like you to {}", "I want you to {}", "Hey, {}", "Hi! {}", "Hello, could you {}", "Help me {}", "Let's {}", "Ok, {}",
    "Now {}", "Go ahead and {}", "You should {}", "It would be great if you could {}", "Quick one: {}", "{}, please",
    "{} for me", "{}, thanks", "{} please", "{} when you can", "Time to {}", "I have to ask you to {}", "can u {}",
)  # fmt: skip
ASIDES = (
    "I'm in a hurry.", "Thanks a lot.", "I hope you can help.", "It's for my sister.", "We talked about it yesterday.",
    "My phone is nearly empty.", "I can't do it myself right now.", "It's important.", "No rush.", "You know how it is.",
    "I'm working on my homework.", "I'm writing a report.", "This is for a school project.", "It's been a long week.",
)  # fmt: skip

# How a value of a parameter is said behind a request; {n} is the parameter's name in words.
CLAUSES = (
    ". The {n} should be {v}.", ". Use {v} as the {n}.", ", {n} {v}", " with {n} {v}", " and set the {n} to {v}", "; {n}: {v}",
    ", and the {n} should be {v}", ". I want the {n} to be {v}.", ". Make the {n} {v}, please.", ", and use {v} for the {n}", ". For the {n} take {v}.",
    ". {n}: {v}.", ", with {v} as {n}", ". Could you make sure that the {n} is {v}?", " ({n} {v})", ". And {v} as the {n}, please.",
)  # fmt: skip
# What is asked for behind a request and is no second call.
TAILS = (
    " and tell me the result", " and show me what comes out", ", and let me know when it is done", ". Tell me what you find.", " and explain what it means",
    ". Then I want to know how it went.", ", and say it in one sentence", " and give me the details", ". What does it say?", ", I need it for my boss",
    ". Please be quick and tell me at once.", " so that I can plan ahead", " and keep it short", ". Also tell me if something goes wrong.",
)  # fmt: skip
YES = {True: ("true", "on", "yes"), False: ("false", "off", "no")}
JOINT = re.compile(r"_|(?<=[a-z])(?=[A-Z])")  # of the words of a name


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A sketch with the names and the texts that one client chose. `names` are the parameters' by slot."""

    sketch: Sketch
    name: str
    names: Mapping[str, str]
    definition: Mapping[str, Any]
    group: str = ""  # of an object that holds all parameters

    def offers(self, wording: Wording) -> bool:
        """Whether it has all parameters that the wording needs."""
        keys = {*wording.needed, *(key for key, _ in wording.fixed), *wording.places()}
        return keys <= self.names.keys()


@dataclass(frozen=True, slots=True)
class Request:
    """What a user says, and the call that it means: arguments by the parameters' names."""

    text: str
    tool: OfferedTool
    arguments: Mapping[str, Any]

    @property
    def call(self) -> dict[str, Any]:
        """The call as a template takes it."""
        arguments = {self.tool.group: dict(self.arguments)} if self.tool.group else dict(self.arguments)
        return {"name": self.tool.name, "arguments": arguments}


def offer(rng: random.Random, sketch: Sketch) -> OfferedTool:
    """One of the forms of a tool."""
    style = rng.choice(("snake", "snake", "snake", "camel", "plain"))
    name = rng.choice(sketch.names)
    if "." in name and rng.random() < 0.5:
        name = name.replace(".", "_")
    names: dict[str, str] = {}
    properties: dict[str, Any] = {}
    required = []
    described = rng.random() < 0.9
    for slot in sketch.slots:
        if not slot.required and rng.random() < 0.35:
            continue
        free = [one for one in slot.names[sketch.domain == "invented" :] if one not in names.values()]
        names[slot.key] = styled(rng.choice(free), style)
        properties[names[slot.key]] = _property(rng, slot, described)
        if slot.required:
            required.append(names[slot.key])
    if rng.random() < 0.15:
        order = rng.sample(list(properties), len(properties))
        properties = {key: properties[key] for key in order}
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    group = ""
    if rng.random() < 0.04:
        group = rng.choice(("input", "params", "options", "request", "data"))
        parameters = {"type": "object", "properties": {group: parameters}, "required": [group]}
    elif rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function = {"name": styled(name, style), "description": _description(rng, sketch), "parameters": parameters}
    return OfferedTool(sketch, str(function["name"]), names, {"type": "function", "function": function}, group)


def styled(name: str, style: str) -> str:
    """A snake-case name in another style."""
    if style == "camel":
        first, *rest = name.split("_")
        return first + "".join(part.capitalize() for part in rest)
    return name


def _description(rng: random.Random, sketch: Sketch) -> str:
    text = rng.choice(sketch.descriptions)
    if rng.random() < 0.15:
        text += " " + rng.choice(
            ("Use it when the user asks for it.", "Returns an object with the result.", "Call it once for each item.")
        )
    return text.rstrip(".") if rng.random() < 0.2 else text


def _property(rng: random.Random, slot: Slot, described: bool) -> dict[str, Any]:
    schema = schema_of(slot.kind)
    if described or "YYYY" in slot.descriptions[0] or "HH:MM" in slot.descriptions[0]:
        schema["description"] = format_of(slot) if rng.random() < 0.7 else rng.choice(slot.descriptions)
        if "enum" not in schema and schema["type"] == "string" and rng.random() < 0.12:
            sample = draw_value(rng, slot.kind, slot.descriptions[0]).said
            schema["description"] = f"{schema['description'].rstrip('.')}, e.g. {sample}"
    if "enum" in schema and rng.random() < 0.1:
        schema["description"] = f"{schema.pop('description', '')} One of {', '.join(schema.pop('enum'))}.".strip()
    return schema


def format_of(slot: Slot) -> str:
    """The first description, which states the format of the values if there is one."""
    return slot.descriptions[0]


def request(rng: random.Random, tool: OfferedTool, wordings: Sequence[Wording] | None = None) -> Request:
    """A request that means a call of this tool, in one of many ways of speaking."""
    orders = [one for one in tool.sketch.orders if tool.offers(one)]
    sentences = [one for one in tool.sketch.sentences if tool.offers(one)]
    is_order = bool(orders) and (not sentences or rng.random() < 0.55)
    wording = rng.choice(orders if is_order else sentences)
    text, arguments = fill(rng, tool, wording)
    text = _as_order(rng, text) if is_order else text
    text = _sentence(rng, text, closed=not is_order)
    return Request(in_context(rng, text, tool.sketch.contexts), tool, arguments)


def request_in_parts(rng: random.Random, tool: OfferedTool) -> Request:
    """A request whose optional values are said behind it by their parameters' names: several clauses, and one call."""
    asked = request(rng, tool)
    text, arguments = asked.text, dict(asked.arguments)
    free = [slot for slot in tool.sketch.slots if tool.names.get(slot.key, "") not in ("", *arguments)]
    free = [slot for slot in free if not slot.required]
    others: dict[str, Value] = {name: Value(value, "") for name, value in arguments.items()}
    for slot in rng.sample(free, min(len(free), rng.choice((1, 1, 2, 3)))):
        name = tool.names[slot.key]
        value = others[name] = _fresh(rng, slot, others)
        said = rng.choice(YES[value.value]) if isinstance(value.value, bool) else value.said
        text = _behind(text, rng.choice(CLAUSES).format(n=JOINT.sub(" ", name).lower(), v=said))
        arguments[name] = value.value
    if not free or rng.random() < 0.1:
        text = _behind(text, rng.choice(TAILS))
    return Request(text, tool, {name: arguments[name] for name in _order_of(tool) if name in arguments})


def _behind(text: str, clause: str) -> str:
    """The text with a clause or another sentence."""
    if clause.startswith(". "):
        clause = clause[2].upper() + clause[3:]
        return f"{text if text[-1] in '?!.' else text + '.'} {clause}"
    end = text[-1] if text[-1] in "?.!" else ""
    return f"{text.rstrip('?.!')}{clause}{end}"


def fill(
    rng: random.Random, tool: OfferedTool, wording: Wording, given: Mapping[str, Value | None] = MappingProxyType({})
) -> tuple[str, dict[str, Any]]:
    """The wording with values, and the arguments by name. `given` slots are not drawn; one given as None has no value."""
    fixed = dict(wording.fixed)
    included = {key for key, _ in SEGMENT.findall(wording.text) if key in tool.names and key not in fixed}
    included = {key for key in sorted(included) if rng.random() < NAMED_SHARE}
    wanted = wording.places() | included | set(wording.needed)
    values: dict[str, Value] = {}
    for slot in tool.sketch.slots:
        if slot.key in fixed:
            values[slot.key] = Value({"true": True, "false": False}.get(fixed[slot.key], fixed[slot.key]), "")
        elif slot.key in given:
            value = given[slot.key]
            if value is not None:
                values[slot.key] = value
        elif slot.key in wanted:
            values[slot.key] = _fresh(rng, slot, values)
    text = SEGMENT.sub(lambda found: f"{_glue(found[2])}{found[2]}" if found[1] in included else "", wording.text)
    text = PLACE.sub(lambda found: values[found[1]].said if found[1] in values else "", text)
    text = re.sub(r" {2,}", " ", text).strip()
    order = _order_of(tool)
    arguments = {tool.names[key]: values[key].value for key in values if key in tool.names}
    return text, {name: arguments[name] for name in order if name in arguments}


def _glue(segment: str) -> str:
    """The space between a segment and the text before it."""
    return "" if segment.startswith((" ", ",", "'")) else " "


def _fresh(rng: random.Random, slot: Slot, others: Mapping[str, Value]) -> Value:
    """A value that no other parameter has."""
    taken = [one.value for one in others.values()]
    for _ in range(20):
        value = draw_value(rng, slot.kind, slot.descriptions[0])
        if value.value not in taken or isinstance(value.value, bool):
            return value
    return value


def _order_of(tool: OfferedTool) -> list[str]:
    parameters = tool.definition["function"]["parameters"]
    inner = parameters["properties"][tool.group] if tool.group else parameters
    return list(inner["properties"])


def _as_order(rng: random.Random, text: str) -> str:
    if rng.random() < 0.4:
        return text
    wrapped = rng.choice(BEFORE).format(text)
    return wrapped + "?" if wrapped.startswith(("Could", "Can", "Would", "can u", "Hello, could")) else wrapped


def _sentence(rng: random.Random, text: str, closed: bool) -> str:
    if rng.random() < 0.12:
        return text[0].lower() + text[1:].rstrip("?.") if text[:2] != "I " else text.rstrip(".")
    text = text[0].upper() + text[1:]
    if not closed and text[-1] not in "?.!" and rng.random() < 0.75:
        text += rng.choice((".", ".", ".", "!"))
    return text


def in_context(rng: random.Random, text: str, contexts: Sequence[str] = ()) -> str:
    """The text, now and then with another sentence before or behind it."""
    chance = rng.random()
    if chance < 0.12:
        before = rng.choice(contexts or ASIDES)
        return f"{before} {text}"
    if chance < 0.18:
        end = "" if text[-1] in "?.!" else "."
        return f"{text}{end} {rng.choice(ASIDES)}"
    return text


def known_values() -> frozenset[str]:
    """All texts of the lists of values."""
    return frozenset(value for values in lists().values() for value in values)
