"""Tools that nobody has written by hand: an operation on a thing, with parameters that many tools have."""

# ruff: noqa: E501
import random

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
)  # fmt: skip
# Parameter: names, kind, descriptions, ways to say it.
PARAMETERS = (
    (("name", "title", "label"), "projectname", ("Its name.", "Name to use."), ("called {v}", "named {v}", "with the name {v}")),
    (("id", "number", "reference"), "code", ("Its id.", "Reference number."), ("{v}", "number {v}", "with the id {v}")),
    (("city", "location", "place"), "city", ("City.", "Where it is."), ("in {v}", "for {v}", "located in {v}")),
    (("country", "region"), "country", ("Country.",), ("in {v}", "for {v}", "of {v}")),
    (("date", "day", "on_date"), "date", ("Date.", "Day of it."), ("on {v}", "for {v}", "dated {v}")),
    (("owner", "person", "user", "assigned_to"), "person", ("Whose it is.", "Person."), ("for {v}", "of {v}", "that belongs to {v}")),
    (("amount", "price", "value"), "num 1 900 2", ("Value.", "How much."), ("of {v}", "worth {v}", "with a value of {v}")),
    (("count", "quantity", "size"), "int 2 200", ("How many.", "Number of pieces."), ("with {v} pieces", "of size {v}", "times {v}")),
    (("hours", "duration", "duration_hours"), "int 1 72", ("Hours.", "Length in hours."), ("over {v} hours", "for {v} hours", "that lasts {v} hours")),
    (("year", "in_year"), "int 1950 2030", ("Year.",), ("in {v}", "from the year {v}", "of {v}")),
    (("category", "kind", "type"), "enum internal,external,test", ("Kind.",), ("of type {v}", "that is {v}", "in the category {v}")),
    (("priority", "level"), "enum low,medium,high", ("Level.", "Priority."), ("with {v} priority", "at level {v}", "that is {v}")),
    (("color", "colour"), "color", ("Colour.",), ("in {v}", "with the color {v}")),
    (("tags", "labels", "keywords"), "list color 2 3", ("Tags.", "List of labels."), ("tagged {v}", "with the tags {v}")),
    (("weight", "weight_kg", "mass"), "num 1 90 1", ("Weight in kg.",), ("of {v} kg", "weighing {v} kg")),
    (("temperature", "degrees"), "num 1 90 1", ("Degrees Celsius.",), ("at {v} degrees", "with a temperature of {v}")),
    (("email", "contact_email"), "email", ("Address for questions.",), ("with the contact {v}", "for {v}")),
    (("format", "output_format"), "enum json,xml,csv", ("Format of the output.",), ("as {v}", "in {v} format")),
    (("language", "lang"), "language", ("Language.",), ("in {v}",)),
    (("percent", "percentage", "share"), "int 1 99", ("Percent.",), ("at {v} percent", "with {v}%")),
)  # fmt: skip
FLAGS = (
    (("urgent", "is_urgent"), ("Whether it is urgent.",), "urgently"),
    (("notify", "send_notification"), ("Tell everybody about it.",), "and notify everybody"),
    (("draft", "as_draft"), ("Keep it as a draft.",), "as a draft"),
    (("archived", "include_archived"), ("Include archived ones.",), "including archived ones"),
)


def invent(rng: random.Random) -> Sketch:
    """A tool with one to four parameters."""
    names, descriptions, orders, sentences = rng.choice(OPERATIONS)
    thing = rng.choice(THINGS)
    identifier = thing.replace(" ", "_")
    chosen = rng.sample(PARAMETERS, rng.choice((1, 2, 2, 3, 3, 4)))
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
    if rng.random() < 0.3:
        keys, notes, said = rng.choice(FLAGS)
        slots.append(Slot(("flag", rng.choice(keys)), "bool", notes, False))
        text += f"[flag: {said}]"
    shown = [phrase.format(t=thing) for phrase in orders]
    asked = [phrase.format(t=thing) for phrase in sentences]
    return Sketch(
        "invented",
        (rng.choice(names).format(n=identifier),),
        tuple(one.format(t=thing) for one in descriptions),
        tuple(slots),
        tuple(Wording(f"{one}{text}") for one in shown),
        tuple(
            Wording(f"{one}{text}{'?' if one.split()[0] in ('Which', 'Do', 'What', 'How', 'Is', 'Are') else '.'}")
            for one in asked
        ),
        (),
        (("status", "done"),),
    )
