"""Requests that sound as if a tool could answer them, and that none can: about its values, or of its subject."""

# ruff: noqa: E501
import random
import re
from collections.abc import Sequence

from demo.adapter.requests import OfferedTool
from demo.adapter.values import draw_value

HELD_EVERY = 5  # of the texts of a list, which have five at least
PLAIN = (
    "int",
    "num",
    "bool",
    "enum",
    "list",
    "message",
    "remark",
    "clock",
    "number",
    "errand",
    "reason",
    "problem",
    "gate",
)
ANYWAY = frozenset({"web_search", "get_news", "who_was", "define_word", "recommend_book"})  # answer what is asked
# What one may ask about a value of a kind, and tools that would answer it.
ABOUT: tuple[tuple[tuple[str, ...], tuple[str, ...], frozenset[str]], ...] = (
    (("city", "cityregion"),
     ("Who is the mayor of {v}?", "When was {v} founded?", "How do you pronounce {v}?", "Paint a picture of {v}.", "What is the dialing code of {v}?",
      "Which river flows through {v}?", "Write a poem about {v}.", "Is {v} older than Rome?", "Which football clubs come from {v}?", "What is the postcode of {v}?",
      "How high above the sea is {v}?", "Move our headquarters to {v}.", "What is the patron saint of {v}?", "Teach me the dialect of {v}.",
      "Buy me a house in {v}.", "Print a postcard of {v}.", "Who designed the town hall in {v}?", "Ship the furniture to {v}."),
     frozenset({"get_time", "country_info", "find_apartment"})),
    (("country",),
     ("Who is the president of {v}?", "How many states does {v} have?", "Sing the anthem of {v}.", "Draw the flag of {v}.", "What side of the road do they drive on in {v}?",
      "Export our goods to {v}.", "Which animals live in {v}?", "When did {v} become independent?", "How long is the coast of {v}?", "Which plugs do they use in {v}?"),
     frozenset({"country_info", "population_growth", "historical_event"})),
    (("person", "fullname"),
     ("How old is {v}?", "How tall is {v}?", "Where was {v} born?", "Buy a birthday present for {v}.", "Write a poem about {v}.", "Pick {v} up from the station.",
      "What shoe size does {v} wear?", "Promote {v}.", "Who is the sister of {v}?", "Draw a portrait of {v}.", "Is {v} left-handed?", "What does {v} like to eat?",
      "Give {v} a new laptop.", "Teach {v} to swim.", "Lend {v} my umbrella.", "Is {v} in the building?", "Wash {v}'s car.", "Which hobbies does {v} have?"),
     frozenset({"find_contact", "create_employee", "player_stats", "borrow_book"})),
    (("company",),
     ("Who founded {v}?", "How many people work at {v}?", "Buy {v}.", "Sue {v}.", "What does {v} sell?", "Where are the offices of {v}?", "Design a new logo for {v}.",
      "Apply for a job at {v}.", "Who audits {v}?", "When was {v} founded?"),
     frozenset({"find_court_case", "search_products"})),
    (("ticker",),
     ("Buy 20 shares of {v}.", "Sell all my {v}.", "Who runs {v}?", "When does {v} pay its dividend?", "How many people does {v} employ?", "Where is {v} based?",
      "Set a limit order for {v}.", "Which analysts cover {v}?"), frozenset()),
    (("currency",),
     ("Who is on the {v} note?", "Print a {v} note.", "When was {v} introduced?", "How heavy is a coin of one {v}?", "Is my {v} note a forgery?", "Open an account in {v}."),
     frozenset({"country_info"})),
    (("movie", "song"),
     ("Buy two tickets for {v}.", "Download {v}.", "Write a sequel to {v}.", "Who owns the rights to {v}?", "Translate {v} into Latin.", "What's your opinion of {v}?",
      "Record a cover of {v}.", "Return {v} to the shop.", "Is {v} suitable for a child of six?", "Where was {v} made?"),
     frozenset({"movie_info", "translate_text"})),
    (("room",),
     ("Paint the {v} blue.", "How large is the {v}?", "Take a photo of the {v}.", "Who is in the {v}?", "Rent the {v} out.", "Which furniture is in the {v}?",
      "Put a new carpet into the {v}.", "When was the {v} last renovated?"), frozenset({"read_sensor"})),
    (("grocery", "dish"),
     ("How long does {v} keep?", "Where does {v} come from?", "Throw the {v} away.", "Order {v} for tonight.", "Is {v} bad for dogs?", "Freeze the {v}.",
      "Which wine goes with {v}?", "How much does {v} cost?", "Feed the {v} to the birds.", "What is {v} in Italian?", "Slice the {v}."),
     frozenset({"get_nutrition", "find_recipe", "translate_text", "search_products", "feed_pet"})),
    (("appliance", "lamp"),
     ("How old is the {v}?", "Repair the {v}.", "Sell the {v} online.", "How much power does the {v} use?", "Buy a second {v}.", "Who made the {v}?", "Unpack the {v}.",
      "Is the {v} still under warranty?", "Carry the {v} upstairs.", "Clean the {v}."), frozenset({"search_products", "start_vacuum"})),
    (("door",),
     ("Paint the {v}.", "How wide is the {v}?", "Who came through the {v} last night?", "Oil the hinges of the {v}.", "Measure the {v}.", "Replace the {v}."), frozenset()),
    (("petname",),
     ("Walk {v}.", "How old is {v}?", "Book a vet for {v}.", "Wash {v}.", "Which breed is {v}?", "Where is {v}?", "Teach {v} a trick.", "Cut {v}'s claws."),
     frozenset({"book_doctor"})),
    (("filename", "imagefile"),
     ("Who wrote {v}?", "Print {v}.", "Encrypt {v}.", "When was {v} last changed?", "Rename {v} to old.txt.", "Compress {v}.", "How large is {v}?", "Upload {v}.",
      "Compare {v} with the old one.", "Share {v} with the team.", "Scan {v} for viruses.", "Restore the deleted {v}."),
     frozenset({"read_file", "convert_file", "search_files", "resize_image"})),
    (("servicename", "host"),
     ("Who is on call for {v}?", "Write documentation for {v}.", "In which language is {v} written?", "How much does {v} cost us a month?", "Encrypt the disks of {v}.",
      "Who installed {v}?", "Draw the architecture of {v}.", "Rename {v}.", "Buy a second {v}.", "When was {v} launched?"),
     frozenset({"get_logs"})),
    (("code",),
     ("Who created {v}?", "Print {v}.", "Make a copy of {v}.", "Translate {v}.", "Rate {v} with five stars.", "Who signed {v}?", "Archive {v}.", "Explain {v} to a customer."),
     frozenset({"get_order_status", "track_parcel", "update_ticket", "find_court_case", "translate_text"})),
    (("date",),
     ("Is {v} a public holiday?", "What phase is the moon in on {v}?", "When does the sun rise on {v}?", "What weekday is {v}?", "How many days are left until {v}?",
      "Who has a birthday on {v}?"), frozenset({"historical_event", "create_event", "find_contact"})),
    (("email", "phone"),
     ("Who owns {v}?", "Block {v}.", "Is {v} still valid?", "Which country is {v} from?", "Forward everything from {v} to the bin."), frozenset({"find_contact"})),
    (("plant",),
     ("Water the {v}.", "Sell the {v}.", "How much does a {v} cost?", "Plant a {v} in the garden.", "Is my {v} ill?", "Prune the {v}."), frozenset({"plant_info", "water_plants", "search_products"})),
    (("element", "formula", "gene", "planet"),
     ("Who discovered {v}?", "How do you spell {v}?", "Sell me some {v}.", "Why is it called {v}?", "Draw a model of {v}.", "Is {v} mentioned in a novel?", "Write a song about {v}."),
     frozenset({"element_info", "gene_info"})),
    (("product",),
     ("Who invented {v}?", "How are {v} made?", "Repair my {v}.", "Return the {v}.", "Design better {v}.", "Recycle the {v}.", "Are {v} dangerous for children?"),
     frozenset({"search_products"})),
    (("topic", "course"),
     ("Explain {v} to me.", "Write an essay about {v}.", "Who is an expert on {v}?", "Draw a mind map of {v}.", "Give a talk about {v}.", "What's your opinion on {v}?"),
     frozenset({"summarize_text", "search_products"})),
    (("projectname",),
     ("How much has {v} cost so far?", "Who had the idea for {v}?", "Draw a logo for {v}.", "Translate the plan of {v}.", "Find a sponsor for {v}.", "Is {v} late?"), frozenset({"translate_text"})),
    (("restaurant", "place", "meetingplace"),
     ("Who owns {v}?", "How old is {v}?", "Buy {v}.", "Which dishes does {v} serve?", "Write a review of {v}.", "Draw a plan of {v}.", "Is {v} haunted?"), frozenset({"find_places"})),
    (("teamname", "league"),
     ("Buy tickets for {v}.", "Who coaches {v}?", "Where do I get a shirt of {v}?", "Sing the song of {v}.", "When was {v} founded?", "Bet ten euros on {v}."),
     frozenset({"player_stats", "get_match_result"})),
    (("medicine", "specialty"),
     ("What does {v} cost?", "Who invented {v}?", "Buy me some {v}.", "Is {v} safe for cats?", "What are the side effects of {v}?"), frozenset({"take_medication"})),
    (("sport",),
     ("Who invented {v}?", "Buy me shoes for {v}.", "Is {v} an Olympic sport?", "Find me a partner for {v}.", "Teach me {v}.", "What are the rules of {v}?"), frozenset({"search_products"})),
    (("language",),
     ("Teach me {v}.", "How many people speak {v}?", "Where is {v} spoken?", "Find a teacher of {v}.", "Is {v} hard to learn?"), frozenset({"country_info"})),
    (("color",),
     ("Buy {v} paint.", "What does {v} stand for?", "Does {v} suit me?", "Which flags are {v}?", "Dye my hair {v}."), frozenset({"search_products"})),
)  # fmt: skip
# Sums that no tool is made for; {a} and {b} and {c} are numbers. Beside them: tools that might do it nevertheless.
SUMS = (
    "What is the area of a trapezoid with the sides {a} and {b} and the height {c}?", "How long is the diagonal of a rectangle of {a} by {b}?",
    "Find the volume of a cylinder with radius {a} and height {b}.", "What is the volume of a cone with radius {a} and height {b}?",
    "Calculate the surface of a cube with an edge of {a} cm.", "What is the least common multiple of {a} and {b}?", "Is {a} a perfect square?",
    "What is the square root of {a}?", "Compute the logarithm of {a} to base {b}.", "What is {a} modulo {b}?", "Solve {a}x + {b} = {c}.",
    "What is the median of {a}, {b} and {c}?", "Find the standard deviation of {a}, {b} and {c}.", "What is the sum of {a}, {b} and {c}?",
    "Write {a} in binary.", "Write {a} as a Roman numeral.", "What is the potential energy of {a} kg at a height of {b} m?",
    "Calculate the centripetal force on {a} kg at {b} m/s and a radius of {c} m.", "How large is the pressure of {a} newton on {b} square metres?",
    "Find the momentum of a mass of {a} kg that moves at {b} m/s.", "What is the voltage if {a} ampere flow through {b} ohm?",
    "How much work is done by {a} newton over {b} metres?", "What is the frequency of a wave with a length of {a} m and a speed of {b} m/s?",
    "How many ways are there to choose {a} of {b}?", "What is the derivative of {a}x^{b}?", "Integrate {a}x + {b} from 0 to {c}.",
    "What are the odds of rolling a {a} with {b} dice?", "What is the angle between vectors of length {a} and {b} whose product is {c}?",
    "Find the hypotenuse of a triangle with the legs {a} and {b}.", "What is the circumference of a circle with radius {a}?",
    "What are the prime factors of {a}?", "Is {a} even or odd?", "What is {a} to the power of {b}?", "What is the cube root of {a}?",
    "How many seconds are {a} hours and {b} minutes?", "How old is somebody who was born in 19{b}?", "What is the slope between ({a}, {b}) and ({c}, 7)?",
    "Multiply the matrices [[{a}, 2], [3, {b}]] and [[1, 0], [0, {c}]].", "What is the next number after {a}, {b}, {c}?",
    "How many litres of paint do I need for {a} square metres?", "How many tiles of {a} cm cover a floor of {b} m by {c} m?",
    "What is the molarity of {a} mol in {b} litres?", "Find the pH of a solution with {a} mmol of acid in {b} litres.",
    "How much heat warms {a} kg of water by {b} degrees?", "What is the half-life if {a} grams are left of {b} after {c} days?",
    "How fast does a satellite circle at a height of {a} km?", "What is the escape speed of a planet with radius {a} km?",
    "What is the magnetic field {a} cm from a wire with {b} ampere?", "How strong is gravity between {a} kg and {b} kg at a distance of {c} m?",
    "What is the focal length of a lens with {a} dioptres?", "How much does a body of {a} kg weigh on a ship that speeds up by {b} m/s2?",
    "What is my profit if I buy for {a} and sell for {b}?", "How many shares do I get for {a} at a price of {b}?", "What is the net present value of {a} in {b} years at 3%?",
    "How long until {a} doubles at {b} percent?", "What is the inflation between 19{b} and 2010?", "How much is {a} hours of work at {b} an hour?",
    "How many calories do I burn in {a} minutes of rowing?", "What is the body fat of a man of {a} kg?", "When is low tide {b} days from now?",
)  # fmt: skip
CALCULATING = frozenset(
    {
        "convert_units",
        "solve_quadratic",
        "linear_regression",
        "free_fall",
        "kinetic_energy",
        "mean",
        "log_workout",
        "get_stock_price",
    }
)
# What nobody builds a tool for beside these: orders about any value.
ORDERS = (
    "Draw {v}.", "Write a poem about {v}.", "Write a short story in which {v} appears.", "Sing something about {v}.", "Tell me a joke about {v}.",
    "What rhymes with {v}?", "Invent a slogan for {v}.", "Insure {v} against theft.", "What do you think of {v}?", "Make a video of {v}.",
    "How do I explain {v} to a child?", "Knit {v}.", "Photograph {v}.", "Auction {v} off.",
)  # fmt: skip


def ask_beside(rng: random.Random, tools: Sequence[OfferedTool], held: bool = False) -> str | None:
    """A question about a value that one of the tools takes, or None. `held` ones are never among the others."""
    keys = {tool.sketch.key for tool in tools}
    slots = [slot for tool in tools for slot in tool.sketch.slots if slot.kind.split(" ")[0] not in PLAIN]
    if keys & ANYWAY or not slots:
        return None
    slot = rng.choice(slots)
    rows = [row for row in ABOUT if slot.kind in row[0] and not keys & row[2]]
    texts = rows[0][1] if rows and rng.random() < 0.8 else ORDERS
    text = _one_of(rng, texts, held).format(v=draw_value(rng, slot.kind).said)
    return None if is_named(tools, text) else text


def ask_sum(rng: random.Random, tools: Sequence[OfferedTool], held: bool = False) -> str | None:
    """A sum that none of the tools computes, or None."""
    if {tool.sketch.key for tool in tools} & (CALCULATING | ANYWAY):
        return None
    a, b, c = (rng.choice((rng.randint(2, 99), rng.randint(2, 20), rng.randint(10, 900))) for _ in range(3))
    text = _one_of(rng, SUMS, held)
    text = text.format(a=a, b=rng.randint(30, 99) if "19{b}" in text else b, c=c)
    return None if is_named(tools, text) else text


def is_named(tools: Sequence[OfferedTool], text: str) -> bool:
    """Whether an invented tool, which does what its name says, shares a word with the text."""
    words = set(re.findall(r"[a-z]{3,}", text.lower()))
    names = [re.sub(r"([A-Z])", r"_\1", tool.name).lower() for tool in tools if tool.sketch.domain == "invented"]
    return any(words & set(re.split(r"[._]", name)) for name in names)


def _one_of(rng: random.Random, texts: Sequence[str], held: bool) -> str:
    return rng.choice([one for number, one in enumerate(texts) if (number % HELD_EVERY == HELD_EVERY - 1) == held])
