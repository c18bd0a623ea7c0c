"""Keys and values kept as bytes on each instruction set of this CPU: close to elements, equal bits in any batch."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from server.config_json import read_config
from server.errors import CannotStart
from server.memory.budget import Demand
from server.memory.shape import read_shape
from server.model.cpu.native import NativePool
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.cpu.isas import TESTED_ISAS
from tests.model.cpu.test_native import IDS, checkpoint, logits, mixed, poisoned, row
from tests.model.drive import BLOCK_SIZE, Stream, run


@pytest.fixture(params=TESTED_ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """The best instruction set of this CPU; with `--long` each."""
    return str(request.param)


def model(kind: Kind, dtype: str, isa: str) -> LoadedModel:
    settings = EngineSettings(device="cpu", dtype=dtype, cpu_isa=isa, threads=2, kv_dtype="int8")  # type: ignore[arg-type]
    return load(checkpoint(kind), settings, lambda fraction: None)


@pytest.mark.parametrize("block_size", [2, 20, 32])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_logits_stay_close_to_those_of_elements(isa: str, kind: Kind, block_size: int) -> None:
    """A scale of another token or head, or a byte in another place, would make other logits."""
    loaded = model(kind, "float32", isa)
    found, expected = (mixed(one, block_size) for one in (loaded, replace(loaded, kv_in_bytes=False)))
    assert (found - expected).abs().mean() < 0.03 * expected.abs().mean()
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_bit_identical_whatever_the_batch_or_chunks(isa: str, dtype: str) -> None:
    """A reply must not change with other requests, a cached prefix, or copies of a block."""
    loaded, blocks = model("qwen3", dtype, isa), range(10)
    whole = logits(poisoned(loaded, 16, 60), row(IDS[:150], 0, blocks))
    assert whole.isfinite().all()
    chunked = poisoned(loaded, 16, 60)
    cuts = (0, 1, 2, 7, 40, 57, 58, 149, 150)
    parts = [logits(chunked, row(IDS[low:high], low, blocks)) for low, high in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    shared = poisoned(loaded, 16, 60)
    mates = [row(IDS[at : at + 30 + at], 0, range(10 * at, 10 * at + 4)) for at in range(1, 6)]
    assert torch.equal(logits(shared, row(IDS[:150], 0, blocks), *mates)[:150], whole)
    chunked.copy_block(blocks[8], 50)  # as for a prompt that shares the beginning of a block
    assert torch.equal(logits(chunked, row(IDS[140:150], 140, [*blocks[:8], 50, 51])), whole[140:])


def test_a_broken_sequence_stays_broken_and_alone(isa: str) -> None:
    """Bytes have no NaN: lost in rounding, a broken sequence would be sampled from."""
    loaded = model("qwen3", "float32", isa)
    runner = poisoned(loaded, 16, 16)
    expected = logits(runner, row(IDS[:20], 0, range(2)))
    found = logits(runner, row(IDS[:20], 0, range(2)), row([7], 20, range(8, 10)))  # behind tokens that are NaN
    assert torch.equal(found[:20], expected) and found[20].isnan().all()


def test_greedy_replies_are_the_same_with_drafts(isa: str) -> None:
    """Drafts that are not taken leave their keys behind, which the next tokens overwrite."""
    loaded = model("qwen3", "bfloat16", isa)
    plain, drafted = Stream(IDS[:50], range(8)), Stream(IDS[:50], range(8, 16))
    run(Runner(loaded, 16, BLOCK_SIZE), [plain])
    drafted.drafter = lambda written: [*plain.written[len(written) : len(written) + 2], 5]
    run(Runner(loaded, 16, BLOCK_SIZE), [drafted])
    assert drafted.written == plain.written


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_5"])
def test_it_takes_the_memory_that_is_planned(isa: str, kind: Kind) -> None:
    shape = read_shape(read_config(checkpoint(kind)))
    settings = EngineSettings(device="cpu", cpu_isa=isa, dtype="bfloat16", kv_dtype="int8")  # type: ignore[arg-type]
    pool = Runner(load(checkpoint(kind), settings, lambda fraction: None), 3, 16, num_slots=1).pool
    assert isinstance(pool, NativePool)
    planned, plain = (Demand("bfloat16", kv_dtype=kind).token_bytes(shape) for kind in ("int8", "auto"))
    assert pool.shape.bytes_per_block == 16 * planned == 16 * plain * (shape.head_dim + 4) // (2 * shape.head_dim)


def test_what_does_not_read_bytes_refuses_them(isa: str) -> None:
    folder = tiny_checkpoint("qwen3")
    with pytest.raises(CannotStart, match="--kv-dtype int8 takes the compiled CPU kernels"):
        load(folder, EngineSettings(device="cpu", cpu_isa="torch", kv_dtype="int8"), lambda fraction: None)
    settings = EngineSettings(device="cpu", cpu_isa=isa, dtype="float16", kv_dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(CannotStart, match=r"do not compute heads of \d+ in torch\.float16"):
        Runner(load(folder, settings, lambda fraction: None), 4, BLOCK_SIZE)
