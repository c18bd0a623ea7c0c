"""Seeded, endless training batches with a curriculum: copying drills first, then conversations."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from demo.dialogues import Author, Stage, read_smalltalk
from demo.everyday import known_words, read_everyday
from demo.render import PROMPT_WEIGHT, Example, encode_all
from demo.words import World

# Loss is taken at every fifth prompt token with five times the weight: the same gradient for a fifth of the work.
PROMPT_STRIDE = 5
LENGTH_STEP = 32  # tokens; rows are padded to multiples of it


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """ids: [rows, tokens], padded with 0; positions: flat indices whose next token is predicted; the rest: for each."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor


DRILLS_ONLY, SHORT, MIXED, LAST = 0.02, 0.15, 0.40, 0.93


# Several questions about the same tools give more training signal for each prompt token.
MANY_QUESTIONS = (
    ("one", 16), ("same_twice", 6), ("two_tools", 6), ("missing", 6), ("none_fits", 4), ("chat", 2), ("several", 60),
)  # fmt: skip
MANY_TOOLS = (1, 2, 3, 4, 4, 4, 5, 6, 8, 8, 12, 20)


def stage_at(progress: float) -> Stage:
    """Return the difficulty of the conversations at this share of the run."""
    if progress < SHORT:
        easy = (("one", 20), ("missing", 4), ("same_twice", 4), ("several", 72))
        return Stage((1, 1, 1, 2), 0.3, easy, num_questions=(3, 4, 5, 6))
    if progress < MIXED:
        return Stage((1, 2, 2, 3, 4, 4), 0.33, MANY_QUESTIONS, num_questions=(3, 4, 5, 6, 7))
    if progress > LAST:
        return Stage(family_share=0.1)
    return Stage(MANY_TOOLS, weights=MANY_QUESTIONS, num_questions=(3, 4, 5, 6), family_share=0.15)


def drill(rng: random.Random, vocab_size: int) -> Example:
    """Return random tokens to repeat, or pairs to look up: attention to earlier tokens is learnt first."""
    draw = [rng.randrange(9, vocab_size) for _ in range(rng.randint(8, 40))]
    if rng.random() < 0.5:
        ids = [*draw, 7, *draw]
        weights = [0.0] * (len(draw) + 1) + [1.0] * len(draw)
        return Example(np.array(ids, dtype=np.int16), np.array(weights, dtype=np.float32))
    pairs = [(draw[i], draw[i : i + rng.randint(2, 4)]) for i in range(0, len(draw) - 4, 4)]
    ids = [token for _, pair in pairs for token in [*pair, 8]] + [7]
    weights = [0.0] * len(ids)
    for _, pair in rng.sample(pairs, len(pairs)):
        ids += [*pair, 8]
        weights += [0.0] + [1.0] * len(pair)
    return Example(np.array(ids, dtype=np.int16), np.array(weights, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Batches of one worker; pool n of a seed is always the same."""

    tokenizer: Tokenizer
    seed: int
    worker: int
    tokens_per_batch: int
    vocab_size: int

    def pool(self, number: int, progress: float, size: int = 768) -> list[TrainingBatch]:
        """Return batches in random order, each of conversations of similar length."""
        rng = random.Random(f"{self.seed}/{self.worker}/{number}")
        drills = 1.0 if progress < DRILLS_ONLY else 0.25 if progress < MIXED / 2 else 0.05
        if progress > MIXED:
            drills = 0.0
        num_drills = int(size * drills)
        author = Author(World("train", rng, known_words()), read_everyday(), read_smalltalk(), stage_at(progress))
        examples = encode_all(self.tokenizer, [author.write() for _ in range(size - num_drills)])
        examples += [drill(rng, self.vocab_size) for _ in range(num_drills * (3 if drills == 1.0 else 1))]
        limit = 500 if progress < SHORT else 800 if progress < MIXED else 2000
        examples = sorted((e for e in examples if len(e.ids) <= limit), key=lambda e: len(e.ids))
        batches = [pad(group, rng) for group in self._groups(examples)]
        rng.shuffle(batches)
        return batches

    def _groups(self, examples: list[Example]) -> Iterator[list[Example]]:
        """Yield groups of similar length that fill a batch; the last, smaller group is dropped."""
        group: list[Example] = []
        for example in examples:
            if (len(group) + 1) * len(example.ids) > self.tokens_per_batch and group:
                yield group
                group = []
            group.append(example)


def pad(examples: list[Example], rng: random.Random) -> TrainingBatch:
    """Pad examples to one length and thin out the loss positions of their prompts."""
    # Few different lengths: matrix products are prepared, and kernels generated, once for each.
    longest = -(-max(len(example.ids) for example in examples) // LENGTH_STEP) * LENGTH_STEP
    ids = np.zeros((len(examples), longest), dtype=np.int64)
    weights = np.zeros((len(examples), longest), dtype=np.float32)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        weights[row, : len(example.ids)] = example.weights
    faint = weights == np.float32(PROMPT_WEIGHT)
    chosen = np.arange(longest)[None, :] % PROMPT_STRIDE == rng.randrange(PROMPT_STRIDE)
    weights = np.where(faint, np.where(chosen, np.float32(PROMPT_WEIGHT * PROMPT_STRIDE), np.float32(0)), weights)
    weights[:, 0] = 0
    rows, columns = np.nonzero(weights)
    return TrainingBatch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(rows * longest + columns - 1),
        targets=torch.from_numpy(ids[rows, columns]),
        weights=torch.from_numpy(weights[rows, columns]),
    )
