"""Values by flavour: each is written into a sentence and expected as an argument of a call."""

from collections.abc import Callable

from demo.lists import COUNTRIES
from demo.words import World

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "today", "tomorrow", "tonight",
)  # fmt: skip
DOMAINS = ("example.com", "mail.com", "test.org", "gmail.com", "post.net", "company.io")
LANGUAGES = (
    "French", "German", "Spanish", "Italian", "Chinese", "Japanese", "English", "Portuguese", "Russian", "Korean",
    "Arabic", "Dutch", "Polish", "Turkish", "Greek", "Hindi", "Swedish",
)  # fmt: skip
FOODS = ("pizza", "burger", "salad", "sushi", "pasta", "soup", "sandwich", "coffee", "tea", "cake", "curry", "tacos")
SENTENCES = (
    "I will be late", "see you tomorrow", "good morning", "the meeting is at noon", "call me back", "happy birthday",
    "how are you", "thank you for the help", "I am on my way", "dinner is ready", "please send the report",
    "where is the station", "I love you", "the door is open", "it is raining", "we need more time", "good night",
    "we won the game", "the cat is hungry", "lunch at noon", "hello world", "I miss you", "see you soon",
)  # fmt: skip
TIMEZONES = (
    "Europe/Paris", "Asia/Tokyo", "America/New_York", "UTC", "Europe/London", "Asia/Shanghai", "America/Chicago",
    "Europe/Berlin", "Australia/Sydney", "Asia/Kolkata", "America/Los_Angeles", "Africa/Cairo",
)  # fmt: skip
CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CNY", "CHF", "INR", "CAD", "AUD", "SEK", "dollars", "euros", "pounds", "yen")
STOCKS = ("AAPL", "TSLA", "MSFT", "GOOG", "AMZN", "NVDA", "META", "NFLX", "IBM", "Apple", "Tesla", "Microsoft")
TOPICS = (
    "cats", "electric cars", "climate change", "the best hiking trails", "cheap flights", "quantum computing", "jazz",
    "vegan recipes", "the moon landing", "python tutorials", "football results", "running shoes", "space travel",
    "machine learning", "good books", "history of Rome", "how to bake bread", "solar panels", "green tea",
)  # fmt: skip
CHORES = (
    "buy milk", "call mom", "water the plants", "feed the cat", "pay the rent", "go for a run", "take the trash out",
    "finish the report", "clean the kitchen", "buy a gift", "send the invoice", "book a table", "do the laundry",
)  # fmt: skip
ROOMS = ("kitchen", "bedroom", "living room", "bathroom", "office", "garage", "hallway", "basement", "garden")
UNITS = ("km", "miles", "meters", "feet", "kg", "pounds", "grams", "inches", "liters", "cups", "celsius", "fahrenheit")
SUBJECTS = (
    "Hello", "Meeting", "Invoice", "Report", "Holiday plans", "Project update", "Lunch", "Question", "Welcome",
)  # fmt: skip
CONDITIONS = (
    "sunny", "cloudy", "rain", "snow", "windy", "clear sky", "light rain", "foggy", "stormy", "partly cloudy",
)  # fmt: skip
EVENTS = (
    "Team meeting", "Lunch", "Dentist", "Project review", "Birthday party", "Standup", "Dinner", "Workshop", "Yoga",
)  # fmt: skip


def date(world: World) -> str:
    rng = world.rng
    roll = rng.random()
    if roll < 0.5:
        return f"20{rng.randint(20, 35)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if roll < 0.75:
        return rng.choice(WEEKDAYS)
    return f"{rng.choice(MONTHS)} {rng.randint(1, 30)}"


def clock(world: World) -> str:
    rng = world.rng
    roll = rng.random()
    if roll < 0.5:
        return f"{rng.randint(0, 23):02d}:{rng.choice((0, 15, 30, 45, rng.randint(0, 59))):02d}"
    if roll < 0.8:
        return f"{rng.randint(1, 12)}{rng.choice(('am', 'pm', ' am', ' pm'))}"
    return f"{rng.randint(1, 12)}:{rng.choice((15, 30, 45))} {rng.choice(('am', 'pm'))}"


def email(world: World) -> str:
    name = world.person().split()[0].lower() if world.rng.random() < 0.6 else world.invented()
    if world.rng.random() < 0.15:
        name += f"{world.rng.choice('._')}{world.invented()}"
    host = world.rng.choice(DOMAINS) if world.rng.random() < 0.7 else f"{world.invented()}.com"
    return f"{name}@{host}"


def code(world: World) -> str:
    rng = world.rng
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
    return rng.choice((f"{letters}{digits}", f"{letters}-{digits}", digits, f"{letters.lower()}{digits}"))


def words(world: World) -> str:
    count = world.rng.choice((1, 2, 2, 3))
    return " ".join(world.noun(0.6) if i == count - 1 else mixed_word(world) for i in range(count))


def mixed_word(world: World) -> str:
    return world.adjective() if world.rng.random() < 0.6 else world.invented()


def message(world: World) -> str:
    if world.split == "train" and world.rng.random() < 0.4:
        return world.rng.choice(SENTENCES)
    openings = ("the", "my", "our", "a", "your", "this")
    endings = ("is ready", "is late", "is broken", "has arrived", "was great", "is open", "looks good", "is gone")
    text = f"{world.rng.choice(openings)} {world.noun(0.6)} {world.rng.choice(endings)}"
    return text[0].upper() + text[1:] if world.rng.random() < 0.3 else text


def path(world: World) -> str:
    rng = world.rng
    stem = "_".join(world.invented() if rng.random() < 0.5 else world.noun() for _ in range(rng.choice((1, 1, 2))))
    name = f"{stem}.{rng.choice(('txt', 'csv', 'pdf', 'json', 'md', 'py', 'png'))}"
    return rng.choice((name, f"/{world.invented()}/{name}", f"/home/{world.invented()}/{name}", f"./{name}"))


def url(world: World) -> str:
    rng = world.rng
    host = rng.choice(("example.com", f"{world.invented()}.com", f"www.{world.invented()}.org"))
    return f"https://{host}" + (f"/{world.invented()}" if rng.random() < 0.5 else "")


def title(world: World) -> str:
    return " ".join(word.capitalize() for word in words(world).split())


def subject(world: World) -> str:
    return world.rng.choice(SUBJECTS) if world.split == "train" and world.rng.random() < 0.4 else title(world)


def topic(world: World) -> str:
    return world.rng.choice(TOPICS) if world.split == "train" and world.rng.random() < 0.5 else words(world)


def sums(world: World) -> str:
    rng = world.rng
    terms = [str(world.whole_number()) for _ in range(rng.choice((2, 2, 3)))]
    space = rng.choice(("", " "))
    return f"{space}{rng.choice('+-*/')}{space}".join(terms)


def listed(choices: tuple[str, ...]) -> Callable[[World], str]:
    """Return a function that draws one of the choices, or sometimes an invented word, so that none is memorised."""

    def draw(world: World) -> str:
        if world.split == "train" and world.rng.random() < 0.75:
            return world.rng.choice(choices)
        return world.invented()

    return draw


FLAVOURS: dict[str, Callable[[World], str]] = {
    "place": World.place,
    "person": World.person,
    "date": date,
    "clock": clock,
    "email": email,
    "code": code,
    "words": words,
    "message": message,
    "path": path,
    "url": url,
    "title": title,
    "topic": topic,
    "sums": sums,
    "word": World.invented,
    "name": lambda world: world.invented().capitalize(),
    "language": listed(LANGUAGES),
    "food": listed(FOODS),
    "timezone": listed(TIMEZONES),
    "currency": listed(CURRENCIES),
    "stock": listed(STOCKS),
    "chore": listed(CHORES),
    "room": listed(ROOMS),
    "unit": listed(UNITS),
    "event": listed(EVENTS),
    "country": listed(tuple(COUNTRIES)),
    "topicline": subject,
    "weather": listed(CONDITIONS),
}
