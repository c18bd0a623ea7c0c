"""Invented tools: a verb, a noun that may be an invented word, and up to five parameters."""

from collections.abc import Callable
from dataclasses import dataclass

from demo.tools import Kind, Parameter, Tool, draw_style
from demo.words import World

QUERY_VERBS = ("get", "find", "fetch", "look_up", "check", "show", "read", "query", "retrieve")
QUERY_ASKS = (
    "What is the {n}", "What's the {n}", "Show me the {n}", "Get the {n}", "Find the {n}", "I need the {n}",
    "Tell me the {n}", "Look up the {n}", "Check the {n}", "Give me the {n}", "I want to know the {n}",
    "Can you find the {n}", "Could you check the {n}", "Get me the {n}", "Please show the {n}", "{n}",
)  # fmt: skip
QUERY_DESCRIPTIONS = (
    "Get the {n}.", "Returns the {n}", "Look up the {n}.", "Find the {n}", "Get the current {n}.", "Reads the {n}.",
    "Retrieve information about the {n}.", "Use this to get the {n}.", "Shows the {n}", "{n} lookup",
)  # fmt: skip
ACTIONS = {
    "create": ("create", "make", "add", "set up"), "delete": ("delete", "remove", "erase"),
    "update": ("update", "change", "modify", "edit"), "send": ("send",), "book": ("book", "reserve"),
    "order": ("order", "buy"), "start": ("start", "launch", "run"), "stop": ("stop", "end", "halt"),
    "cancel": ("cancel", "call off"), "open": ("open",), "close": ("close", "shut"), "lock": ("lock",),
    "unlock": ("unlock",), "move": ("move",), "copy": ("copy", "duplicate"), "print": ("print",),
    "share": ("share",), "save": ("save", "store"), "clean": ("clean",), "rent": ("rent",), "fix": ("fix", "repair"),
    "track": ("track", "follow"), "schedule": ("schedule", "plan"), "calculate": ("calculate", "compute"),
    "play": ("play",), "test": ("test", "try"), "measure": ("measure",), "rate": ("rate",), "report": ("report",),
    "scan": ("scan",), "sell": ("sell",), "sort": ("sort",), "pay": ("pay", "pay for"), "register": ("register",),
    "assign": ("assign",), "invite": ("invite",), "upload": ("upload",), "download": ("download",),
    "export": ("export",), "import": ("import",), "activate": ("activate", "turn on", "switch on", "enable"),
    "deactivate": ("deactivate", "turn off", "switch off", "disable"), "set": ("set", "adjust"), "reset": ("reset",),
    "list": ("list", "show all of"), "search": ("search", "look through"), "count": ("count",), "draw": ("draw",),
}  # fmt: skip
ACTION_ASKS = (
    "{V} the {n}", "{V} a {n}", "{V} my {n}", "Please {v} the {n}", "Please {v} a {n}", "Can you {v} the {n}",
    "Can you {v} a {n}", "Could you {v} the {n}", "I want to {v} a {n}", "I want to {v} the {n}",
    "I need to {v} a {n}", "I'd like to {v} the {n}", "Would you {v} my {n}", "{V} {n}", "Let's {v} a {n}",
)  # fmt: skip
ACTION_DESCRIPTIONS = (
    "{V} a {n}.", "{V} the {n}", "{V} a new {n}.", "Use this to {v} a {n}.", "{V}s a {n}", "{V} {n}",
    "Tool to {v} the {n}", "Call this to {v} a {n}",
)  # fmt: skip

# Flavour of the value, matching parameter names, and clauses that give the value without naming the parameter.
ROLES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("place", ("city", "location", "place", "town", "destination", "site"), ("in {}", "in {}", "at {}", "near {}")),
    ("person", ("recipient", "customer", "person", "user", "employee", "guest", "name"), ("for {}", "to {}")),
    ("date", ("date", "day", "start_date", "due_date", "when"), ("on {}", "for {}")),
    ("clock", ("time", "start_time", "hour"), ("at {}", "at {}", "for {}")),
    ("email", ("email", "to", "email_address", "recipient_email"), ("to {}", "with email {}")),
    ("name", ("name", "title", "label"), ("called {}", "named {}", "with the name {}")),
    ("message", ("message", "text", "content", "body", "note"), ("saying {}", "with the text {}", "that says {}")),
    ("code", ("id", "order_id", "code", "number", "ticket_id"), ("with id {}", "number {}", "{}")),
    ("topic", ("query", "topic", "keyword", "subject"), ("about {}", "on {}")),
    ("path", ("path", "file", "filename", "file_path"), ("from {}", "in {}", "at {}")),
)
COUNTED = ("guests", "people", "copies", "nights", "days", "items", "tickets", "minutes", "hours", "pieces", "pages")
LISTS = ("tags", "items", "names", "attendees", "labels", "keywords", "members", "topics", "colors", "files")
FREE_FLAVOURS = ("word", "word", "word", "name", "words", "code", "place", "person", "title", "date", "message", "url")
KINDS: tuple[tuple[Kind, int], ...] = (
    ("string", 50), ("integer", 17), ("number", 8), ("boolean", 8), ("enum", 10), ("array", 6), ("object", 4),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """What the tools of one service have in common: update_order, update_user."""

    verb: str
    parameters: tuple[Parameter, ...]


def invent_family(world: World) -> Family:
    """Return the verb and parameters that the tools of a list share."""
    return Family(world.rng.choice((*QUERY_VERBS, *ACTIONS)), invent_parameters(world))


def invent_tool(world: World, about: str | None = None, family: Family | None = None) -> Tool:
    """Return an invented tool; with `about` as its noun it is easily confused with others of that noun."""
    rng = world.rng
    noun = about or noun_phrase(world)
    phrases: tuple[str, ...]
    asks: tuple[str, ...]
    descriptions: tuple[str, ...]
    if family.verb in QUERY_VERBS if family else rng.random() < 0.45:
        verb = family.verb if family else rng.choice(QUERY_VERBS)
        phrases, asks, descriptions = ("get",), QUERY_ASKS, QUERY_DESCRIPTIONS
    else:
        verb = family.verb if family else rng.choice(list(ACTIONS))
        phrases, asks, descriptions = ACTIONS[verb], ACTION_ASKS, ACTION_DESCRIPTIONS
    description = fill(rng.choice(descriptions), phrases[0] if rng.random() < 0.3 else verb.replace("_", " "), noun)
    parameters = family.parameters if family else invent_parameters(world)
    openings = [fill(ask, rng.choice(phrases), noun) for ask in rng.sample(asks, 6)]
    first = next((p for p in parameters if p.kind == "string" and p.required), None)
    if first and first.flavour in ("place", "word", "name", "code", "words", "person") and rng.random() < 0.45:
        openings = [f"{opening} {rng.choice(('for', 'of', 'for'))} {{{first.name}}}" for opening in openings]
    name = tool_name(world, verb, noun)
    if len(name) > 40:
        name = name[:40].rstrip("_-")
    results = tuple((world.parameter_noun(), rng.choice(FREE_FLAVOURS[:7])) for _ in range(rng.randint(1, 2)))
    description = description if rng.random() < 0.95 else noun
    style = tuple(kind for kind in draw_style(world) if kind != "bare" or noun.split()[-1] in name.lower())
    meaning = f"{'query' if asks is QUERY_ASKS else verb} {noun}"
    return Tool(name, description, parameters, tuple(openings), results, style, frozenset((meaning,)))


def noun_phrase(world: World) -> str:
    noun = world.noun()
    roll = world.rng.random()
    if roll < 0.2:
        return f"{world.adjective()} {noun}"
    return f"{world.noun(0.2)} {noun}" if roll < 0.3 else noun


def fill(pattern: str, verb: str, noun: str) -> str:
    text = pattern.replace("{V}", verb.capitalize()).replace("{v}", verb).replace("{n}", noun)
    return text[0].upper() + text[1:]


def tool_name(world: World, verb: str, noun: str) -> str:
    rng = world.rng
    words = [*verb.split("_"), *noun.split()]
    roll = rng.random()
    if roll < 0.06:
        return world.invented() + (f"_{world.invented()}" if rng.random() < 0.4 else "")
    if roll < 0.14:
        ending = rng.choice(("tool", "api", "service", "lookup", verb.split("_")[0]))
        words = [*words[1:], ending]
    elif roll < 0.17:
        words = [world.invented(), *words]
    style = rng.random()
    if style < 0.68:
        return "_".join(words)
    if style < 0.86:
        return words[0] + "".join(word.capitalize() for word in words[1:])
    return "-".join(words) if style < 0.95 else "".join(word.capitalize() for word in words)


def invent_parameters(world: World) -> tuple[Parameter, ...]:
    rng = world.rng
    count = rng.choices((0, 1, 2, 3, 4, 5), (5, 38, 30, 16, 7, 4))[0]
    roles = rng.sample(ROLES, len(ROLES))
    parameters: list[Parameter] = []
    taken: set[str] = set()
    prepositions: set[str] = set()
    for _ in range(count):
        kind = rng.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]
        made = invent_parameter(world, kind, roles)
        openings = {clause.split()[0] for clause in made.clauses if made.spoken not in clause}
        if made.name in taken or openings & prepositions:
            continue
        taken.add(made.name)
        prepositions |= openings if made.kind == "string" else set()
        parameters.append(made)
    return tuple(parameters)


def invent_parameter(world: World, kind: Kind, roles: list[tuple[str, tuple[str, ...], tuple[str, ...]]]) -> Parameter:
    rng = world.rng
    required = rng.random() < 0.72
    name = parameter_name(world)
    match kind:
        case "string":
            if rng.random() < 0.4 and roles and world.split == "train":
                flavour, names, clauses = roles.pop()
                name = rng.choice(names) if rng.random() < 0.7 else name
                return describe(world, Parameter(name, kind, "", required, flavour, clauses=(*clauses, *named(name))))
            return describe(world, Parameter(name, kind, "", required, rng.choice(FREE_FLAVOURS), clauses=named(name)))
        case "integer" if rng.random() < 0.45:
            familiar = rng.random() < 0.5 and world.split == "train"
            things = rng.choice(COUNTED) if familiar else f"{world.noun(0.6)}s"
            name = rng.choice((things, things, f"num_{things}", f"{things}_count"))
            counted = (f"for {{}} {things}", f"with {{}} {things}")
            return describe(world, Parameter(name, kind, "", required, clauses=counted))
        case "integer" | "number":
            return describe(world, Parameter(name, kind, "", required, clauses=named(name)))
        case "boolean":
            name = rng.choice((name, name, f"include_{name}", f"with_{name}", f"is_{name}"))
            return describe(world, Parameter(name, kind, "", required, clauses=switch_clauses(name)))
        case "enum":
            count = rng.choice((2, 2, 3, 3, 4))
            choices = tuple(dict.fromkeys(enum_choice(world) for _ in range(count)))
            return describe(world, Parameter(name, kind, "", required, choices=choices, clauses=named(name)))
        case "array":
            name = rng.choice(LISTS) if rng.random() < 0.4 and world.split == "train" else f"{name}s"
            flavour = rng.choice(("word", "word", "name", "person", "place", "email", "code"))
            clauses = (f"with {spoken(name)} {{}}", f"{spoken(name)} {{}}", f"and the {spoken(name)} {{}}")
            return describe(world, Parameter(name, kind, "", required, flavour, clauses=clauses))
        case "object":
            kinds: tuple[Kind, ...] = ("string", "string", "integer", "number")
            inner = [invent_parameter(world, rng.choice(kinds), []) for _ in range(2)]
            fields = tuple({p.name: Parameter(p.name, p.kind, "", True, simple(p.flavour)) for p in inner}.values())
            clauses = (f"with {spoken(name)} {{}}", f"with the {spoken(name)} {{}}", f"and {spoken(name)}: {{}}")
            return describe(world, Parameter(name, kind, "", required, fields=fields, clauses=clauses))


def simple(flavour: str) -> str:
    return flavour if flavour in ("word", "name", "code", "place") else "word"


def enum_choice(world: World) -> str:
    return world.adjective() if world.rng.random() < 0.5 else world.invented()


def parameter_name(world: World) -> str:
    rng = world.rng
    name = world.parameter_noun()
    roll = rng.random()
    if roll < 0.12:
        return f"{world.adjective()}_{name}"
    if roll < 0.22:
        return f"{name}_{rng.choice(('id', 'name', 'code', 'level', 'type', 'size'))}"
    return f"{name}{world.parameter_noun().capitalize()}" if roll < 0.25 else name


def spoken(name: str) -> str:
    return Parameter(name, "string").spoken


def named(name: str) -> tuple[str, ...]:
    """Return clauses that give a value by naming its parameter."""
    n = spoken(name)
    return (f"with {n} {{}}", f"with the {n} {{}}", f"with {{}} as the {n}", f"using {n} {{}}", f"{n} {{}}",
            f"{n}: {{}}", f"and set the {n} to {{}}", f"with {n} set to {{}}", f"where the {n} is {{}}")  # fmt: skip


def switch_clauses(name: str) -> tuple[str, ...]:
    """Return clauses for true (first half) and false (second half) of a boolean."""
    n = spoken(name)
    for prefix in ("include ", "with ", "is "):
        n = n.removeprefix(prefix)
    yes = (f"with {n}", f"with {n} on", f"{n} enabled", f"and include {n}", f"with {n} set to true", f"{n}: yes")
    no = (f"without {n}", f"with {n} off", f"{n} disabled", f"without any {n}", f"with {n} set to false", f"{n}: no")
    return yes + no


DESCRIPTIONS: tuple[Callable[[str], str], ...] = (
    lambda n: f"The {n}", lambda n: f"The {n}.", lambda n: n.capitalize(), lambda n: f"Which {n} to use",
    lambda n: f"The {n} to use.", lambda n: f"Name of the {n}", lambda n: f"The desired {n}",
)  # fmt: skip


def describe(world: World, bare: Parameter) -> Parameter:
    """Return the parameter with a description or without: clients often leave it out."""
    text = world.rng.choice(DESCRIPTIONS)(bare.spoken) if world.rng.random() < 0.55 else ""
    return Parameter(bare.name, bare.kind, text, bare.required, bare.flavour, bare.choices, bare.fields, bare.clauses)
