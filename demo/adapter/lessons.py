"""Lessons made beforehand, in files of `stored.py`'s format, for training on a GPU.

    python -m demo.adapter.lessons --base FILE.gguf --into FOLDER --tokens 20000000

writes `lessons-*.xz` to train on, `held-tools.xz` (tools, things and questions that no lesson has), `held-none.xz`
(requests that none of such tools fits) and `held-trials.xz` (the trials written by hand).
"""

import argparse
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from demo.adapter.conversations import MIX, Lesson, Mix, Teacher
from demo.adapter.packing import Packer
from demo.adapter.sketches import read_sketches
from demo.adapter.stored import StoredLesson, stored_lesson, write_lessons
from demo.adapter.train import EVALUATION_SEED, divide, open_packer
from demo.adapter.trials import read_trials
from server.gguf.header import read_header

LONGEST = 1_024  # ids of a lesson; conversations behind that are left out
TOKENS_PER_FILE = 1_000_000
COUNTS = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6)
MORE_CONVERSATIONS = 8  # than tools
WORD = re.compile("Ġ([A-Z][a-z]{3,11}|[a-z]{4,12})")  # a token of a byte-level vocabulary: a space and a word
HELD_LESSONS = 240
HELD_MIX = Mix(held=True)
NONE_MIX = Mix(one_call=0, parallel=0, none_fits=1, missing=0, small_talk=0, several_turns=0, held=True)


@dataclass(frozen=True, slots=True)
class Order:
    """What one process makes: files of about `tokens` ids together."""

    base: Path
    into: Path
    number: int
    tokens: int
    seed: int
    counts: tuple[int, ...]
    mix: Mix


def vocabulary_words(base: Path) -> list[str]:
    """Words that are one token behind a space: what a name in a request is made of, but not behind a quote."""
    tokens = read_header(base, vocabulary=True).metadata["tokenizer.ggml.tokens"]
    return [found[1] for token in tokens if (found := WORD.fullmatch(token))]


class Maker:
    """Lessons of one base as they are stored."""

    def __init__(self, base: Path) -> None:
        self.packer: Packer = open_packer(base)
        self.words = vocabulary_words(base)

    def stored(self, lesson: Lesson) -> StoredLesson | None:
        """A lesson, None if its list of tools is too long."""
        packed = self.packer.pack(lesson)
        return stored_lesson(packed.row, packed.replies, self.packer.first_of_calls, LONGEST)

    def draw(self, teacher: Teacher) -> StoredLesson:
        """The next lesson that is short enough."""
        while True:
            stored = self.stored(teacher.lesson(more=MORE_CONVERSATIONS))
            if stored is not None:
                return stored


def make(order: Order) -> int:
    """Write the files of an order; returns the number of their ids."""
    maker = Maker(order.base)
    sketches, _ = divide(read_sketches())
    made = 0
    for file in range(-(-order.tokens // TOKENS_PER_FILE)):
        seed = order.seed * 1_000_003 + order.number * 1_009 + file
        teacher = Teacher(sketches, seed, order.mix, order.counts, maker.words)
        lessons: list[StoredLesson] = []
        num_ids = 0
        while num_ids < min(TOKENS_PER_FILE, order.tokens - made):
            lessons.append(maker.draw(teacher))
            num_ids += len(lessons[-1].ids)
        path = order.into / f"lessons-{order.number}-{file:02}.xz"
        write_lessons(lessons, path)
        made += num_ids
        print(f"{path.name}: {len(lessons)} lessons, {num_ids} ids, {path.stat().st_size} bytes", flush=True)
    return made


def make_held(base: Path, into: Path) -> None:
    """Write what is evaluated on."""
    maker = Maker(base)
    _, sketches = divide(read_sketches())
    for name, mix in (("held-tools", HELD_MIX), ("held-none", NONE_MIX)):
        teacher = Teacher(sketches, EVALUATION_SEED, mix, (1, 2, 3, 4), maker.words)
        write_lessons([maker.draw(teacher) for _ in range(HELD_LESSONS)], into / f"{name}.xz")
    trials = [maker.stored(trial.lesson()) for trial in read_trials()]
    write_lessons([one for one in trials if one], into / "held-trials.xz")


def main() -> None:
    """Make lessons in several processes."""
    parser = argparse.ArgumentParser(description="Makes lessons for the adapter's training on a GPU.")
    parser.add_argument("--base", type=Path, required=True, help="GGUF file of the base model, for its tokenizer")
    parser.add_argument("--into", type=Path, required=True, help="folder to write")
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of tools, to draw from")
    parser.add_argument("--none-fits", type=float, default=MIX.none_fits, help="share of requests that no tool fits")
    given = parser.parse_args()
    given.into.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    orders = [
        Order(
            given.base,
            given.into,
            number,
            -(-given.tokens // given.processes),
            given.seed,
            tuple(given.counts),
            Mix(none_fits=given.none_fits),
        )
        for number in range(given.processes)
    ]
    make_held(given.base, given.into)
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        made = sum(pool.map(make, orders))
    print(f"{made} ids in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
