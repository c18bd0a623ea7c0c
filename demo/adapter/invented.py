"""Tools that nobody has written by hand: an operation on a thing, with parameters that many tools have."""

# ruff: noqa: E501
import random
from collections.abc import Sequence
from dataclasses import dataclass

from demo.adapter.sketches import Sketch, Slot, Wording

# Operation: names of the tool, descriptions, ways to ask. {n} is the thing.
OPERATIONS = (
    (("get_{n}", "fetch_{n}", "{n}_lookup", "{n}.get"), ("Gets a {t}.", "Returns the {t} that fits."),
     ("get the {t}", "fetch the {t}", "look up the {t}", "show me the {t}", "find the {t}"),
     ("Which {t} is it", "Do we have a {t}", "I need the {t}", "What about the {t}")),
    (("create_{n}", "add_{n}", "new_{n}", "{n}.create"), ("Creates a {t}.", "Adds a new {t}."),
     ("create a {t}", "add a {t}", "make a new {t}", "set up a {t}", "register a {t}"),
     ("I need a new {t}", "We want a {t}", "There should be a {t}")),
    (("update_{n}", "change_{n}", "edit_{n}", "{n}.update"), ("Changes a {t}.", "Updates an existing {t}."),
     ("update the {t}", "change the {t}", "edit the {t}", "adjust the {t}"),
     ("The {t} has to be changed", "The {t} needs an update")),
    (("delete_{n}", "remove_{n}", "{n}.delete", "drop_{n}"), ("Deletes a {t}.", "Removes a {t} for good."),
     ("delete the {t}", "remove the {t}", "drop the {t}", "throw away the {t}"),
     ("I don't need the {t} any more", "The {t} can go")),
    (("calculate_{n}", "compute_{n}", "estimate_{n}", "{n}.calculate"), ("Calculates the {t}.", "Estimates the {t}."),
     ("calculate the {t}", "compute the {t}", "estimate the {t}", "work out the {t}"),
     ("What is the {t}", "How big is the {t}", "I need to know the {t}")),
    (("search_{n}", "find_{n}", "list_{n}", "{n}.search"), ("Searches for a {t}.", "Finds every {t} that fits."),
     ("search for a {t}", "find every {t}", "list each {t}", "look for a {t}"),
     ("Is there a {t}", "I'm looking for a {t}", "Are we missing a {t}")),
    (("send_{n}", "share_{n}", "submit_{n}", "{n}.send"), ("Sends a {t}.", "Shares a {t} with others."),
     ("send the {t}", "share the {t}", "submit the {t}", "pass on the {t}"), ("The {t} has to go out", "They wait for the {t}")),
    (("check_{n}", "verify_{n}", "validate_{n}", "{n}.check"), ("Checks a {t}.", "Tells whether a {t} is in order."),
     ("check the {t}", "verify the {t}", "validate the {t}", "inspect the {t}"),
     ("Is the {t} in order", "Is something wrong with the {t}")),
    (("print_{n}", "{n}.print", "print_out_{n}"), ("Prints a {t}.", "Sends a {t} to the printer."),
     ("print the {t}", "put the {t} on paper", "print out the {t}"), ("I need the {t} on paper", "The {t} has to be printed")),
    (("approve_{n}", "accept_{n}", "{n}.approve"), ("Approves a {t}.", "Accepts a {t} that waits for approval."),
     ("approve the {t}", "accept the {t}", "sign off the {t}"), ("The {t} is fine, approve it", "We agree to the {t}")),
    (("schedule_{n}", "plan_{n}", "{n}.schedule"), ("Schedules a {t}.", "Plans when a {t} takes place."),
     ("schedule the {t}", "plan the {t}", "set a time for the {t}"), ("The {t} needs a time", "When can we have the {t}? Plan it")),
    (("archive_{n}", "{n}.archive", "store_{n}"), ("Archives a {t}.", "Moves a {t} into the archive."),
     ("archive the {t}", "put the {t} into the archive", "file the {t} away"), ("The {t} belongs in the archive",)),
    (("rate_{n}", "score_{n}", "{n}.rate"), ("Rates a {t}.", "Gives a {t} a score."),
     ("rate the {t}", "give the {t} a score", "score the {t}"), ("I'd like to rate the {t}", "How good is the {t}? Score it")),
    (("copy_{n}", "duplicate_{n}", "clone_{n}"), ("Copies a {t}.", "Makes a second {t} that is equal."),
     ("copy the {t}", "make a copy of the {t}", "duplicate the {t}"), ("I need the {t} twice", "We need a copy of the {t}")),
    (("translate_{n}", "{n}.translate"), ("Translates a {t}.", "Writes a {t} in another language."),
     ("translate the {t}", "put the {t} into other words"), ("The {t} has to be translated",)),
    (("stop_{n}", "pause_{n}", "suspend_{n}"), ("Stops a {t}.", "Suspends a {t} for now."),
     ("stop the {t}", "pause the {t}", "suspend the {t}"), ("The {t} must not go on", "Let's hold the {t}")),
    (("predict_{n}", "forecast_{n}", "{n}.predict"), ("Predicts the {t}.", "Forecast of the {t}."),
     ("predict the {t}", "forecast the {t}", "tell me what the {t} will be"), ("What will the {t} be", "How will the {t} develop")),
    (("compare_{n}", "{n}.compare", "benchmark_{n}"), ("Compares a {t} with the usual.", "Tells how a {t} differs from others."),
     ("compare the {t}", "benchmark the {t}"), ("How does the {t} compare", "Is the {t} better than usual")),
    (("assign_{n}", "{n}.assign", "hand_over_{n}"), ("Assigns a {t} to somebody.", "Hands a {t} over."),
     ("assign the {t}", "hand over the {t}"), ("Somebody should take the {t}", "The {t} needs somebody who does it")),
)  # fmt: skip
THINGS = (
    "report", "booking", "playlist", "warranty", "budget", "menu", "contract", "route", "schedule", "recipe", "survey",
    "profile", "folder", "payment", "donation", "permit", "vote", "auction", "campaign", "badge", "coupon", "delivery",
    "license", "membership", "lesson", "exam", "tournament", "patient record", "test result", "sample", "experiment",
    "star chart", "satellite", "harvest", "shipment", "container", "pipeline", "dataset", "model run", "image filter",
    "video clip", "podcast", "chart", "poll", "quote", "loan", "policy", "claim", "audit", "rating", "review", "device",
    "sensor", "alarm", "camera", "key card", "parking space", "bus stop", "bridge", "tunnel", "tax form", "visa form",
    "crop yield", "water level", "energy use", "noise level", "fuel cost", "heart rate", "travel time", "exchange rate",
    "power output", "soil moisture", "growth rate", "error rate", "market share", "stress test", "wave height", "torque",
    "wedding", "garden bed", "bakery order", "hiking trail", "ski pass", "ferry ticket", "tram line", "elevator", "statue",
    "painting", "museum tour", "choir rehearsal", "theatre seat", "costume", "stage light", "radio show", "newsletter",
    "petition", "birth certificate", "passport photo", "vaccination", "blood test", "allergy note", "diet plan", "gym class",
    "marathon", "boat trip", "fishing licence", "beehive", "tractor", "barn", "wine cellar", "cheese wheel", "greenhouse",
    "solar panel", "wind turbine", "battery", "charging station", "water meter", "gas bill", "heat pump", "roof repair",
    "puzzle", "card game", "chess problem", "quest", "dungeon map", "avatar", "server rack", "backup", "firewall rule",
    "certificate", "domain name", "test case", "release note", "feature flag", "commit", "bug list", "sprint", "milestone",
    "invoice line", "tax return", "pension plan", "mortgage offer", "bond", "dividend", "price alert", "gift card",
    "mean", "area", "volume", "probability", "density", "velocity", "frequency", "angle", "distance", "body mass",
    "tide", "earthquake", "bird count", "tree height", "pollen level", "rainfall", "orbit", "eclipse", "telescope slot",
    "molecule", "protein", "cell culture", "gene sequence", "drug dose", "symptom", "ambulance", "fire drill", "evacuation",
)  # fmt: skip
# Parameter: names, kind, descriptions, ways to say it.
PARAMETERS = (
    (
        ("name", "title", "label"),
        "projectname",
        ("Its name.", "Name to use."),
        ("called {v}", "named {v}", "with the name {v}"),
    ),
    (("id", "number", "reference"), "code", ("Its id.", "Reference number."), ("{v}", "number {v}", "with the id {v}")),
    (("city", "location", "place"), "city", ("City.", "Where it is."), ("in {v}", "for {v}", "located in {v}")),
    (("country", "region"), "country", ("Country.",), ("in {v}", "for {v}", "of {v}")),
    (("date", "day", "on_date"), "date", ("Date.", "Day of it."), ("on {v}", "for {v}", "dated {v}")),
    (
        ("owner", "person", "user", "assigned_to"),
        "person",
        ("Whose it is.", "Person."),
        ("for {v}", "of {v}", "that belongs to {v}"),
    ),
    (
        ("amount", "price", "value"),
        "num 1 900 2",
        ("Value.", "How much."),
        ("of {v}", "worth {v}", "with a value of {v}"),
    ),
    (
        ("count", "quantity", "size"),
        "int 2 200",
        ("How many.", "Number of pieces."),
        ("with {v} pieces", "of size {v}", "times {v}"),
    ),
    (
        ("hours", "duration", "duration_hours"),
        "int 1 72",
        ("Hours.", "Length in hours."),
        ("over {v} hours", "for {v} hours", "that lasts {v} hours"),
    ),
    (("year", "in_year"), "int 1950 2030", ("Year.",), ("in {v}", "from the year {v}", "of {v}")),
    (
        ("category", "kind", "type"),
        "enum internal,external,test",
        ("Kind.",),
        ("of type {v}", "that is {v}", "in the category {v}"),
    ),
    (
        ("priority", "level"),
        "enum low,medium,high",
        ("Level.", "Priority."),
        ("with {v} priority", "at level {v}", "that is {v}"),
    ),
    (("color", "colour"), "color", ("Colour.",), ("in {v}", "with the color {v}")),
    (
        ("tags", "labels", "keywords"),
        "list color 2 3",
        ("Tags.", "List of labels."),
        ("tagged {v}", "with the tags {v}"),
    ),
    (("weight", "weight_kg", "mass"), "num 1 90 1", ("Weight in kg.",), ("of {v} kg", "weighing {v} kg")),
    (("temperature", "degrees"), "num 1 90 1", ("Degrees Celsius.",), ("at {v} degrees", "with a temperature of {v}")),
    (("email", "contact_email"), "email", ("Address for questions.",), ("with the contact {v}", "for {v}")),
    (("format", "output_format"), "enum json,xml,csv", ("Format of the output.",), ("as {v}", "in {v} format")),
    (("language", "lang"), "language", ("Language.",), ("in {v}",)),
    (("percent", "percentage", "share"), "int 1 99", ("Percent.",), ("at {v} percent", "with {v}%")),
    (
        ("people", "members", "participants", "names"),
        "list person 2 4",
        ("Everybody who takes part.", "Names of all."),
        ("for {v}", "with {v}"),
    ),
    (
        ("items", "products", "parts"),
        "list product 2 3",
        ("All of them.", "List of items."),
        ("with {v}", "made of {v}"),
    ),
    (("cities", "stops", "locations"), "list city 2 4", ("All places.", "List of cities."), ("through {v}", "in {v}")),
    (
        ("boxes", "frames", "pages"),
        "int 2 20",
        ("How many there are.",),
        ("with {v} boxes", "in {v} parts", "on {v} pages"),
    ),
)
# Two parameters of one kind that stand together: names of both, kind, ways to say them.
PAIRS = (
    ((("from", "to"), ("origin", "destination"), ("start", "end"), ("city1", "city2"), ("from_city", "to_city")), "city",
     ("from {p8} to {p9}", "between {p8} and {p9}", "{p8} to {p9}")),
    ((("from_person", "to_person"), ("giver", "taker"), ("person1", "person2"), ("first", "second")), "person",
     ("from {p8} to {p9}", "between {p8} and {p9}", "for {p8} and {p9}")),
    ((("team1", "team2"), ("home", "away"), ("first_team", "second_team")), "teamname",
     ("of {p8} against {p9}", "{p8} versus {p9}", "between {p8} and {p9}")),
    ((("start_date", "end_date"), ("first_day", "last_day"), ("from_date", "to_date")), "date",
     ("from {p8} to {p9}", "between {p8} and {p9}", "from {p8} until {p9}")),
    ((("low", "high"), ("minimum", "maximum"), ("from_value", "to_value")), "int 2 400", ("from {p8} to {p9}", "between {p8} and {p9}")),
)  # fmt: skip
FLAGS = (
    (("urgent", "is_urgent"), ("Whether it is urgent.",), "urgently"),
    (("notify", "send_notification"), ("Tell everybody about it.",), "and notify everybody"),
    (("draft", "as_draft"), ("Keep it as a draft.",), "as a draft"),
    (("archived", "include_archived"), ("Include archived ones.",), "including archived ones"),
)


PAIR_SHARE = 0.12
HELD_EVERY = 12  # things, which are never trained on
# Operations that may answer the same request: none of a family is a wrong one for another.
FAMILIES = (
    frozenset({"get_{n}", "search_{n}", "calculate_{n}", "check_{n}", "predict_{n}", "compare_{n}", "rate_{n}"}),
    frozenset({"create_{n}", "copy_{n}", "schedule_{n}", "update_{n}"}),
    frozenset({"delete_{n}", "archive_{n}", "stop_{n}"}),
    frozenset({"send_{n}", "assign_{n}", "approve_{n}", "update_{n}"}),
)
Operation = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class InventedSketch(Sketch):
    """A sketch with the operation and the thing that it was made of, and how its parameters are said."""

    operation: Operation
    thing: str
    said: str


def invent(rng: random.Random, held: bool = False) -> InventedSketch:
    """A tool with up to four parameters. `held` ones are of things that no other has."""
    operation: Operation = rng.choice(OPERATIONS)
    thing = _thing(rng, held)
    chosen = rng.sample(PARAMETERS, rng.choice((0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4)))
    slots: list[Slot] = []
    text = ""
    taken: set[str] = set()
    for i, (keys, kind, notes, ways) in enumerate(chosen):
        required = i == 0 or rng.random() < 0.6
        key = f"p{i}"
        free = tuple(one for one in keys if one not in taken)
        if not free:
            continue
        name = rng.choice(free)
        taken.add(name)
        way = rng.choice(ways).replace("{v}", f"{{{key}}}")
        text += f" {way}" if required else f"[{key}: {way}]"
        slots.append(Slot((key, name), kind, tuple(note.replace("Its", f"The {thing}'s") for note in notes), required))
    if rng.random() < PAIR_SHARE:
        pairs, kind, phrases = rng.choice(PAIRS)
        both = [one for one in pairs if not taken & set(one)]
        if both:
            first, second = rng.choice(both)
            text = f" {rng.choice(phrases)}{text}"
            slots += [
                Slot(("p8", first), kind, ("The first.",), True),
                Slot(("p9", second), kind, ("The second.",), True),
            ]
    if rng.random() < 0.3:
        keys, notes, said = rng.choice(FLAGS)
        slots.append(Slot(("flag", rng.choice(keys)), "bool", notes, False))
        text += f"[flag: {said}]"
    return _made(rng, operation, thing, tuple(slots), text)


def near_miss(
    rng: random.Random, sketch: InventedSketch, others: Sequence[Sketch], held: bool = False
) -> InventedSketch:
    """The same operation on another thing, or another one on the same, with the same parameters; none of `others`."""
    taken = [one for one in (sketch, *others) if isinstance(one, InventedSketch)]
    operations = [one for one in OPERATIONS if not any(are_near(one, other.operation) for other in taken)]
    if operations and rng.random() < 0.5:
        return _made(rng, rng.choice(operations), sketch.thing, sketch.slots, sketch.said)
    things = {one.thing for one in taken}
    thing = next(one for one in iter(lambda: _thing(rng, held), "") if one not in things)
    return _made(rng, sketch.operation, thing, sketch.slots, sketch.said)


def are_near(one: Operation, other: Operation) -> bool:
    """Whether a request of one operation may mean the other."""
    return one == other or any({one[0][0], other[0][0]} <= family for family in FAMILIES)


def _thing(rng: random.Random, held: bool) -> str:
    return rng.choice([one for number, one in enumerate(THINGS) if (number % HELD_EVERY == 5) == held])


def _made(rng: random.Random, operation: Operation, thing: str, slots: tuple[Slot, ...], text: str) -> InventedSketch:
    names, descriptions, orders, sentences = operation
    shown = [phrase.format(t=thing) for phrase in orders]
    asked = [phrase.format(t=thing) for phrase in sentences]
    return InventedSketch(
        "invented",
        (rng.choice(names).format(n=thing.replace(" ", "_")),),
        tuple(one.format(t=thing) for one in descriptions),
        slots,
        tuple(Wording(f"{one}{text}") for one in shown),
        tuple(
            Wording(f"{one}{text}{'?' if one.split()[0] in ('Which', 'Do', 'What', 'How', 'Is', 'Are') else '.'}")
            for one in asked
        ),
        (),
        (("status", "done"),),
        operation,
        thing,
        text,
    )
