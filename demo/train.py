"""Training in several worker processes of one thread each; can be stopped and resumed.

    python -m demo.train --run /tmp/run --minutes 100 --seed 0

The learning rate rises, stays constant, and falls to zero at the end (progress is time spent / time allowed); the
exported weights are a moving average. A checkpoint is written every two minutes; `--resume` continues from it.
"""

import argparse
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from demo.batches import BatchSource, TrainingBatch
from demo.model import DemoModel, Shape
from demo.muon import Muon

WARM_UP_STEPS = 60
DECAY_FROM = 0.7  # share of the run after which the learning rate falls linearly to zero
AVERAGE = 0.995


@dataclass(frozen=True, slots=True)
class Run:
    """Settings of a training run."""

    folder: Path
    minutes: float
    seed: int = 0
    workers: int = 2
    tokens_per_batch: int = 3072
    matrix_rate: float = 0.02
    other_rate: float = 0.002
    max_steps: int = 1_000_000
    resume: bool = False
    compiled: bool = True
    shape: Shape = field(default_factory=Shape)


@dataclass(slots=True)
class Progress:
    """Progress of a run; saved with every checkpoint."""

    step: int = 0
    pool: int = 0
    seconds: float = 0.0
    tokens: int = 0


def loss_of(network: DemoModel, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """Return the weighted loss to minimise, and the mean loss on the replies."""
    scores = network(batch.ids, batch.positions, torch.bfloat16)
    losses = F.cross_entropy(scores, batch.targets, reduction="none")
    answers = batch.weights == 1.0
    plain = losses[answers].mean() if bool(answers.any()) else losses.mean()
    return (losses * batch.weights).sum() / batch.weights.sum(), plain.detach()


def rate_at(step: int, progress: float) -> float:
    """Return the factor of the learning rate."""
    rising = min(1.0, (step + 1) / WARM_UP_STEPS)
    return rising * min(1.0, max(0.0, (1 - progress) / (1 - DECAY_FROM)))


def work(rank: int, run: Run) -> None:
    """Run one worker: the same weights as all others, its own conversations."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    parent = os.getppid()
    dist.init_process_group("gloo", f"file://{run.folder.resolve()}/rendezvous", rank=rank, world_size=run.workers)
    tokenizer = Tokenizer.from_file(str(run.folder / "tokenizer.json"))
    network = DemoModel(run.shape)
    optimiser = Muon(network, (run.matrix_rate, run.other_rate), rank, run.workers)
    average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    state = Progress()
    if run.resume:
        state = resume(run, network, optimiser, average)
    if run.compiled:
        network.compile_pieces()
    source = BatchSource(tokenizer, run.seed, rank, run.tokens_per_batch, run.shape.vocab_size)
    batches: list[TrainingBatch] = []
    allowed = run.minutes * 60
    last_saved = last_seen = time.monotonic()
    smoothed = 0.0
    while state.seconds < allowed and state.step < run.max_steps and os.getppid() == parent:
        progress = max(state.seconds / allowed, state.step / run.max_steps)
        if not batches:
            batches = source.pool(state.pool, progress)
            state.pool += 1
        batch = batches.pop()
        loss, plain = loss_of(network, batch)
        torch.autograd.backward(loss)
        share_gradients(network, run.workers)
        optimiser.step(rate_at(state.step, progress))
        update_average(average, network, state.step)
        smoothed = float(plain) if not state.step else 0.97 * smoothed + 0.03 * float(plain)
        state.step += 1
        state.tokens += batch.ids.numel() * run.workers
        now = time.monotonic()
        state.seconds = agree(state.seconds + now - last_seen, run.workers)
        last_seen = now
        if rank == 0 and state.step % 20 == 0:
            print_progress(state, smoothed)
        if rank == 0 and now - last_saved > 120:
            save(run, network, optimiser, average, state)
            last_saved = now
    if rank == 0:
        save(run, network, optimiser, average, state)
    dist.destroy_process_group()


def print_progress(state: Progress, loss: float) -> None:
    """Print one line of the log."""
    rate = state.tokens / state.seconds
    minutes = state.seconds / 60
    line = f"step {state.step} min {minutes:.1f} loss {loss:.4f} tokens {state.tokens} ({rate:.0f}/s)"
    print(line, flush=True)


def share_gradients(network: DemoModel, workers: int) -> None:
    """Average the gradients over the workers in one all-reduce."""
    if workers == 1:
        return
    parameters = [p for p in network.parameters() if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= workers
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def agree(seconds: float, workers: int) -> float:
    """Return the first worker's clock, so that all stop at the same step."""
    if workers == 1:
        return seconds
    shared = torch.tensor([seconds], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def update_average(average: dict[str, Tensor], network: DemoModel, step: int) -> None:
    """Update the moving average of the weights."""
    keep = min(AVERAGE, (step + 1) / (step + 10))
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            average[name].lerp_(tensor, 1 - keep)


def save(run: Run, network: DemoModel, optimiser: Muon, average: dict[str, Tensor], state: Progress) -> None:
    """Write the checkpoint atomically."""
    content = {
        "weights": network.state_dict(), "optimiser": optimiser.state(), "average": average,
        "progress": (state.step, state.pool, state.seconds, state.tokens),
    }  # fmt: skip
    torch.save(content, run.folder / "checkpoint.new")
    (run.folder / "checkpoint.new").replace(run.folder / "checkpoint.pt")


def resume(run: Run, network: DemoModel, optimiser: Muon, average: dict[str, Tensor]) -> Progress:
    """Load the checkpoint into network, optimiser and average."""
    content = torch.load(run.folder / "checkpoint.pt")
    network.load_state_dict(content["weights"])
    optimiser.load(content["optimiser"])
    average.update(content["average"])
    step, pool, seconds, tokens = content["progress"]
    return Progress(step, pool, seconds, tokens)


def train(run: Run) -> None:
    """Run to the end; the folder must contain tokenizer.json and receives checkpoint.pt."""
    assert not math.isnan(run.minutes)
    (run.folder / "rendezvous").unlink(missing_ok=True)  # left by an earlier run
    spawn(work, args=(run,), nprocs=run.workers)


def main() -> None:
    """Train with the options of the command line."""
    parser = argparse.ArgumentParser(description="Trains the demonstration model.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    train(Run(options.run, options.minutes, options.seed, options.workers, resume=options.resume))


if __name__ == "__main__":
    main()
