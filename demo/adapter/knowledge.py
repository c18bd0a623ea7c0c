"""Questions of knowledge, which a tool would have to be made for: none that is offered beside them answers one."""

import random

# Each row: ways to ask, and what for.
QUESTIONS = (
    (("What is the {v} of water?", "How high is the {v} of iron?", "Tell me the {v} of gold."),
     ("density", "melting point", "freezing point", "specific heat", "refractive index", "thermal conductivity")),
    (("What's the {v} of Brazil?", "Which {v} does Kenya have?", "Do you know the {v} of Norway?"),
     ("capital", "national anthem", "largest city", "currency", "highest mountain", "official language", "flag")),
    (("Who {v}?", "Do you know who {v}?", "Can you tell me who {v}?"),
     ("wrote Faust", "painted Guernica", "discovered penicillin", "invented the telephone", "won the last World Cup",
      "composed Carmen", "was the first person in space", "directed Psycho", "founded Rome")),
    (("When {v}?", "In which year {v}?", "What year was it when {v}?"),
     ("did the Titanic sink", "was the Magna Carta signed", "did the Second World War end", "was the first email sent",
      "did Mount St. Helens erupt", "was the euro introduced")),
    (("How many {v}?", "Roughly how many {v}?"),
     ("moons does Saturn have", "bones are in a human hand", "players are on a volleyball team",
      "litres fit in a barrel",
      "people live in Iceland", "strings does a cello have", "feet are in a mile", "days has a leap year")),
    (("Why {v}?", "Explain why {v}.", "Could you explain why {v}?"),
     ("is the sea salty", "do cats purr", "does bread rise", "do we yawn", "is Venus so hot", "do metals rust")),
    (("What does {v} mean?", "What is meant by {v}?", "Define {v}."),
     ("entropy", "inflation", "osmosis", "a haiku", "torque", "a prime number", "collateral", "photosynthesis")),
    (("What is the {v} of a body that falls for 3 seconds?", "Calculate the {v} at 20 degrees and 5 metres.",
      "Find the {v} if x is 4 and y is 9.", "How large is the {v} at a distance of 6 m?"),
     ("momentum", "magnetic field", "buoyancy", "drag", "torque", "wavelength", "electric charge",
      "half-life", "median", "eigenvalue", "standard deviation", "entropy", "surface tension", "pH value")),
    (("What {v}?", "Do you know what {v}?"),
     ("time is it", "day is today", "should I cook tonight", "is your name", "can I give my father for his birthday",
      "colour suits a small room", "happened in 1989", "makes a good speech")),
    (("How do I {v}?", "What is the best way to {v}?", "Teach me to {v}."),
     ("tie a bow tie", "remove a wine stain", "train a puppy", "grow basil indoors", "fix a flat tyre", "learn Italian",
      "write a eulogy", "sharpen a knife", "fold a paper crane", "calm a crying baby")),
)  # fmt: skip


def draw_question(rng: random.Random) -> str:
    """One of some 200 questions."""
    ways, values = rng.choice(QUESTIONS)
    return rng.choice(ways).format(v=rng.choice(values))
