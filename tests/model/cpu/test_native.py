"""Compiled CPU kernels of every instruction set of this CPU: torch's results, bit-identical whatever else is computed.

`test_runner.py` shows that whole replies equal `generate()`; it runs on the kernels of the best set.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from server.model.attention.cpu import KvPool
from server.model.batch import Batch, Row, RowSampling
from server.model.cpu.layer_reader import supports_decoder
from server.model.cpu.library import available_isas, open_library
from server.model.cpu.native import NativeBackbone, NativeHead, NativePool
from server.model.layers.decoder import CompactBackbone, TransformersBackbone
from server.model.loading import pretrained
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.runner import Runner
from server.model.sampling.sampler import NOT_FINITE
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.cpu.isas import TESTED_ISAS
from tests.model.drive import GREEDY, prompt_of

CPU = Path("/proc/cpuinfo")
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}
FLAGS = {
    "amx": {*AVX512, "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16"},
    "avx512_bf16": {*AVX512, "avx512_bf16", "avx512_vnni"},
    "avx512_vnni": {*AVX512, "avx512_vnni"},
    "avx512": AVX512,
    "avx2": {"avx2", "fma", "f16c"},
    "neon_bf16": {"asimd", "asimddp", "bf16"},
    "neon": {"asimd"},
}


@pytest.fixture(params=TESTED_ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """The best instruction set of this CPU; with `--long` each."""
    return str(request.param)


DENSE: tuple[Kind, ...] = ("llama", "qwen2", "qwen3")
OTHERS: tuple[Kind, ...] = ("qwen3_moe", "qwen3_next", "qwen3_5", "qwen3_5_moe")  # with experts or recurrent states
SAMPLING = RowSampling(GREEDY, 0, [], [])
SLOTS = 20
DTYPES = (torch.bfloat16, torch.float32)
IDS = [token % 1000 for token in prompt_of(400, 7)]


@cache
def checkpoint(kind: Kind) -> Path:
    """Three layers of supported sizes, with short and long rows; for other kinds the tests' own checkpoint."""
    if kind not in DENSE:
        return tiny_checkpoint(kind)
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    hidden, inner = (576, 160) if kind == "llama" else (96, 544)  # rows of up to 512 are packed into panels
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


def model(kind: Kind, dtype: str, isa: str = "torch") -> LoadedModel:
    settings = EngineSettings(device="cpu", dtype=dtype, cpu_isa=isa, threads=2)  # type: ignore[arg-type]
    return load(checkpoint(kind), settings, lambda fraction: None)


def poisoned(loaded: LoadedModel, block_size: int, num_blocks: int) -> Runner:
    """A runner whose cache and states are full of NaN, as a broken sequence leaves them."""
    runner = Runner(loaded, num_blocks, block_size, num_slots=SLOTS)
    for part in (*runner.pool.keys, *runner.pool.values):
        part.fill_(-1 if part.dtype == torch.int8 else torch.nan)  # four bytes of -1 are a scale of NaN
    if runner.states is not None:
        for state in (*runner.states.convolution.values(), *runner.states.recurrent.values()):
            state.fill_(torch.nan)
    return runner


def logits(runner: Runner, *rows: Row) -> torch.Tensor:
    """Logits of these rows, whether the head is the kernels' or torch's."""
    ticket = runner.launch(Batch(rows))
    if ticket.logits is not None:
        return ticket.logits.float()
    assert isinstance(runner._loaded.head, NativeHead)
    return runner._loaded.head(ticket.hidden).clone()


def row(ids: Sequence[int], start: int, blocks: Sequence[int], slot: int = 0) -> Row:
    return Row(ids, start, blocks, len(ids), SAMPLING, slot)


def mixed(loaded: LoadedModel, block_size: int) -> torch.Tensor:
    """Logits of a prompt; of a decode row beside a longer prompt; of drafts beside decode."""
    each = -(-200 // block_size)
    runner = poisoned(loaded, block_size, 2 * each)
    own, other = range(2 * each - 1, each - 1, -1), range(each)
    steps = (
        logits(runner, row(IDS[:77], 0, own)),
        logits(runner, row(IDS[77:78], 77, own), row(IDS[200:341], 0, other)),
        logits(runner, row(IDS[341:342], 141, other), row(IDS[78:83], 78, own)),
    )
    return torch.cat(steps)


@pytest.mark.skipif(not CPU.exists(), reason="the system does not tell what its CPU has")
def test_the_kernels_are_installed_wherever_the_cpu_supports_them() -> None:
    """If they were silently left out of the installation, speed would halve."""
    flags = set(CPU.read_text().split())
    assert set(available_isas()) == {isa for isa, needed in FLAGS.items() if needed <= flags}


def test_a_banned_id_is_never_taken_though_maxima_are_found_without_logits() -> None:
    """`ignore_eos` and `min_tokens` ban stop ids: rows whose maximum is banned are computed again, beside others."""
    runner = Runner(model("qwen3", "float32", "auto"), 16, 16)

    def sampled(*banned: tuple[int, ...]) -> list[int]:
        rows = [
            Row(
                IDS[30 * i : 30 * i + 30], 0, range(4 * i, 4 * i + 2), 1, RowSampling(GREEDY, 0, [], [], banned_ids=ids)
            )
            for i, ids in enumerate(banned)
        ]
        batch = Batch(tuple(rows))
        return [one.token_ids[0] for one in runner.sample(runner.launch(batch), batch, None).read()]

    first, second = sampled((), ())
    expected = logits(runner, row(IDS[:30], 0, range(2)))[-1].topk(3).indices.tolist()
    assert first == expected[0]
    assert sampled((expected[1],), ()) == [first, second]
    assert sampled((first,), ()) == [expected[1], second]
    assert sampled((first, expected[1]), (first,)) == [expected[2], second]


@pytest.mark.parametrize("block_size", [2, 16, 20, 32, 48])
@pytest.mark.parametrize("kind", DENSE)
def test_logits_equal_those_of_torch(isa: str, kind: Kind, block_size: int) -> None:
    """Biases, head norms, and block sizes that are not a multiple of a register, or smaller than one."""
    ours, theirs = model(kind, "float32", isa), model(kind, "float32")
    assert isinstance(ours.backbone, NativeBackbone) and isinstance(theirs.backbone, CompactBackbone)
    torch.testing.assert_close(mixed(ours, block_size), mixed(theirs, block_size), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", DENSE)
def test_bfloat16_logits_are_as_close_to_float32_as_those_of_torch(isa: str, kind: Kind) -> None:
    """Sums, norms and the residual stream stay in float32 between products."""
    exact = mixed(model(kind, "float32"), 32)
    # The weights are the same; what differs is rounding during computation.
    ours, theirs = (mixed(model(kind, "bfloat16", computing), 32) for computing in (isa, "torch"))
    assert (ours - exact).abs().mean() <= 1.05 * (theirs - exact).abs().mean()
    torch.testing.assert_close(ours, theirs, atol=0.25, rtol=0.05)


def steps_of_two(runner: Runner) -> torch.Tensor:
    """Logits of a prompt in two steps, of a token behind it beside another prompt, and of a token of each."""
    own, other = range(8), range(8, 16)
    return torch.cat(
        (
            logits(runner, row(IDS[:50], 0, own, 3)),
            logits(runner, row(IDS[50:70], 50, own, 3)),
            logits(runner, row(IDS[70:71], 70, own, 3), row(IDS[100:160], 0, other, 1)),
            logits(runner, row(IDS[71:72], 71, own, 3), row(IDS[160:161], 60, other, 1)),
        )
    )


@pytest.mark.parametrize("kind", OTHERS)
def test_logits_of_experts_and_recurrent_states_equal_those_of_torch(isa: str, kind: Kind) -> None:
    """Routers, shared experts, gated attention, heads rotated in part, norms around zero, both orders of heads."""
    ours, theirs = model(kind, "float32", isa), model(kind, "float32")
    assert isinstance(ours.backbone, NativeBackbone) and not isinstance(theirs.backbone, NativeBackbone)
    found, expected = (steps_of_two(Runner(loaded, 16, 16, num_slots=4)) for loaded in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_layers_that_the_kernels_do_not_know_use_them_for_attention(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache must have the kernels' layout then, and transformers' layers their own states."""
    expected = steps_of_two(Runner(model("qwen3_5", "float32"), 16, 16, num_slots=4))
    monkeypatch.setattr(pretrained, "supports_decoder", lambda decoder, head: False)
    loaded = model("qwen3_5", "float32", isa)
    assert isinstance(loaded.backbone, TransformersBackbone)
    runner = Runner(loaded, 16, 16, num_slots=4)
    assert isinstance(runner.pool, NativePool)
    torch.testing.assert_close(steps_of_two(runner), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", OTHERS)
def test_experts_and_states_are_bit_identical_whatever_the_batch_chunks_or_threads(
    isa: str, kind: Kind, dtype: str
) -> None:
    """An expert's tokens come from all sequences; a state is carried from step to step."""
    loaded, blocks = model(kind, dtype, isa), range(6)
    whole = logits(poisoned(loaded, 16, 150), row(IDS[:90], 0, blocks))
    assert whole.isfinite().all()
    chunked = poisoned(loaded, 16, 150)
    cuts = (0, 1, 2, 7, 40, 41, 57, 58, 89, 90)
    parts = [logits(chunked, row(IDS[low:high], low, blocks)) for low, high in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    for count in (2, 3, 9, 19):
        shared = poisoned(loaded, 16, 150)
        mates = [Row(IDS[i : i + 20 + i], 0, range(6 + 4 * i, 10 + 4 * i), 1, SAMPLING, i) for i in range(1, count)]
        assert torch.equal(logits(shared, row(IDS[:89], 0, blocks), *mates)[:89], whole[:89])
        behind = [row([5], 20 + i, mate.blocks, i) for i, mate in enumerate(mates, 1)]
        assert torch.equal(logits(shared, row(IDS[89:90], 89, blocks), *behind)[0], whole[89])


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_next", "qwen3_5"])
def test_a_long_prompt_is_bit_identical_on_any_number_of_threads(isa: str, kind: Kind) -> None:
    """Small steps are computed by one thread, whatever the number that is allowed."""
    loaded, prompt, before, found = model(kind, "float32", isa), (IDS * 4)[:1500], torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(logits(poisoned(loaded, 16, 94), Row(prompt, 0, range(94), 1, SAMPLING, 0)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_bit_identical_whatever_the_batch_chunks_or_threads(isa: str, dtype: str) -> None:
    """A greedy or seeded reply must not change with other requests or a cached prefix."""
    loaded = model("qwen3", dtype, isa)
    blocks = range(10)
    alone = poisoned(loaded, 16, 200)
    whole = logits(alone, row(IDS[:150], 0, blocks))
    assert whole.isfinite().all()

    chunked = poisoned(loaded, 16, 200)
    cuts = (0, 1, 2, 7, 40, 41, 57, 58, 59, 149, 150)
    parts = [logits(chunked, row(IDS[low:high], low, blocks)) for low, high in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)

    shared = poisoned(loaded, 16, 200)
    for count in range(1, 20):
        mates = [row(IDS[i : i + 40 + i], 0, range(10 * i, 10 * i + 6)) for i in range(1, count)]
        assert torch.equal(logits(shared, row(IDS[:150], 0, blocks), *mates)[:150], whole)
        last = logits(
            shared, row(IDS[149:150], 149, blocks), *(row([5], 40 + i, mates[i].blocks) for i in range(count - 1))
        )
        assert torch.equal(last[0], whole[149])

    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(logits(poisoned(loaded, 16, 200), row(IDS[:150], 0, blocks)), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_next"])
def test_a_broken_sequence_affects_only_its_own_logits(isa: str, kind: Kind) -> None:
    loaded = model(kind, "bfloat16", isa)
    runner = poisoned(loaded, 16, 20)
    fine = logits(runner, row(IDS[:50], 0, range(4)))
    both = logits(runner, row(IDS[50:51], 50, range(4)), row(IDS[:1], 30, range(10, 14), 1))
    assert fine.isfinite().all() and both[0].isfinite().all() and both[1].isnan().all()


@pytest.mark.parametrize("size", [64, 1024], ids=["panels", "rows"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy_ids_equal_the_argmax_of_the_logits(isa: str, dtype: torch.dtype, size: int) -> None:
    """The lowest of equal ids, whatever their position and thread; NOT_FINITE where a logit is not finite."""
    weights = torch.randint(-2, 3, (1_003, size)).to(dtype)  # small integers: sums are exact, with many ties
    weights[1_002] = weights[7]
    head, hidden = head_of(weights, isa), torch.randint(-1, 2, (21, size)).to(dtype)
    hidden[3] = weights[7]  # two distant ids tie
    assert torch.equal(head(hidden), hidden.float() @ weights.float().T)
    expected = head(hidden).argmax(-1)
    assert expected[3] == 7 and torch.equal(head.greedy_ids(hidden), expected)
    hidden[5, 0], hidden[20, 1] = torch.nan, torch.inf
    broken = head.greedy_ids(hidden)
    assert broken[5] == broken[20] == NOT_FINITE
    others = [line for line in range(21) if line not in (5, 20)]
    assert torch.equal(broken[others], expected[others])
    all_equal = head_of(torch.ones(1_003, size, dtype=dtype), isa)
    assert all_equal.greedy_ids(-torch.ones(2, size, dtype=dtype)).tolist() == [0, 0]


def head_of(weights: torch.Tensor, isa: str) -> NativeHead:
    linear = nn.Linear(weights.shape[1], weights.shape[0], bias=False, dtype=weights.dtype)
    linear.weight.data = weights.clone()
    library = open_library(isa)
    assert library is not None
    return NativeHead(linear, library)


def test_too_short_or_invalid_block_tables_are_refused(isa: str) -> None:
    runner = Runner(model("qwen3", "float32", isa), 4, 16)
    for blocks in ([0], [0, 4], [0, -1]):
        with pytest.raises(AssertionError):
            runner.launch(Batch((row(IDS[:20], 0, blocks),)))


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"cpu_isa": "torch"}])
def test_torch_computes_what_the_kernels_do_not_support(change: dict[str, object]) -> None:
    settings = EngineSettings(device="cpu", **change)  # type: ignore[arg-type]
    loaded = load(tiny_checkpoint("qwen3"), settings, lambda fraction: None)
    assert isinstance(loaded.backbone, CompactBackbone)
    assert type(Runner(loaded, 4, 16).pool) is KvPool


class Quantized(torch.Tensor):
    """A weight of another package: a class of its own, the dtype of its results, and no memory of its own."""

    @staticmethod
    def __new__(cls, weight: torch.Tensor) -> "Quantized":
        made: Quantized = torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return args[0]  # detach, all that nn.Parameter calls


def test_kernels_leave_layers_that_others_quantized_to_torch() -> None:
    """The engine ended: the kernels read the weights at address 0."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("qwen3"), dtype=torch.float32)
    assert supports_decoder(model.model, model.lm_head)
    attention = model.model.layers[1].self_attn
    attention.k_proj.weight = nn.Parameter(Quantized(attention.k_proj.weight), requires_grad=False)
    assert not supports_decoder(model.model, model.lm_head)


def test_greedy_ids_are_those_of_the_threads_there_are(isa: str) -> None:
    """With fewer threads than requested, maxima of threads that never ran were read from uninitialized memory."""
    script = """
import sys, torch
from server.model.cpu.library import open_library
from server.model.cpu.native import NativeHead
torch.manual_seed(0)
linear = torch.nn.Linear(1024, 40000, bias=False)
hidden, weight = torch.randn(6, 1024), linear.weight.detach().clone()
torch.set_num_threads(8)
torch.full((1 << 20,), 3e38)  # what freed memory holds
head = NativeHead(linear, open_library(sys.argv[1]))
assert head.greedy_ids(hidden).tolist() == (hidden @ weight.T).argmax(-1).tolist()
"""
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    assert subprocess.run([sys.executable, "-c", script, isa], env=environment, check=False).returncode == 0
