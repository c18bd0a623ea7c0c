"""Products with weights of few bits on each instruction set of this CPU: float64's results, equal bits in any batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from server.model.cpu.library import open_library
from server.model.cpu.native import NativeBackbone, NativeHead
from server.model.cpu.quantized import look_up, project
from server.model.cpu.quantized_check import INPUT_BITS, ROUNDED, in_bytes, random_weight
from server.model.layers.decoder import CompactBackbone
from server.model.loading import plain, pretrained, streaming
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.quantization import quantize as quantization
from server.model.quantization.linear import QuantizedLinear
from server.model.quantization.packed_weight import SCALE_DTYPES, PackedWeight
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.checkpoints import Kind
from tests.model.cpu.isas import TESTED_ISAS
from tests.model.cpu.test_native import IDS, checkpoint, logits, poisoned, row
from tests.model.drive import Stream, run
from tests.model.loading.test_plain import nothing

WIDTHS = (4, 5, 6, 8)
COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 40, 96, 97, 150)  # tokens: direct, unpacked, one strip and more


@pytest.fixture(params=TESTED_ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """The best instruction set of this CPU; with `--long` each."""
    return str(request.param)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("inputs", [32, 96, 1088])
@pytest.mark.parametrize("scales", SCALE_DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_products_equal_those_of_float64_whatever_the_batch(
    isa: str, width: int, scales: torch.dtype, inputs: int
) -> None:
    """A code, scale or minimum of another group; sums that depend on the tile, the strip or the number of threads."""
    library = open_library(isa)
    assert library is not None
    torch.manual_seed(0)
    hidden = torch.randn(COUNTS[-1], inputs)
    hidden[2], hidden[3, :32] = 0.0, 1e-35
    for group in (16, 32, inputs):
        packed = random_weight(width, scales, group, inputs, 75)
        weight = packed.unpack().double()
        for bits in INPUT_BITS:
            packed = replace(packed, input_bits=bits)
            multiplied = (in_bytes(hidden) if bits == 8 else hidden).double()
            with threads(2):
                found = project(library, packed, hidden)
                magnitude = multiplied.abs() @ weight.abs().T
                assert bool(((found - multiplied @ weight.T).abs() <= ROUNDED * magnitude + 1e-27).all())
                for count in COUNTS:
                    assert torch.equal(project(library, packed, hidden[-count:]), found[-count:])
            with threads(1):
                assert torch.equal(project(library, packed, hidden), found)


@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_an_embedding_are_those_of_torch(isa: str, width: int, group: int) -> None:
    library = open_library(isa)
    assert library is not None
    packed = random_weight(width, torch.int8, group, 96, 75)
    for ids in (torch.tensor([74, 0, 17, 17]), torch.arange(75).repeat(2)):
        torch.testing.assert_close(look_up(library, packed, ids), packed.rows(ids), atol=1e-3, rtol=1e-5)


def test_outliers_cost_no_precision_elsewhere(isa: str) -> None:
    """Inputs a thousand times larger than the others, as some channels of real models are: 16 bits a block suffice."""
    library = open_library(isa)
    assert library is not None
    torch.manual_seed(0)
    packed, hidden = random_weight(8, torch.float16, 32, 1024, 64), torch.randn(5, 1024)
    hidden[:, 100] *= 1000
    exact = hidden.double() @ packed.unpack().double().T
    in_bfloat16 = hidden.bfloat16().double() @ packed.unpack().double().T
    found = project(library, packed, hidden)
    assert (found - exact).abs().mean() < 0.1 * (in_bfloat16 - exact).abs().mean()


@pytest.mark.parametrize("bits", INPUT_BITS)
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_greatest_codes_and_inputs_do_not_overflow(isa: str, width: int, group: int, bits: int) -> None:
    """Some sets sum products in sixteen bits, as many as just fit: random numbers never come near."""
    library = open_library(isa)
    assert library is not None
    codes = torch.full((48, 64), 2**width - 1, dtype=torch.uint8)
    codes[16:32] = 0
    codes[32:, ::2] = 0
    scales, hidden = torch.ones(48, 64 // group), torch.ones(9, 64)
    hidden[1], hidden[2, ::2] = -1.0, -1.0
    for offset in (0, 2 ** (width - 1)):
        packed = PackedWeight.pack(codes, scales, width=width, group=group, offset=offset)
        packed = replace(packed, input_bits=bits)
        expected = hidden.double() @ packed.unpack().double().T
        for count in (1, 3, 9):
            found = project(library, packed, hidden[:count]).double()
            torch.testing.assert_close(found, expected[:count], atol=1e-2, rtol=1e-5)


def test_outliers_in_bytes_cost_precision_in_their_block_alone(isa: str) -> None:
    """With one scale for more inputs perplexity of a small model was five times as far from that of sixteen bits."""
    library = open_library(isa)
    assert library is not None
    torch.manual_seed(0)
    codes, hidden = torch.randint(0, 16, (64, 1024), dtype=torch.uint8), torch.randn(5, 1024)
    codes[:, 96:128] = 8  # weights of zero
    packed = replace(PackedWeight.pack(codes, torch.rand(64, 32), width=4, group=32, offset=8), input_bits=8)
    expected = project(library, packed, hidden)
    hidden[:, 100] *= 1000
    assert torch.equal(project(library, packed, hidden), expected)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bits", INPUT_BITS)
def test_a_broken_token_affects_only_its_own_outputs(isa: str, bits: int, broken: float) -> None:
    """Integers have no NaN: lost in rounding, a broken sequence would be sampled from."""
    library = open_library(isa)
    assert library is not None
    packed, hidden = replace(random_weight(4, torch.int8, 32, 96, 40), input_bits=bits), torch.randn(20, 96)
    expected = project(library, packed, hidden)
    hidden[7, 50] = broken
    found = project(library, packed, hidden)
    assert found[7].isnan().all()
    others = torch.arange(20) != 7
    assert torch.equal(found[others], expected[others])
    assert NativeHead(QuantizedLinear(packed), library).greedy_ids(hidden)[7] == -1


def model(kind: Kind, dtype: str, isa: str, quantize: str, bits: str = "auto") -> LoadedModel:
    given: Any = {"dtype": dtype, "cpu_isa": isa, "quantize": quantize, "activation_bits": bits}
    settings = EngineSettings(device="cpu", threads=2, **given)
    return load(checkpoint(kind), settings, lambda fraction: None)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_whole_decoders_equal_those_of_torch(
    isa: str, kind: Kind, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases, head norms, tied and untied output matrices; torch multiplies the same weights, which it quantized."""
    by_torch = quantization.quantize
    monkeypatch.setattr(plain, "quantize", lambda weight, width, name, kernels: by_torch(weight, width, name))
    ours, theirs = (model(kind, "float32", computing, quantize, "16") for computing in (isa, "torch"))
    assert isinstance(ours.backbone, NativeBackbone) and isinstance(theirs.backbone, CompactBackbone)
    found, expected = (logits(poisoned(loaded, 16, 16), row(IDS[:77], 0, range(8, 16))) for loaded in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize(("quantize", "default"), [("int8", "16"), ("int4", "8")])
def test_inputs_have_the_bits_that_are_asked_for(quantize: str, default: str) -> None:
    """In the layers and in the output matrix, which is quantized apart."""
    loaded = {bits: model("qwen3", "float32", "auto", quantize, bits) for bits in ("auto", "8", "16")}
    hidden = torch.randn(3, 96)
    layers = {bits: logits(poisoned(one, 16, 16), row(IDS[:9], 0, range(2))) for bits, one in loaded.items()}
    heads = {bits: one.head(hidden).clone() for bits, one in loaded.items()}
    for found in (layers, heads):
        assert torch.equal(found["auto"], found[default]) and not torch.equal(found["8"], found["16"])


@pytest.mark.parametrize(("quantize", "bits"), [("int8", "16"), ("int4", "16"), ("int4", "8")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_bit_identical_whatever_the_batch_chunks_or_threads(
    isa: str, dtype: str, quantize: str, bits: str
) -> None:
    """A greedy or seeded reply must not change with other requests or a cached prefix."""
    loaded = model("qwen3", dtype, isa, quantize, bits)
    blocks = range(10)
    whole = logits(poisoned(loaded, 16, 100), row(IDS[:150], 0, blocks))
    assert whole.isfinite().all()
    chunked = poisoned(loaded, 16, 100)
    cuts = (0, 1, 2, 7, 40, 41, 57, 58, 59, 149, 150)
    parts = [logits(chunked, row(IDS[low:high], low, blocks)) for low, high in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    shared = poisoned(loaded, 16, 100)
    mates = [row(IDS[i : i + 40 + i], 0, range(10 * i, 10 * i + 6)) for i in range(1, 10)]
    assert torch.equal(logits(shared, row(IDS[:150], 0, blocks), *mates)[:150], whole)
    for count in range(10):
        beside = (row([5], 40 + i, mate.blocks) for i, mate in enumerate(mates[:count], 1))
        assert torch.equal(logits(shared, row(IDS[149:150], 149, blocks), *beside)[0], whole[149])
    for count in (1, 3):
        with threads(count):
            assert torch.equal(logits(poisoned(loaded, 16, 100), row(IDS[:150], 0, blocks)), whole)


def test_greedy_replies_are_the_same_alone_and_in_a_crowd(isa: str) -> None:
    loaded = model("qwen3", "bfloat16", isa, "int4")

    def replies(chunk: int, *prompts: list[int]) -> list[list[int]]:
        streams = [Stream(prompt, range(8 * i, 8 * i + 8), chunk=chunk) for i, prompt in enumerate(prompts)]
        run(Runner(loaded, 64, 16), streams)
        return [stream.written for stream in streams]

    prompts = [IDS[:50], IDS[100:130], IDS[200:260]]
    alone = [replies(1 << 20, prompt)[0] for prompt in prompts]
    assert replies(1 << 20, *prompts) == alone and replies(7, *prompts) == alone


def test_a_mixture_of_experts_runs_on_the_kernels(isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was left to torch, expert by expert; torch multiplies the same weights, which it quantized."""
    by_torch = quantization.quantize
    for module in (streaming, pretrained):
        monkeypatch.setattr(module, "quantize", lambda weight, width, name, kernels: by_torch(weight, width, name))
    sizes: Any = {"hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 1003}
    heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    experts: Any = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    torch.manual_seed(0)
    transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes, **heads, **experts)).save_pretrained(tmp_path)
    settings = EngineSettings(device="cpu", dtype="float32", threads=2, quantize="int4", activation_bits="16")
    ours, theirs = (load(tmp_path, replace(settings, cpu_isa=one), nothing) for one in (isa, "torch"))  # type: ignore[arg-type]
    assert isinstance(ours.backbone, NativeBackbone) and not isinstance(theirs.backbone, NativeBackbone)
    found, expected = (logits(poisoned(loaded, 16, 16), row(IDS[:77], 0, range(8, 16))) for loaded in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
    in_eight = load(tmp_path, replace(settings, cpu_isa=isa, activation_bits="8"), nothing)  # type: ignore[arg-type]
    in_eights = logits(poisoned(in_eight, 16, 16), row(IDS[:77], 0, range(8, 16)))
    assert not torch.equal(in_eights, found)
    for loaded, whole in ((ours, found), (in_eight, in_eights)):
        runner = poisoned(loaded, 16, 16)
        parts = [logits(runner, row(IDS[low:high], low, range(8, 16))) for low, high in ((0, 1), (1, 40), (40, 77))]
        assert torch.equal(torch.cat(parts), whole)


def test_where_no_kernels_are_torch_computes() -> None:
    loaded = model("qwen3", "float32", "torch", "int4")
    assert isinstance(loaded.backbone, CompactBackbone) and isinstance(loaded.head, QuantizedLinear)
