"""The words of the invented world, and the rule that says which half of the world a word belongs to.

`is_held_out(word)` is the only rule: a word (noun, name, value, invented or real) whose checksum
falls in one class of
six is for the evaluation alone.  Words used by the hand-written tools of everyday.py are always training words.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]


def split_words(text: str) -> list[str]:
    return text.split()


NOUNS = split_words("""
account album alert allergy anchor antenna apartment appliance archive article asset auction audit
badge bakery balance
balcony ballot banner barrel basket battery beacon bench bicycle bill bin blanket blueprint boat
bookmark boiler bottle
box branch bracelet bridge broadcast brochure bucket budget bug bundle bus cabin cable cactus camera campaign candle
canvas card carpet cart castle catalog ceiling certificate chair channel charger chart claim clinic cloud coat coin
colony comet comment compass complaint concert container contract cottage coupon course crane crate
credit crop curtain
dashboard deadline deck delivery deposit desk device diagram diet discount dish document dome
donation door dossier draft
drawer drone dungeon easel editor elevator employee engine envelope episode exam exhibit expense fabric factory farm
feedback fence ferry field filter flag fleet floor flower folder forest forum fountain fridge fuel
furnace gallery game
garage garden gate gift glacier glove goal grant greenhouse guitar hammer harbor harvest helmet
hive holiday horse hose
hospital hostel house humidity index ingredient inspection insurance interview inventory invoice island jacket job
journal journey kettle key kiosk kitchen kite label ladder lake lamp laptop launch lawn league lease lecture ledger
lesson letter level library license lift lock locker log lottery lunch machine magazine manual marathon market mask
matrix meal medal member menu meteor meter microscope mill mine mirror mission model module monument mosaic motor
mountain museum nest network notebook novel oasis offer office orbit orchard outfit oven owner package painting pantry
paragraph parcel park parking passport patch path patient pattern payment pension permit pet phone piano picture pier
pilot pipe planet plant platform plaza podcast poem policy pool portal postcard poster pot printer
prize profile project
protein puzzle pump quarry query queue quilt quiz quota rack radar ramp rate rating receipt record refrigerator region
registry repair report reservoir resort review reward ribbon river road robot rocket roof room rope route rug salary
sample satellite sauna scanner schedule scholarship school score screen sculpture seat sensor
server session shelf shelter
shift ship shipment shirt shop shuttle signal skill sofa solar soup spaceship sponsor stadium stage staircase station
statue storage storm story studio submarine subscription suitcase survey swimmer switch tariff task tax team telescope
tent terminal theater theme throne thread ticket tide tile toolbox tower town toy tractor trail trailer train treasure
treaty tree trial trophy truck tunnel turbine tutor umbrella uniform vaccine valley valve vault vehicle vendor venue
video village vineyard violin voucher wage wagon wallet warehouse warranty watch waterfall well wheel widget windmill
wing workshop yacht zone zoo
""")

ADJECTIVES = split_words("""
active annual backup basic big black blue bright broken busy calm cheap clean cold common copper daily deep digital
dirty double dry early electric empty extra fast final fixed foreign fresh full gold green grey
heavy hidden hot indoor
internal large late light local lonely long lost main manual medium mini modern monthly narrow new
night north old open
orange outdoor pink plain primary private public purple quick quiet rare red round royal safe
second secret sharp short
silent silver simple slow small smart soft solid south special spare special square steep stone
strong sunny sweet tall
temporary tiny total urgent vintage warm weekly west wet white wide wild wooden yearly yellow young
""")

PARAMETER_NOUNS = split_words("""
access address agent alias altitude angle area aspect author band batch brand bucket capacity category cause chapter
class client code color comment company condition contact country cursor customer density department depth detail
dimension direction distance district driver duration edition email energy entry facet factor field flavor focus font
format frequency gender genre grade group height host hue identifier input intensity interval kind key label language
latitude layer layout length level limit line load locale longitude manager margin mass material
member memo method mode
model moment month motive nickname note number offset operator origin output page party pattern
percentage period phase
phone plan planet point port position power prefix pressure price priority product profile quality quantity quarter
radius range rank reason recipient region relation resolution role room row scale scope score
season section sector seed
serial shade shape side signal size skill slot source speed spot stage start state status strategy
street strength style
subject suffix summary supplier surface symbol tag target team temperature texture theme threshold timeout title token
tone topic total type unit user value variant vendor version volume voltage warehouse week weight
width window year zip
""")

CITIES = split_words("""
Paris Rome Berlin London Madrid Tokyo Oslo Vienna Lisbon Dublin Prague Athens Cairo Sydney Boston
Chicago Toronto Mumbai
Delhi Seoul Beijing Shanghai Bangkok Jakarta Lima Bogota Quito Havana Denver Seattle Houston Dallas
Miami Atlanta Austin
Munich Hamburg Cologne Zurich Geneva Milan Naples Turin Venice Florence Warsaw Krakow Budapest
Sofia Bucharest Istanbul
Ankara Dubai Doha Riyadh Tehran Kabul Karachi Lahore Dhaka Hanoi Manila Singapore Osaka Kyoto
Nagoya Sapporo Busan Taipei
Perth Brisbane Melbourne Auckland Wellington Nairobi Lagos Accra Dakar Tunis Rabat Algiers
Casablanca Johannesburg Durban
Helsinki Stockholm Copenhagen Bergen Gothenburg Riga Vilnius Tallinn Minsk Kyiv Odessa Moscow Kazan Glasgow Edinburgh
Manchester Liverpool Leeds Bristol Cardiff Belfast Cork Galway Brussels Antwerp Ghent Amsterdam Rotterdam Utrecht Lyon
Marseille Nice Toulouse Bordeaux Nantes Lille Seville Valencia Barcelona Bilbao Granada Porto
Coimbra Salzburg Graz Bern
Basel Phoenix Portland Nashville Memphis Detroit Cleveland Montreal Vancouver Calgary Ottawa
Santiago Montevideo Caracas
""")
TWO_WORD_CITIES = (
    "New York", "San Francisco", "Los Angeles", "Hong Kong", "Cape Town", "Buenos Aires", "Mexico City", "Las Vegas",
    "Tel Aviv", "New Delhi", "San Diego", "Kuala Lumpur", "Addis Ababa", "Santa Fe", "Ho Chi Minh", "Abu Dhabi",
)  # fmt: skip

FIRST_NAMES = split_words("""
Anna Ben Clara David Emma Felix Grace Henry Ida Jack Karen Leo Maria Noah Olga Peter Quinn Rosa Sam Tina Ulrich Vera
Walter Xenia Yusuf Zoe Alice Bob Charlie Diana Erik Fatima George Hanna Ivan Julia Kevin Laura Mark Nina Oscar Paula
Robert Sophie Thomas Ursula Victor Wendy Yara Zack Amir Bianca Carlos Dora Elena Frank Gina Hugo Irene Jonas Kim Lucas
Mia Nils Omar Priya Ralf Sara Tom Uma Viktor Wei Yuki Ali Berta Chen Derek Esther Fiona Gustav
Helen Igor Jane Kofi Lena
Milan Nora Otto Petra Rita Simon Tara Ugo Vince Wanda Ahmed Bella Cyrus Dalia Edgar Flora Gordon Hilda John Mary James
""")
LAST_NAMES = split_words("""
Smith Jones Brown Miller Davis Garcia Wilson Moore Taylor Clark Lewis Walker Young King Wright Scott Green Baker Adams
Nelson Hill Campbell Mitchell Roberts Carter Phillips Evans Turner Parker Collins Stewart Morris
Murphy Cook Rogers Reed
Bailey Bell Cooper Ward Cox Diaz Wood Watson Brooks Gray Kelly Price Bennett Ross Silva Rossi Weber
Schmidt Novak Kovacs
Ivanov Petrov Tanaka Sato Suzuki Kim Park Nguyen Tran Singh Patel Khan Hassan Okafor Mensah Larsen Olsen Berg Lund
""")
COUNTRIES = split_words("""
France Italy Germany Spain Portugal Norway Sweden Finland Denmark Poland Austria Greece Egypt Kenya
Ghana Morocco India
China Japan Korea Vietnam Thailand Brazil Chile Peru Mexico Canada Australia Turkey Ireland Iceland Belgium Hungary
""")

ONSETS = split_words("""
b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sn sp st t th tr v w y z
""")
VOWELS = split_words("a e i o u ai ee ia oa oo ou ei")
CODAS = ["", "", "", "b", "ck", "d", "f", "l", "ll", "m", "n", "nd", "ng", "p", "r", "rk", "s", "st", "t", "x", "zz"]


def is_held_out(word: str) -> bool:
    """Whether the word belongs to the evaluation alone; letter case does not matter."""
    return zlib.crc32(word.lower().encode()) % 6 == 0


LONG = 100  # words in a list of which a corner of the world knows a sixth


@dataclass(frozen=True, slots=True)
class World:
    """Draws words of one half of the world; equal seeds draw equal words."""

    split: Split
    rng: random.Random
    known: frozenset[str]  # lower-case words of the hand-written tools: never held out
    corner: int = 0  # not 0: only a sixth of the words, another for each number, so that tools share theirs

    def allows(self, word: str) -> bool:
        held_out = is_held_out(word) and word.lower() not in self.known
        return held_out == (self.split == "heldout")

    def pick(self, words: list[str] | tuple[str, ...]) -> str:
        """One of the words, of this half."""
        while True:
            word = self.rng.choice(words)
            here = not self.corner or len(words) < LONG or zlib.crc32(f"{self.corner}{word}".encode()) % 6 == 0
            if here and self.allows(word):
                return word

    def invented(self) -> str:
        """A word nobody has seen, lower case."""
        while True:
            word = self._syllables() if self.rng.random() < 0.93 else self._letters()
            if self.allows(word):
                return word

    def noun(self, invented_share: float = 0.35) -> str:
        return self.invented() if self.rng.random() < invented_share else self.pick(NOUNS)

    def adjective(self) -> str:
        return self.pick(ADJECTIVES)

    def parameter_noun(self) -> str:
        roll = self.rng.random()
        if roll < 0.2:
            return self.invented()
        return self.pick(PARAMETER_NOUNS) if roll < 0.85 else self.pick(NOUNS)

    def place(self) -> str:
        roll = self.rng.random()
        if roll < 0.5:
            return self.pick(CITIES)
        if roll < 0.6:
            return self.pick(TWO_WORD_CITIES)
        if roll < 0.65:
            return self.pick(COUNTRIES)
        if roll < 0.7:
            return f"{self.pick(CITIES)}, {self.pick(COUNTRIES)}"
        return self.invented().capitalize()

    def person(self) -> str:
        roll = self.rng.random()
        first = self.pick(FIRST_NAMES) if roll < 0.6 else self.invented().capitalize()
        if self.rng.random() < 0.35:
            last = self.pick(LAST_NAMES) if self.rng.random() < 0.5 else self.invented().capitalize()
            return f"{first} {last}"
        return first

    def whole_number(self) -> int:
        while True:
            number = self.rng.choice((self.rng.randint(1, 12), self.rng.randint(2, 99), self.rng.randint(10, 9999)))
            if number < 10 or self.allows(str(number)):
                return number

    def decimal(self) -> float:
        while True:
            number = round(self.rng.uniform(0, self.rng.choice((2, 20, 500))), self.rng.choice((1, 1, 2)))
            if self.allows(str(number)) and number != int(number):
                return number

    def _syllables(self) -> str:
        choose = self.rng.choice
        count = self.rng.choice((1, 2, 2, 2, 3, 3))
        return "".join(choose(ONSETS) + choose(VOWELS) + choose(CODAS if i == count - 1 else ("", "", "n", "r", "l"))
                       for i in range(count))  # fmt: skip

    def _letters(self) -> str:
        return "".join(self.rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(self.rng.randint(3, 5)))
