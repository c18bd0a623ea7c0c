"""Training code on a tiny network."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from demo.batches import BatchSource, drill, pad
from demo.export import SHIPPED
from demo.grow import grow
from demo.model import DemoModel, Shape
from demo.muon import Muon, orthogonalise
from demo.train import Run, loss_of, rate_at, train

TINY = Shape(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
             head_dim=16)  # fmt: skip


def source(worker: int = 0) -> BatchSource:
    return BatchSource(Tokenizer.from_file(str(SHIPPED / "tokenizer.json")), 5, worker, 512, TINY.vocab_size)


def test_batches_of_one_seed_are_the_same_and_of_two_workers_are_not() -> None:
    first, again, other = source().pool(3, 0.5, 24), source().pool(3, 0.5, 24), source(1).pool(3, 0.5, 24)
    assert all(
        torch.equal(a.ids, b.ids) and torch.equal(a.positions, b.positions) for a, b in zip(first, again, strict=True)
    )
    assert any(a.ids.shape != b.ids.shape or not torch.equal(a.ids, b.ids) for a, b in zip(first, other, strict=False))


def test_positions_are_those_of_the_token_before_the_target() -> None:
    for batch in source().pool(1, 0.9, 24):
        assert torch.equal(batch.ids.flatten()[batch.positions + 1], batch.targets)
        assert (batch.weights > 0).all()


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    batch = pad([drill(rng, 300) for _ in range(8)], rng)
    network = DemoModel(TINY)
    optimiser = Muon(network, (0.02, 0.01))
    losses = []
    for _ in range(12):
        loss, _ = loss_of(network, batch)
        loss.backward()
        optimiser.step(1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    stack = torch.randn(3, 24, 48, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(stack).float())
    assert singular.min() > 0.5 and singular.max() < 1.4


def test_learning_rate_rises_stays_constant_and_falls_to_zero() -> None:
    assert rate_at(0, 0.0) < 0.1
    assert rate_at(1000, 0.6) == 1.0
    assert rate_at(1000, 0.99) < 0.05
    assert rate_at(1000, 1.0) == 0.0


@pytest.mark.long
@pytest.mark.parametrize("workers", [2])
def test_a_stopped_run_resumes_at_its_step(tmp_path: Path, workers: int) -> None:
    shutil.copy(SHIPPED / "tokenizer.json", tmp_path)
    few = Run(tmp_path, 10, workers=workers, tokens_per_batch=256, shape=TINY, compiled=False, max_steps=2)
    train(few)
    assert torch.load(tmp_path / "checkpoint.pt")["progress"][0] == 2
    train(
        Run(tmp_path, 10, workers=workers, tokens_per_batch=256, shape=TINY, compiled=False, max_steps=3, resume=True)
    )
    assert torch.load(tmp_path / "checkpoint.pt")["progress"][0] == 3


@pytest.mark.long
def test_new_layers_start_as_the_identity_and_learn(tmp_path: Path) -> None:
    """Weights, averages or momenta under a wrong name would lose what was learnt."""
    shutil.copy(SHIPPED / "tokenizer.json", tmp_path)
    run = Run(tmp_path, 10, workers=1, tokens_per_batch=256, shape=replace(TINY, num_hidden_layers=2), compiled=False,
              max_steps=2)  # fmt: skip
    train(run)
    before, larger = torch.load(tmp_path / "checkpoint.pt"), replace(TINY, num_hidden_layers=4)
    after = grow(before, [0, 1], larger)
    torch.save(after, tmp_path / "checkpoint.pt")
    ids = torch.arange(40).view(2, 20)
    for kind in ("weights", "average"):
        old, new = DemoModel(run.shape), DemoModel(larger)
        old.load_state_dict(before[kind])
        new.load_state_dict(after[kind])
        assert torch.equal(old(ids, torch.arange(40)), new(ids, torch.arange(40)))
    held = before["optimiser"]["momenta"]["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(after["optimiser"]["momenta"]["model.layers.2.mlp.up_proj.weight"], held)
    assert not after["optimiser"]["momenta"]["model.layers.3.mlp.up_proj.weight"].any()
    train(replace(run, shape=larger, resume=True, max_steps=4))
    learnt = torch.load(tmp_path / "checkpoint.pt")
    assert learnt["progress"][0] == 4
    assert all(learnt["weights"][f"model.layers.{new}.mlp.down_proj.weight"].any() for new in (1, 3))
