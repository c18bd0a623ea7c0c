"""The compiled kernels: the numbers that torch computes, and the same bits whoever else is in the batch.

That whole replies equal `generate()` is shown in `test_runner.py`, which runs on these kernels where the CPU has what
they need.
"""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from server.model.attention.cpu import KvPool
from server.model.batch import Batch, Draw, Row
from server.model.cpu.library import open_library
from server.model.cpu.native import NativeBackbone, NativeHead, NativePool
from server.model.layers.decoder import CompactBackbone
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.runner import Runner
from server.model.sampling.sampler import NOT_FINITE
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.drive import GREEDY, prompt_of

CPU = Path("/proc/cpuinfo")
SUITED = CPU.exists() and "avx512_bf16" in CPU.read_text()
needs_kernels = pytest.mark.skipif(not SUITED, reason="this CPU lacks AVX-512 with bfloat16 products")
DENSE: tuple[Kind, ...] = ("llama", "qwen2", "qwen3")
DRAW = Draw(GREEDY, 0, [], [])
DTYPES = (torch.bfloat16, torch.float32)
IDS = [token % 1000 for token in prompt_of(400, 7)]


@cache
def checkpoint(kind: Kind) -> Path:
    """Three layers of sizes that the kernels take, short rows and long ones; of other kinds the tests' own."""
    if kind not in DENSE:
        return tiny_checkpoint(kind)
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    hidden, inner = (576, 160) if kind == "llama" else (96, 544)  # rows up to 512 are laid out in panels
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 3,
        "vocab_size": 1003,
        "head_dim": 32,
    }
    config = getattr(transformers, f"{name}Config")(**sizes, num_attention_heads=6, num_key_value_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        built = getattr(transformers, f"{name}ForCausalLM")(config)
        for weight_name, weight in built.named_parameters():
            if "norm" in weight_name or "bias" in weight_name:
                torch.nn.init.normal_(weight, 1.0 if "norm" in weight_name else 0.0, 0.3)
            else:
                torch.nn.init.normal_(weight, 0.0, hidden**-0.5)
    folder = Path(tempfile.mkdtemp(prefix="toolwire-native-"))
    built.save_pretrained(folder)
    atexit.register(shutil.rmtree, folder)
    return folder


def model(kind: Kind, dtype: str, kernels: bool = True) -> LoadedModel:
    settings = EngineSettings(device="cpu", dtype=dtype, cpu_kernels=kernels, threads=2)  # type: ignore[arg-type]
    return load(checkpoint(kind), settings, lambda fraction: None)


def poisoned(loaded: LoadedModel, block_size: int, num_blocks: int) -> Runner:
    """With NaN in every place of the cache, as a broken sequence leaves it."""
    runner = Runner(loaded, num_blocks, block_size)
    for part in (*runner.pool.keys, *runner.pool.values):
        part.fill_(torch.nan)
    return runner


def logits(runner: Runner, *rows: Row) -> torch.Tensor:
    """As they are drawn from, whether the head is the kernels' or torch's."""
    ticket = runner.launch(Batch(rows))
    if ticket.logits is not None:
        return ticket.logits.float()
    assert isinstance(runner._loaded.head, NativeHead)
    return runner._loaded.head(ticket.hidden).clone()


def row(ids: Sequence[int], start: int, blocks: Sequence[int]) -> Row:
    return Row(ids, start, blocks, len(ids), DRAW)


def mixed(loaded: LoadedModel, block_size: int) -> torch.Tensor:
    """A prompt; a decode step beside a longer prompt; drafts beside decode."""
    each = -(-200 // block_size)
    runner = poisoned(loaded, block_size, 2 * each)
    mine, other = range(2 * each - 1, each - 1, -1), range(each)
    steps = (
        logits(runner, row(IDS[:77], 0, mine)),
        logits(runner, row(IDS[77:78], 77, mine), row(IDS[200:341], 0, other)),
        logits(runner, row(IDS[341:342], 141, other), row(IDS[78:83], 78, mine)),
    )
    return torch.cat(steps)


def test_the_kernels_are_there_wherever_the_cpu_can_run_them() -> None:
    """Left out of the installation without a word, they would cost half the speed."""
    assert (open_library() is not None) == SUITED


@needs_kernels
@pytest.mark.parametrize("block_size", [2, 16, 20, 32, 48])
@pytest.mark.parametrize("kind", DENSE)
def test_logits_are_those_that_torch_computes(kind: Kind, block_size: int) -> None:
    """Biases, norms of heads, and blocks that are no multiple of a register, or shorter than one."""
    ours, theirs = model(kind, "float32"), model(kind, "float32", kernels=False)
    assert isinstance(ours.backbone, NativeBackbone) and isinstance(theirs.backbone, CompactBackbone)
    torch.testing.assert_close(mixed(ours, block_size), mixed(theirs, block_size), atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("kind", DENSE)
def test_bfloat16_logits_are_no_further_from_the_true_ones_than_those_of_torch(kind: Kind) -> None:
    """Sums, norms and the residual stream stay in float32 between products."""
    exact = mixed(model(kind, "float32", kernels=False), 32)
    # The same weights, rounded once: what is left is the rounding of the computing.
    ours, theirs = (mixed(model(kind, "bfloat16", kernels), 32) for kernels in (True, False))
    assert (ours - exact).abs().mean() <= 1.05 * (theirs - exact).abs().mean()
    torch.testing.assert_close(ours, theirs, atol=0.25, rtol=0.05)


@needs_kernels
@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_5"])
def test_other_models_attend_with_the_kernels(kind: Kind) -> None:
    """Only attention is theirs where a layer is not dense; a cache of theirs under torch's attention would be noise."""
    results = []
    for kernels in (True, False):
        runner = Runner(model(kind, "float32", kernels), 16, 16, num_slots=2)
        assert isinstance(runner.pool, NativePool) == kernels
        first = Row(IDS[:70], 0, range(8), 1, DRAW, 0)
        rows = Row(IDS[70:71], 70, range(8), 1, DRAW, 0), Row(IDS[100:160], 0, range(8, 16), 1, DRAW, 1)
        results.append(torch.cat((logits(runner, first), logits(runner, *rows))))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_not_a_bit_depends_on_batch_mates_chunks_or_threads(dtype: str) -> None:
    """A greedy or seeded reply must not change because somebody else has arrived, or its head was cached."""
    loaded = model("qwen3", dtype)
    blocks = range(10)
    alone = poisoned(loaded, 16, 200)
    whole = logits(alone, row(IDS[:150], 0, blocks))
    assert whole.isfinite().all()

    chunked = poisoned(loaded, 16, 200)
    cuts = (0, 1, 2, 7, 40, 41, 57, 58, 59, 149, 150)
    pieces = [logits(chunked, row(IDS[low:high], low, blocks)) for low, high in pairwise(cuts)]
    assert torch.equal(torch.cat(pieces), whole)

    crowded = poisoned(loaded, 16, 200)
    for count in range(1, 20):
        mates = [row(IDS[i : i + 40 + i], 0, range(10 * i, 10 * i + 6)) for i in range(1, count)]
        assert torch.equal(logits(crowded, row(IDS[:150], 0, blocks), *mates)[:150], whole)
        last = logits(
            crowded, row(IDS[149:150], 149, blocks), *(row([5], 40 + i, mates[i].blocks) for i in range(count - 1))
        )
        assert torch.equal(last[0], whole[149])

    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(logits(poisoned(loaded, 16, 200), row(IDS[:150], 0, blocks)), whole)
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_a_broken_sequence_spoils_its_own_logits_alone() -> None:
    loaded = model("qwen3", "bfloat16")
    runner = poisoned(loaded, 16, 20)
    fine = logits(runner, row(IDS[:50], 0, range(4)))
    both = logits(runner, row(IDS[50:51], 50, range(4)), row(IDS[:1], 30, range(10, 14)))
    assert fine.isfinite().all() and both[0].isfinite().all() and both[1].isnan().all()


@needs_kernels
@pytest.mark.parametrize("size", [64, 1024], ids=["panels", "rows"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_likeliest_ids_are_those_of_the_logits(dtype: torch.dtype, size: int) -> None:
    """The lowest of equal ones, wherever they stand and whichever thread meets them; none where a number is broken."""
    weights = torch.randint(-2, 3, (1_003, size)).to(dtype)  # small whole numbers: sums are exact, and many are equal
    weights[1_002] = weights[7]
    head, hidden = head_of(weights), torch.randint(-1, 2, (21, size)).to(dtype)
    hidden[3] = weights[7]  # two ids tie, far apart
    assert torch.equal(head(hidden), hidden.float() @ weights.float().T)
    expected = head(hidden).argmax(-1)
    assert expected[3] == 7 and torch.equal(head.greedy_ids(hidden), expected)
    hidden[5, 0], hidden[20, 1] = torch.nan, torch.inf
    broken = head.greedy_ids(hidden)
    assert broken[5] == broken[20] == NOT_FINITE
    others = [line for line in range(21) if line not in (5, 20)]
    assert torch.equal(broken[others], expected[others])
    all_equal_below_zero = head_of(torch.ones(1_003, size, dtype=dtype)).greedy_ids(-torch.ones(2, size, dtype=dtype))
    assert all_equal_below_zero.tolist() == [0, 0]


def head_of(weights: torch.Tensor) -> NativeHead:
    linear = nn.Linear(*weights.mT.shape, bias=False, dtype=weights.dtype)
    linear.weight.data = weights.clone()
    return NativeHead(linear)


@needs_kernels
def test_a_table_that_ends_too_early_is_never_read_beyond() -> None:
    runner = Runner(model("qwen3", "float32"), 4, 16)
    for blocks in ([0], [0, 4], [0, -1]):
        with pytest.raises(AssertionError):
            runner.launch(Batch((row(IDS[:20], 0, blocks),)))


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"cpu_kernels": False}])
def test_what_the_kernels_do_not_compute_is_left_to_torch(change: dict[str, object]) -> None:
    settings = EngineSettings(device="cpu", **change)  # type: ignore[arg-type]
    loaded = load(tiny_checkpoint("qwen3"), settings, lambda fraction: None)
    assert isinstance(loaded.backbone, CompactBackbone)
    assert type(Runner(loaded, 4, 16).pool) is KvPool
