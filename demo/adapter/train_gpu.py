"""Training of the adapter on a GPU, with lessons made beforehand (`lessons.py`), for a number of seconds.

    python -m demo.adapter.train_gpu --base FILE.gguf --lessons FOLDER --run FOLDER --seconds 120

The seconds are those of the whole program, from its start to the last file. The run's folder receives `newest/` and
`best/` (peft's format) at each evaluation and at the end, and `log.txt`. Several runs can share a GPU.
"""

import argparse
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.adapter.base import open_network
from demo.adapter.batched import BatchedNetwork, block_attention, masked_attention
from demo.adapter.network import Gradients
from demo.adapter.optimizer import AdamW
from demo.adapter.peft_format import read_adapter, write_adapter
from demo.adapter.pointwise import Pointwise
from demo.adapter.rows import Rows, Weighting, fill_rows
from demo.adapter.stored import CALLS, read_lessons

STARTED = time.monotonic()
WARM_UP_STEPS = 20
LAST_RATE = 0.01  # of the highest
LOG_EVERY_STEPS = 10
RESERVE_S = 2.0  # for the last evaluation and the last files, beside the time that an evaluation took
TOLERANCE = 0.02  # by which losses of different kernels may differ
DEFAULT_WEIGHTING = Weighting()


@dataclass(frozen=True, slots=True)
class Run:
    """Settings of a run."""

    base: Path
    lessons: tuple[Path, ...]
    folder: Path
    seconds: float
    device: str = "cuda"
    dtype: str = "bfloat16"
    seed: int = 0
    rate: float = 1.5e-3
    rank: int = 16
    alpha: float = 32
    decay: float = 0.01
    length: int = 1_024
    rows_at_once: int = 32
    passes: int = 1
    weighting: Weighting = DEFAULT_WEIGHTING
    share: float = 1.0
    held_share: float = 1.0
    start_from: Path | None = None
    compile_s: float = 45
    evaluate_every_s: float = 20
    max_steps: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares of replies whose most probable tokens are right: all of a reply that calls; the first of one in words."""

    calls: float
    words: float
    loss: float


class Training:
    """One run."""

    def __init__(self, run: Run) -> None:
        torch.manual_seed(run.seed)
        self.run, self.device = run, torch.device(run.device)
        run.folder.mkdir(parents=True, exist_ok=True)
        if self.device.type == "cuda":
            torch.set_num_threads(4)
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        network = open_network(run.base, run.rank, run.alpha, getattr(torch, run.dtype), BatchedNetwork)
        assert isinstance(network, BatchedNetwork)
        self.network = network
        if run.start_from is not None:
            read_adapter(network, run.start_from)
        network.move(self.device)
        self.log(f"weights on {self.device} after {elapsed():.1f} s")
        self.rows = self._rows([path for folder in run.lessons for path in sorted(folder.glob("lessons*.xz"))])
        self.held = {path.name.split(".")[0]: self._rows([path]) for path in sorted(run.lessons[0].glob("held*.xz"))}
        self._totals = self.rows.totals.cpu()
        self.log(f"{len(self.rows)} rows of {run.length} after {elapsed():.1f} s")
        self.gradients = Gradients(network.all_groups())
        parameters = [tensor for group in network.all_groups() for tensor in (group.a, group.b)]
        self.optimizer = AdamW(parameters, decay=run.decay, clip=1.0)
        self.order = np.random.default_rng(run.seed + 1)
        self.step = self.tokens = 0
        self.best = -1.0
        self.evaluation_s = 0.0

    def _rows(self, paths: list[Path]) -> Rows:
        if not paths:
            folders = ", ".join(map(str, self.run.lessons))
            raise SystemExit(f"{folders} holds no lessons*.xz; `python -m demo.adapter.lessons` makes them")
        lessons = [lesson for path in paths for lesson in read_lessons(path)]
        share = self.run.held_share if paths[0].name.startswith("held") else self.run.share
        lessons = lessons[: max(1, int(len(lessons) * share))]
        order = np.random.default_rng(self.run.seed)
        return fill_rows(lessons, self.run.length, self.run.weighting, order).to(self.device)

    def choose_kernels(self) -> None:
        """Take the fastest kernels that work here and agree with the plain ones; says in the log what it tried."""
        if self.device.type != "cuda" or self.run.compile_s <= 0:
            return
        network, end = self.network, time.monotonic() + self.run.compile_s
        best = self._measure()
        reference, _ = best
        self.log(f"  plain kernels: {best[1]:.3f} s for {self.run.rows_at_once} rows, loss {reference:.4f}")
        compiled = Pointwise.compiled()
        for name, pointwise, attention in (
            ("compiled", compiled, masked_attention),
            ("compiled, block attention", compiled, block_attention),
        ):
            before = network.pointwise, network.attention
            network.pointwise, network.attention = pointwise, attention
            try:
                with alarm(end - time.monotonic()):
                    loss, seconds = self._measure()
            except Exception as error:  # noqa: BLE001 - a compiler fails in any way; it is logged
                self.log(f"  {name}: {type(error).__name__}: {str(error)[:600]}")
                network.pointwise, network.attention = before
                continue
            self.log(f"  {name}: {seconds:.3f} s, loss {loss:.4f}, after {elapsed():.1f} s")
            if abs(loss - reference) > TOLERANCE * abs(reference) or seconds > best[1]:
                network.pointwise, network.attention = before
            else:
                best = (loss, seconds)
        torch.cuda.empty_cache()

    def _measure(self) -> tuple[float, float]:
        """The loss of the first rows, and the seconds of one pass when everything is compiled."""
        chosen = torch.arange(min(self.run.rows_at_once, len(self.rows)), device=self.device)
        weight = float(self._totals[: len(chosen)].sum())
        for _ in range(2):
            self.gradients.clear()
            torch.cuda.synchronize()
            begin = time.monotonic()
            loss = self.network.run_batch(self.rows.batch(chosen), self.gradients, 1 / weight).loss / weight
            torch.cuda.synchronize()
            seconds = time.monotonic() - begin
        return loss, seconds

    def _chosen(self) -> Iterator[Tensor]:
        """Endless row numbers of one pass each, every row once an epoch."""
        size = min(self.run.rows_at_once, len(self.rows))
        while True:
            shuffled = torch.from_numpy(self.order.permutation(len(self.rows)))
            yield from shuffled[: len(shuffled) // size * size].split(size)

    def go(self) -> None:
        """Train to the end of the time."""
        run, network = self.run, self.network
        self.choose_kernels()
        self.evaluate()
        begin = evaluated = elapsed()
        source = self._chosen()
        smoothed = 0.0
        while self.step < run.max_steps and elapsed() < run.seconds - RESERVE_S - 1.5 * self.evaluation_s:
            chosen = [next(source) for _ in range(run.passes)]
            weight = float(sum(self._totals[one].sum() for one in chosen))
            self.gradients.clear()
            loss = 0.0
            for one in chosen:
                batch = self.rows.batch(one.to(self.device))
                loss += network.run_batch(batch, self.gradients, 1 / weight).loss / weight
            share = (elapsed() - begin) / max(1e-6, run.seconds - RESERVE_S - 1.5 * self.evaluation_s - begin)
            rate = self._rate(max(share, self.step / run.max_steps))
            norm = self.optimizer.step(self._summed(), rate)
            network.prepare()
            self.step += 1
            self.tokens += sum(one.numel() for one in chosen) * run.length
            smoothed = loss if not smoothed else 0.95 * smoothed + 0.05 * loss
            if self.step % LOG_EVERY_STEPS == 0 or self.step < 4:
                speed = self.tokens / (elapsed() - begin)
                self.log(
                    f"step {self.step} at {elapsed():.1f} s loss {smoothed:.4f} norm {norm:.2f} rate {rate:.2e} "
                    f"tokens {self.tokens} ({speed:.0f}/s, {self.tokens / self.rows.ids.numel():.2f} epochs)"
                )
            if elapsed() - evaluated > run.evaluate_every_s:
                self.evaluate()
                evaluated = elapsed()
        self.evaluate()
        self.log(f"{self.step} steps, {self.tokens} tokens; ended after {elapsed():.1f} s, best {self.best:.4f}")

    def _rate(self, share: float) -> float:
        cosine = (1 + math.cos(math.pi * min(1.0, share))) / 2
        return self.run.rate * min(1.0, (self.step + 1) / WARM_UP_STEPS) * (LAST_RATE + (1 - LAST_RATE) * cosine)

    def _summed(self) -> list[Tensor]:
        pairs = [(group.scale, *self.gradients.of(group)) for group in self.network.all_groups()]
        return [tensor for scale, of_a, of_b in pairs for tensor in (of_a, of_b.mul_(scale))]

    def judge(self, rows: Rows) -> Verdict:
        """How many replies come out as they should, each token behind the right ones."""
        device = self.device
        right = torch.ones(len(rows.kinds), device=device)
        first = torch.full((len(rows.kinds),), -1.0, device=device)
        loss = weight = 0.0
        size = self.run.rows_at_once
        for start in range(0, len(rows), size):
            chosen = torch.arange(start, start + size, device=device) % len(rows)  # one shape, so that none recompiles
            batch = rows.batch(chosen)
            scores = self.network.run_batch(batch)
            loss, weight = loss + scores.loss, weight + float(batch.weights.sum())
            replies, hits = rows.replies_of(chosen, batch), scores.right.float()
            right.scatter_reduce_(0, replies, hits, "amin")
            starts = torch.ones_like(replies, dtype=torch.bool)
            starts[1:] = replies[1:] != replies[:-1]
            first[replies[starts]] = hits[starts]
        calls = rows.kinds == CALLS
        in_calls, in_words = (float(one.mean()) if len(one) else 1.0 for one in (right[calls], first[~calls]))
        return Verdict(in_calls, in_words, loss / weight)

    def evaluate(self) -> None:
        """Judge the adapter, and keep it."""
        begin = elapsed()
        score = 0.0
        for name, rows in self.held.items():
            verdict = self.judge(rows)
            self.log(f"  {name}: calls {verdict.calls:.3f} words {verdict.words:.3f} loss {verdict.loss:.4f}")
            score += (verdict.calls + verdict.words) / (2 * len(self.held))
        if self.step and score >= self.best:
            self.best = score
            self._keep("best")
        if self.step:
            self._keep("newest")
        self.evaluation_s = elapsed() - begin
        self.log(f"  score {score:.4f}, best {self.best:.4f}; {self.evaluation_s:.1f} s{self._memory()}")

    def _keep(self, name: str) -> None:
        new, old = self.run.folder / f"{name}.new", self.run.folder / name
        write_adapter(self.network, new)
        old.mkdir(exist_ok=True)
        for path in new.iterdir():
            path.replace(old / path.name)
        shutil.rmtree(new)

    def _memory(self) -> str:
        return f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if self.device.type == "cuda" else ""

    def log(self, line: str) -> None:
        """Print a line, and append it to the log."""
        print(f"[{self.run.folder.name}] {line}", flush=True)
        with (self.run.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def elapsed() -> float:
    """Seconds since the program's start."""
    return time.monotonic() - STARTED


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after some seconds."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Train with the options of the command line."""
    defaults = Run(Path(), (), Path(), 0)
    weighting = defaults.weighting
    parser = argparse.ArgumentParser(description="Trains the adapter of the first model on a GPU.")
    add = parser.add_argument
    add("--base", type=Path, required=True, help="GGUF file of the base model")
    add("--lessons", type=Path, nargs="+", required=True, help="folders of lessons; the first has what is evaluated on")
    add("--run", type=Path, required=True, help="folder of the run")
    add("--seconds", type=float, required=True, help="of the whole program")
    add("--device", default=defaults.device)
    add("--dtype", choices=("bfloat16", "float32"), default=defaults.dtype)
    add("--seed", type=int, default=0)
    add("--rate", type=float, default=defaults.rate, help="highest learning rate")
    add("--decay", type=float, default=defaults.decay, help="weight decay")
    add("--length", type=int, default=defaults.length, help="tokens of a row")
    add("--rows-at-once", type=int, default=defaults.rows_at_once, help="rows that are in memory together")
    add("--passes", type=int, default=defaults.passes, help="times as many rows make a step")
    add("--calls-weight", type=float, default=weighting.first_of_calls, help="of the first token of calls")
    add("--words-weight", type=float, default=weighting.first_of_words, help="of the first token of words")
    add("--end-weight", type=float, default=weighting.end, help="of what follows a call")
    add("--share", type=float, default=1.0, help="of the lessons to train on")
    add("--held-share", type=float, default=1.0, help="of what is evaluated on")
    add("--start-from", type=Path, help="folder of an adapter to begin with")
    add("--compile", type=float, default=defaults.compile_s, help="seconds at most to try compiled kernels; 0: none")
    add("--evaluate-every", type=float, default=defaults.evaluate_every_s, help="seconds between evaluations")
    add("--max-steps", type=int, default=defaults.max_steps)
    given = parser.parse_args()
    weighting = Weighting(given.calls_weight, given.words_weight, given.end_weight)
    run = Run(
        given.base, tuple(given.lessons), given.run, given.seconds, given.device, given.dtype, given.seed, given.rate,
        decay=given.decay, length=given.length, rows_at_once=given.rows_at_once, passes=given.passes,
        weighting=weighting, share=given.share, held_share=given.held_share,
        start_from=given.start_from, compile_s=given.compile, evaluate_every_s=given.evaluate_every,
        max_steps=given.max_steps,
    )  # fmt: skip
    Training(run).go()


if __name__ == "__main__":
    main()
