"""Tools that compute or look up one quantity, beside others of the same inputs which they do not know."""

# ruff: noqa: E501
import random
from collections.abc import Sequence
from dataclasses import dataclass

from demo.adapter.invented import HELD_EVERY, InventedSketch, Operation
from demo.adapter.sketches import Sketch, Slot, Wording

# Input: names, kind, description, ways to say it.
INPUTS: dict[str, tuple[str, str, str, str]] = {
    "speed": ("speed|velocity|initial_velocity|v", "num 2 90 1", "Speed in m/s.", "with a speed of {v} m/s|at {v} m/s|with a velocity of {v} m/s"),
    "end speed": ("final_speed|end_velocity|v_end", "num 2 90 1", "Speed at the end in m/s.", "to a final speed of {v} m/s|that ends at {v} m/s"),
    "seconds": ("seconds|time|duration|t", "int 2 90", "Time in seconds.", "after {v} seconds|in {v} seconds|for {v} s"),
    "angle": ("angle|launch_angle|degrees|theta", "int 5 85", "Angle in degrees.", "at an angle of {v} degrees|with an angle of {v} degrees"),
    "height": ("height|h|altitude", "num 1 300 1", "Height in metres.", "from a height of {v} m|with a height of {v} metres"),
    "mass": ("mass|m|mass_kg", "num 1 900 1", "Mass in kg.", "with a mass of {v} kg|of {v} kg"),
    "force": ("force|newtons|f", "num 2 900 1", "Force in newton.", "with a force of {v} N|under {v} newton"),
    "distance": ("distance|distance_km|d", "num 2 900 1", "Distance in km.", "over {v} km|for a distance of {v} kilometers"),
    "radius": ("radius|r", "num 1 60 1", "Radius.", "with a radius of {v}|with radius {v} cm"),
    "length": ("length|l|side_a", "num 2 90 1", "Length.", "with a length of {v} m|{v} m long"),
    "width": ("width|w|side_b", "num 2 90 1", "Width.", "with a width of {v} m|{v} m wide"),
    "voltage": ("voltage|volts|u", "num 2 400 1", "Voltage in volt.", "at {v} volts|with a voltage of {v} V"),
    "resistance": ("resistance|ohms", "num 2 900 1", "Resistance in ohm.", "with {v} ohms|with a resistance of {v} ohm"),
    "values": ("values|data|numbers|sample", "list number 3 6", "The values.", "of {v}|for {v}|of the values {v}"),
    "first group": ("group_a|sample1|control", "list number 3 5", "First group.", "of {v}|with the first group {v}"),
    "second group": ("group_b|sample2|treated", "list number 3 5", "Second group.", "against {v}|and the second group {v}"),
    "cost": ("cost|purchase_price|bought_for", "num 5 2000 2", "Price paid.", "bought for {v}|that cost {v}"),
    "proceeds": ("sale_price|sold_for|proceeds", "num 5 3000 2", "Price at the sale.", "sold for {v}|that was sold at {v}"),
    "principal": ("principal|amount|loan_amount", "num 500 90000 2", "Amount of money.", "of {v}|over {v}"),
    "rate": ("rate|annual_rate|interest_rate", "num 1 9 1", "Interest in percent a year.", "at {v}%|at {v} percent|with {v}% interest"),
    "years": ("years|term|num_years", "int 1 30", "Number of years.", "over {v} years|for {v} years"),
    "revenue": ("revenue|sales|turnover", "int 1000 90000", "Revenue.", "with sales of {v}|with a revenue of {v}"),
    "expenses": ("expenses|costs|total_cost", "int 500 80000", "All costs.", "with costs of {v}|and expenses of {v}"),
    "body weight": ("weight|weight_kg|body_weight", "num 40 120 1", "Weight in kg.", "of {v} kg|who weighs {v} kg"),
    "body height": ("height|height_cm|body_height", "int 140 205", "Height in cm.", "{v} cm tall|with a height of {v} cm"),
    "age": ("age|years|age_years", "int 12 90", "Age in years.", "aged {v}|who is {v} years old"),
    "use": ("consumption|fuel_use|litres_per_100km", "num 3 14 1", "Litres per 100 km.", "that uses {v} litres|with {v} litres per 100 km"),
    "volume": ("volume|litres|v", "num 1 90 1", "Volume in litres.", "in {v} litres|with a volume of {v} l"),
    "grams": ("grams|amount|mass_g", "num 1 500 1", "Amount in grams.", "of {v} grams|with {v} g"),
    "degrees": ("temperature|degrees|temp", "num 1 95 1", "Temperature in degrees Celsius.", "at {v} degrees|at {v} °C"),
    "trials": ("trials|n|attempts", "int 2 60", "Number of attempts.", "in {v} attempts|for {v} tries"),
    "chance": ("probability|p|chance", "num 1 60 1", "Probability in percent.", "with a chance of {v} percent|at {v}% each"),
    "substance": ("substance|material|name", "element", "Which substance.", "of {v}"),
    "compound": ("compound|molecule|formula", "formula", "Chemical formula.", "of {v}"),
    "city": ("city|town|name", "city", "The city.", "of {v}"),
    "country": ("country|nation|name", "country", "The country.", "of {v}"),
    "movie": ("title|movie|film", "movie", "Title.", "of {v}"),
    "song": ("song|title|track", "song", "Title of the song.", "of {v}"),
    "team": ("team|club|team_name", "teamname", "The team.", "of {v}"),
    "person": ("name|person|full_name", "fullname", "Full name.", "of {v}"),
    "company": ("company|firm|name", "company", "The company.", "of {v}|at {v}"),
    "ticker": ("symbol|ticker", "ticker", "Ticker symbol.", "of {v}"),
    "planet": ("planet|body|name", "planet", "The planet.", "of {v}|on {v}"),
    "dish": ("dish|food|name", "dish", "The dish.", "of {v}"),
    "plant": ("plant|species|name", "plant", "The plant.", "of {v}"),
    "restaurant": ("restaurant|name|place", "restaurant", "The restaurant.", "of {v}|at {v}"),
    "case": ("case_number|case|docket", "code", "Number of the case.", "of case {v}|in the case {v}"),
    "order": ("order_id|order|number", "code", "Number of the order.", "of order {v}|for the order {v}"),
    "product": ("product|item|article", "product", "The product.", "of {v}|for {v}"),
    "place": ("place|building|address", "place", "The place.", "of {v}|at {v}"),
    "gene": ("gene|symbol", "gene", "Symbol of the gene.", "of {v}"),
    "event": ("event|name", "event", "The event.", "of {v}"),
    "server": ("server|host|machine", "host", "The machine.", "of {v}|on {v}"),
    "file": ("file|path|filename", "filename", "The file.", "of {v}"),
    "medicine": ("medicine|drug|name", "medicine", "The medicine.", "of {v}"),
}  # fmt: skip
EXTRAS: dict[str, tuple[str, str, str, str]] = {
    "decimals": ("decimals|precision|digits", "int 2 6", "Decimal places of the result.", "to {v} decimal places|with {v} decimals"),
    "unit": ("unit|units|result_unit", "enum metric,imperial", "System of units.", "in {v} units"),
    "format": ("format|output", "enum short,long,table", "Form of the answer.", "in {v} form"),
}  # fmt: skip
# What is looked at, "" for what the first input names; inputs; quantities, each of which is another question.
FAMILIES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("a thrown ball", ("speed", "angle"), ("range", "flight time", "highest point", "impact speed")),
    ("a falling stone", ("height", "mass"), ("fall time", "impact speed", "potential energy", "air resistance")),
    ("a car that speeds up", ("speed", "end speed", "seconds"), ("acceleration", "distance covered", "average speed", "work done")),
    ("a train", ("distance", "seconds"), ("speed", "arrival time", "delay", "energy use")),
    ("a sledge", ("mass", "force", "seconds"), ("acceleration", "final speed", "momentum", "friction coefficient")),
    ("a circle", ("radius",), ("area", "circumference", "diameter", "arc length")),
    ("a ball", ("radius",), ("volume", "surface", "weight", "great circle")),
    ("a rectangle", ("length", "width"), ("area", "perimeter", "diagonal", "aspect ratio")),
    ("a cylinder", ("radius", "height"), ("volume", "lateral surface", "weight", "wall thickness")),
    ("a triangle", ("length", "width", "angle"), ("area", "third side", "perimeter", "inner radius")),
    ("a circuit", ("voltage", "resistance"), ("current", "power", "heat output", "charge time")),
    ("", ("values",), ("mean", "median", "standard deviation", "mode", "variance", "sum", "largest value", "skewness")),
    ("the comparison", ("first group", "second group"), ("p-value", "correlation", "effect size", "mean difference", "confidence interval")),
    ("a deal", ("cost", "proceeds"), ("profit", "return in percent", "capital gains tax", "break-even price")),
    ("a share", ("cost", "proceeds", "years"), ("annual return", "profit", "volatility", "dividend yield")),
    ("a loan", ("principal", "rate", "years"), ("monthly payment", "total interest", "remaining debt", "tax saving")),
    ("a deposit", ("principal", "rate", "years"), ("final balance", "interest earned", "present value", "loss to inflation")),
    ("a shop", ("revenue", "expenses"), ("profit margin", "net income", "sales tax", "market share", "cash flow")),
    ("a person", ("body weight", "body height", "age"), ("body mass index", "calorie need", "body fat", "ideal weight", "life expectancy")),
    ("a trip", ("distance", "use"), ("fuel needed", "fuel cost", "emissions", "driving time", "toll")),
    ("a salt solution", ("grams", "volume"), ("concentration", "boiling point", "density", "acidity")),
    ("a gas", ("volume", "degrees"), ("pressure", "number of particles", "heat capacity", "density")),
    ("a lottery", ("trials", "chance"), ("probability of a win", "expected number of wins", "longest losing streak", "ticket price")),
    ("a satellite", ("height", "mass"), ("orbital speed", "orbital period", "launch cost", "remaining fuel")),
    ("", ("substance",), ("melting point", "boiling point", "density", "price", "hardness", "year of discovery")),
    ("", ("compound",), ("molar mass", "solubility", "smell", "structure", "toxic dose", "freezing point")),
    ("", ("city",), ("population", "mayor", "elevation", "founding year", "area", "average rent")),
    ("", ("country",), ("capital", "national debt", "population", "life expectancy", "head of state", "area")),
    ("", ("movie",), ("director", "length", "budget", "age rating", "cast", "filming location")),
    ("", ("song",), ("composer", "key", "tempo", "lyrics", "length", "label")),
    ("", ("team",), ("coach", "stadium", "number of titles", "next opponent", "top scorer", "founding year")),
    ("", ("person",), ("date of birth", "salary", "profession", "nationality", "shoe size", "home address")),
    ("", ("company",), ("number of employees", "chief executive", "headquarters", "profit", "founding year", "tax number")),
    ("", ("ticker",), ("closing price", "dividend", "market value", "price-earnings ratio", "trading volume")),
    ("", ("planet",), ("mass", "orbital period", "number of moons", "surface temperature", "escape speed")),
    ("", ("dish",), ("calories", "cooking time", "ingredients", "price", "country of origin")),
    ("", ("plant",), ("watering interval", "full height", "flowering time", "soil type", "botanical family")),
    ("", ("restaurant",), ("opening hours", "rating", "menu", "owner", "phone number")),
    ("", ("case",), ("judge", "verdict", "lawyer", "hearing date", "damages", "plaintiff")),
    ("", ("order",), ("delivery date", "invoice total", "carrier", "return label", "billing address")),
    ("", ("product",), ("price", "weight", "stock level", "manufacturer", "warranty period", "rating")),
    ("", ("place",), ("architect", "opening hours", "height", "year of construction", "entrance fee")),
    ("", ("gene",), ("chromosome", "function", "length", "known mutations", "discoverer")),
    ("", ("event",), ("date", "location", "cause", "number of victims", "leaders", "outcome")),
    ("", ("server",), ("uptime", "memory use", "operating system", "owner", "monthly cost")),
    ("", ("file",), ("size", "author", "last change", "encoding", "number of lines")),
    ("", ("medicine",), ("dosage", "side effects", "price", "manufacturer", "shelf life")),
)  # fmt: skip
# What else one may ask about the values of tools written by hand, by their keys; some of FAMILIES ask the same.
OTHERS: dict[str, tuple[str, ...]] = {
    "calculate_triangle_area": ("What is the longest side of a triangle with base {base} and height {height}?", "Find the angles of a triangle {base} wide and {height} high.", "How long is the hypotenuse for the legs {base} and {height}?"),
    "circle_area": ("What is the circumference of a circle with radius {radius}?", "Find the diameter if the radius is {radius}.", "How long is an arc of 30 degrees at radius {radius}?"),
    "rectangle_perimeter": ("How large is the area of a {length} by {width} rectangle?", "Find the diagonal of a rectangle with length {length} and width {width}."),
    "sphere_volume": ("What is the surface of a sphere with radius {radius}?", "How heavy is an iron ball of radius {radius}?"),
    "factorial": ("What is the square root of {number}?", "Is {number} a prime number?", "Write {number} in binary."),
    "greatest_common_divisor": ("What is the least common multiple of {a} and {b}?", "What is {a} divided by {b}?", "Multiply {a} by {b}."),
    "is_prime": ("What are the factors of {number}?", "What is the factorial of {number}?", "Is {number} a square number?", "Which prime comes after {number}?"),
    "solve_quadratic": ("What is the derivative for a = {a}, b = {b} and c = {c}?", "Find the vertex of the parabola with a={a}, b={b}, c={c}."),
    "mean": ("What is the median of {numbers}?", "Find the standard deviation of {numbers}.", "How large is the variance of {numbers}?", "Is the spread of {numbers} significant?"),
    "sort_numbers": ("What is the sum of {numbers}?", "Which of {numbers} are odd?", "Plot {numbers}."),
    "kinetic_energy": ("What is the momentum of {mass} kg at {velocity} m/s?", "How far does a body of {mass} kg brake from {velocity} m/s?", "Find the force that stops {mass} kg at {velocity} m/s."),
    "free_fall": ("How long does a stone fall from {height} meters?", "Find the energy of a ball at {height} meters.", "How far can one see from {height} meters?"),
    "calculate_speed": ("How large is the acceleration over {distance} km in {time} hours?", "How much fuel do {distance} km in {time} hours take?", "When do I arrive after {distance} km?"),
    "electric_force": ("What is the potential of {charge1} and {charge2} at {distance} meters?", "How strong is the field of a charge of {charge1} at {distance} meters?"),
    "density": ("What is the pressure in {volume} cubic meters that hold {mass} kg?", "How many moles are {mass} kg in {volume} cubic meters?"),
    "molecular_weight": ("At what temperature does {compound} boil?", "Is {compound} poisonous?", "How is {compound} produced?", "Balance the reaction of {compound} with water."),
    "planet_distance": ("How long does light take from {body1} to {body2}?", "Which is larger, {body1} or {body2}?", "What does a flight from {body1} to {body2} cost?"),
    "count_cells": ("How much food do {initial_population} cells need in {minutes} minutes?", "When do {initial_population} cells die?"),
    "linear_regression": ("What is the correlation of {x} and {y}?", "Is the difference of {x} and {y} significant?", "Find the median of {x}."),
    "roll_dice": ("What is the chance of a pair with {count} dice?", "What is the expected total of {count} dice with {sides} sides?"),
    "convert_currency": ("What was {amount} {from_currency} worth in 1990?", "Who prints the {from_currency}?", "How much tax is due on {amount} {from_currency}?"),
    "calculate_compound_interest": ("What monthly payment does a loan of {principal} at {rate}% over {years} years need?", "How long until {principal} doubles at {rate}%?", "What is {principal} worth after {years} years of inflation?"),
    "loan_payment": ("How much interest do I pay in all on {principal} at {annual_rate}%?", "What income do I need for a loan of {principal} over {months} months?", "Who lends me {principal}?"),
    "get_stock_price": ("What dividend does {symbol} pay?", "What return did {symbol} make this year?", "How many shares of {symbol} are there?", "What profit do I make if {symbol} rises by 10 percent?"),
}  # fmt: skip
NAMES = ("calculate_{n}", "get_{n}", "compute_{n}", "{n}", "find_{n}", "{n}_lookup", "{f}.{n}", "{f}_{n}")
OPERATION: Operation = (
    ("calculate_{n}", *NAMES), ("Calculates the {t}{of}.", "Returns the {t}{of}.", "Determines the {t}{of}.", "The {t}{of}, given {inputs}."),
    ("calculate the {t}{of}", "find the {t}{of}", "tell me the {t}{of}", "determine the {t}{of}", "get the {t}{of}", "work out the {t}{of}"),
    ("What is the {t}{of}", "What's the {t}{of}", "I need the {t}{of}", "Do you know the {t}{of}"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QuantitySketch(InventedSketch):
    """A sketch of a quantity, `thing`, with the number of its family and what its wordings say of the inputs."""

    family: int


def draw_quantity(rng: random.Random, held: bool = False) -> QuantitySketch:
    """A tool for one quantity. `held` ones are of families that no other has."""
    family = rng.choice([one for one in range(len(FAMILIES)) if (one % HELD_EVERY == 5) == held])
    _, keys, quantities = FAMILIES[family]
    slots, text = [], ""
    rows = [(INPUTS[key], True) for key in keys]
    rows += [(row, False) for row in EXTRAS.values() if rng.random() < 0.25]
    taken: set[str] = set()
    for number, ((names, kind, note, ways), required) in enumerate(rows):
        key = f"p{number}"
        name = rng.choice([one for one in names.split("|") if one not in taken])
        taken.add(name)
        way = rng.choice(ways.split("|")).replace("{v}", f"{{{key}}}")
        glue = " and" if required and number == len(keys) - 1 and number and not way.startswith("and ") else ""
        text += f"{glue} {way}" if required else f"[{key}: {way}]"
        slots.append(Slot((key, name), kind, (note,), required))
    return _made(rng, family, rng.choice(quantities), tuple(slots), text)


def another_quantity(rng: random.Random, sketch: QuantitySketch, others: Sequence[Sketch]) -> QuantitySketch | None:
    """A tool with the same inputs for a quantity that none of the others has; None if they have all."""
    taken = {one.thing for one in (sketch, *others) if isinstance(one, InventedSketch)}
    free = [one for one in FAMILIES[sketch.family][2] if one not in taken]
    return _made(rng, sketch.family, rng.choice(free), sketch.slots, sketch.said) if free else None


def shares_words(sketch: InventedSketch, text: str) -> bool:
    """Whether a text says a word of what the sketch is about."""
    words = set(text.lower().replace("_", " ").replace(".", " ").replace("?", " ").split())
    return bool(words & {one for one in sketch.thing.replace("-", " ").split() if len(one) > 2})


def _made(rng: random.Random, family: int, thing: str, slots: tuple[Slot, ...], text: str) -> QuantitySketch:
    about = FAMILIES[family][0]
    names, descriptions, orders, sentences = OPERATION
    words = {
        "t": thing,
        "of": f" of {about}" if about else "",
        "inputs": " and ".join(slot.names[1].replace("_", " ") for slot in slots if slot.required),
        "n": thing.replace(" ", "_").replace("-", "_"),
        "f": (about or FAMILIES[family][1][0]).split(" ")[-1],
    }
    asked = [Wording(f"{one.format(**words)}{text}{'.' if one.startswith('I ') else '?'}") for one in sentences]
    if about:
        asked.append(Wording(f"Think of {about}{text}. What is the {thing}?"))
    return QuantitySketch(
        "invented",
        (rng.choice(names[1:]).format(**words),),
        tuple(one.format(**words) for one in descriptions),
        slots,
        tuple(Wording(one.format(**words) + text) for one in orders),
        tuple(asked),
        (),
        (("result", "num 1 900 1"),),
        OPERATION,
        thing,
        text,
        family,
    )
