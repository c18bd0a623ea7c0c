"""Training of the adapter, on CPUs; can be stopped and resumed.

    python -m demo.adapter.train --base SmolLM2-135M-Instruct.Q4_1.gguf --run /tmp/run --minutes 90
    python -m demo.adapter.train ... --resume               goes on from the run's last checkpoint
    python -m demo.adapter.train ... --start-from FOLDER    begins with an adapter in peft's format

The run's folder receives `checkpoint.pt`, `newest/` and `best/` (peft's format) and `log.txt`. Each thread computes
whole rows by itself: on shared cores none waits for another within a product. The learning rate rises, and falls as a
cosine to a hundredth at the end of the time.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import local
from typing import Any

import torch
from torch import Tensor

from demo.adapter.base import open_network
from demo.adapter.conversations import COUNTS, Mix, Teacher
from demo.adapter.network import Gradients, Network, Scores
from demo.adapter.optimizer import AdamW
from demo.adapter.packing import TEMPLATE, PackedLesson, Packer
from demo.adapter.peft_format import read_adapter, write_adapter
from demo.adapter.sketches import Sketch, read_sketches
from demo.adapter.trials import read_trials
from server.checkpoint.checkpoint import Checkpoint

HELD_OUT = 12  # every twelfth sketch is never trained on
SAVE_EVERY_S = 300
WARM_UP_STEPS = 20
LONGEST_ROW = 1_500  # tokens; a longer lesson is left out
EVALUATION_SEED = 4_711


@dataclass(frozen=True, slots=True)
class Run:
    """Settings of a run."""

    base: Path
    folder: Path
    minutes: float
    seed: int = 0
    threads: int = 2
    tokens_per_step: int = 2_000
    rate: float = 8e-4
    rank: int = 16
    alpha: float = 32
    dtype: str = "float32"
    counts: tuple[int, ...] = COUNTS
    max_steps: int = 1_000_000
    evaluate_every_s: float = 900
    resume: bool = False
    start_from: Path | None = None


@dataclass(slots=True)
class Progress:
    """Progress of a run, kept in its checkpoints. `targets` are the tokens that the assistant writes."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    targets: int = 0
    conversations: int = 0
    best: float = -1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares of replies: `exact` would be written token for token by greedy decoding; `kind` begin as they should."""

    exact: float
    kind: float
    loss: float


def open_packer(base: Path) -> Packer:
    """The packer of the base's tokenizer and the adapter's template."""
    return Packer(Checkpoint.open(base, chat_template=str(TEMPLATE)))


def divide(sketches: Sequence[Sketch]) -> tuple[list[Sketch], list[Sketch]]:
    """The sketches to train on, and those to evaluate on."""
    held = [one for number, one in enumerate(sketches) if number % HELD_OUT == HELD_OUT // 2]
    return [one for one in sketches if one not in held], held


class Workers:
    """Threads that compute rows, each with gradients of its own."""

    def __init__(self, network: Network, num_threads: int) -> None:
        torch.set_num_threads(1)
        self._network = network
        self._own = local()
        self._all: list[Gradients] = []
        self._pool = ThreadPoolExecutor(num_threads, initializer=self._begin)

    def _begin(self) -> None:
        torch.set_num_threads(1)  # OpenMP keeps it for each thread
        self._own.gradients = Gradients(self._network.all_groups())
        self._all.append(self._own.gradients)

    def learn(self, rows: Sequence[PackedLesson]) -> float:
        """Compute the gradients of the mean loss; returns that."""
        weight = sum(float(one.row.weights.sum()) for one in rows)
        for gradients in self._all:
            gradients.clear()
        longest_first = sorted(rows, key=lambda one: -one.num_tokens)
        scores = self._pool.map(lambda one: self._learn(one, 1 / weight), longest_first)
        return sum(one.loss for one in scores) / weight

    def _learn(self, packed: PackedLesson, scale: float) -> Scores:
        gradients: Gradients = self._own.gradients
        return self._network.run(packed.row, gradients, scale)

    def gradients(self) -> list[Tensor]:
        """The sums over all threads, in the order of `parameters`."""
        total = self._all[0]
        for other in self._all[1:]:
            for mine, theirs in zip(total.pairs.values(), other.pairs.values(), strict=True):
                for one, another in zip(mine, theirs, strict=True):
                    one += another
        scaled = [
            (of_a, of_b.mul_(group.scale)) for group in self._network.all_groups() for of_a, of_b in [total.of(group)]
        ]
        return [tensor for pair in scaled for tensor in pair]

    def judge(self, rows: Sequence[PackedLesson]) -> Verdict:
        """How many replies come out as they should."""
        exact: list[bool] = []
        kind: list[bool] = []
        loss = weight = 0.0
        for packed, scores in zip(rows, self._pool.map(lambda one: self._network.run(one.row), rows), strict=True):
            exact += [bool(scores.right[first:last].all()) for first, last in packed.replies]
            kind += [bool(scores.right[first]) for first, _ in packed.replies]
            loss, weight = loss + scores.loss, weight + float(packed.row.weights.sum())
        return Verdict(sum(exact) / len(exact), sum(kind) / len(kind), loss / weight)


def parameters(network: Network) -> list[Tensor]:
    """A and B of every group."""
    return [tensor for group in network.all_groups() for tensor in (group.a, group.b)]


def batches(packer: Packer, teacher: Teacher, tokens: int) -> Iterator[list[PackedLesson]]:
    """Endless lists of rows that have about so many tokens together."""
    while True:
        rows: list[PackedLesson] = []
        while sum(one.num_tokens for one in rows) < tokens:
            packed = packer.pack(teacher.lesson())
            if packed.num_tokens <= LONGEST_ROW:
                rows.append(packed)
        yield rows


def rate_at(run: Run, progress: Progress) -> float:
    """The learning rate."""
    share = min(1.0, max(progress.seconds / (60 * run.minutes), progress.step / run.max_steps))
    return (
        run.rate * min(1.0, (progress.step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)
    )


class Training:
    """One run."""

    def __init__(self, run: Run) -> None:
        torch.manual_seed(run.seed)
        self.run = run
        self.network = open_network(run.base, run.rank, run.alpha, getattr(torch, run.dtype))
        self.packer = open_packer(run.base)
        self.workers = Workers(self.network, run.threads)
        self.optimizer = AdamW(parameters(self.network), decay=0.01, clip=1.0)
        self.progress = Progress()
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.start_from is not None:
            read_adapter(self.network, run.start_from)
        if run.resume:
            self._load()
        self.network.merge()
        self._trained, self._held = divide(read_sketches())

    def evaluation_rows(self) -> dict[str, list[PackedLesson]]:
        """Held-out tools, and the trials written by hand."""
        teacher = Teacher(self._held, EVALUATION_SEED, Mix(invented=0), counts=(1, 2, 3, 4))
        held = [self.packer.pack(teacher.lesson(6)) for _ in range(6)]
        return {
            "held-out tools": [one for one in held if one.num_tokens <= LONGEST_ROW],
            "trials": [self.packer.pack(trial.lesson()) for trial in read_trials()],
        }

    def go(self, rows_to_judge: dict[str, list[PackedLesson]]) -> None:
        """Train to the end of the time; the rows are those of evaluations."""
        run, progress = self.run, self.progress
        teacher = Teacher(self._trained, 1_000_003 * run.seed + progress.step, counts=run.counts)
        source = batches(self.packer, teacher, run.tokens_per_step)
        last = evaluated = saved = time.monotonic()
        smoothed = 0.0
        while progress.seconds < 60 * run.minutes and progress.step < run.max_steps:
            rows = next(source)
            loss = self.workers.learn(rows)
            norm = self.optimizer.step(self.workers.gradients(), rate_at(run, progress))
            self.network.merge()
            smoothed = loss if not smoothed else 0.95 * smoothed + 0.05 * loss
            progress.step += 1
            progress.tokens += sum(one.num_tokens for one in rows)
            progress.targets += sum(len(one.row.targets) for one in rows)
            progress.conversations += sum(len(one.row.segments) - 1 for one in rows)
            now = time.monotonic()
            progress.seconds += now - last
            last = now
            if progress.step % 5 == 0:
                speed = progress.tokens / progress.seconds
                self.log(
                    f"step {progress.step} min {progress.seconds / 60:.1f} loss {smoothed:.4f} norm {norm:.2f} "
                    f"tokens {progress.tokens} ({speed:.0f}/s) conversations {progress.conversations}"
                )
            if now - evaluated > run.evaluate_every_s:
                self.evaluate(rows_to_judge)
                evaluated = saved = time.monotonic()
            elif now - saved > SAVE_EVERY_S:
                self.save()
                saved = now
        self.save()
        self.evaluate(rows_to_judge)

    def evaluate(self, rows: dict[str, list[PackedLesson]]) -> None:
        """Judge the adapter, and keep it."""
        verdicts = {name: self.workers.judge(some) for name, some in rows.items()}
        for name, verdict in verdicts.items():
            self.log(f"  {name}: exact {verdict.exact:.3f} kind {verdict.kind:.3f} loss {verdict.loss:.4f}")
        if self.progress.step == 0:
            return
        score = sum(one.exact for one in verdicts.values())
        if score >= self.progress.best:
            self.progress.best = score
            write_adapter(self.network, self.run.folder / "best")
        self.save()

    def log(self, line: str) -> None:
        """Print a line, and append it to the log."""
        print(line, flush=True)
        with (self.run.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self) -> None:
        """Write the checkpoint and the newest adapter."""
        write_adapter(self.network, self.run.folder / "newest")
        optimizer = self.optimizer
        content: dict[str, Any] = {
            "parameters": optimizer.parameters,
            "first": optimizer.first,
            "second": optimizer.second,
            "num_steps": optimizer.num_steps,
            "progress": asdict(self.progress),
        }
        torch.save(content, self.run.folder / "checkpoint.new")
        (self.run.folder / "checkpoint.new").replace(self.run.folder / "checkpoint.pt")

    def _load(self) -> None:
        content = torch.load(self.run.folder / "checkpoint.pt")
        optimizer = self.optimizer
        for kept, own in (
            ("parameters", optimizer.parameters),
            ("first", optimizer.first),
            ("second", optimizer.second),
        ):
            for tensor, stored in zip(own, content[kept], strict=True):
                tensor.copy_(stored)
        optimizer.num_steps = content["num_steps"]
        self.progress = Progress(**content["progress"])


def main() -> None:
    """Train with the options of the command line."""
    defaults = Run(Path(), Path(), 90)
    parser = argparse.ArgumentParser(description="Trains the adapter of the first model.")
    parser.add_argument("--base", type=Path, required=True, help="GGUF file of the base model")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=defaults.rate)
    parser.add_argument("--tokens-per-step", type=int, default=defaults.tokens_per_step)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=defaults.dtype)
    parser.add_argument("--max-steps", type=int, default=defaults.max_steps)
    parser.add_argument(
        "--evaluate-every", type=float, default=defaults.evaluate_every_s, help="seconds between evaluations"
    )
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of tools, to draw from")
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument("--start-from", type=Path, help="folder of an adapter to begin with")
    options = parser.parse_args()
    run = Run(
        options.base, options.run, options.minutes, options.seed, options.threads, options.tokens_per_step,
        options.rate, dtype=options.dtype,  max_steps=options.max_steps, evaluate_every_s=options.evaluate_every,
        counts=tuple(options.counts), resume=options.resume, start_from=options.start_from,
    )  # fmt: skip
    training = Training(run)
    training.go(training.evaluation_rows())


if __name__ == "__main__":
    main()
