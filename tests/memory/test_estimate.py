"""The estimate of the activations against what the real runner makes, for the layers of real models.

Layers follow each other and free what they made, so two layers of a model have the peak of all of them; where the
feed-forward part is the widest, one has.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from server.config_json import read_config
from server.memory.budget import Demand, activation_bytes, sampling_bytes
from server.memory.headers import read_headers, weight_bytes
from server.memory.shape import Shape, read_shape
from server.messages import Sampling
from server.model.batch import Batch, Row, RowSampling
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.profile import AllocationMeter, StepSize, measure_step
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.caches import latest
from tests.model.cpu.isas import TESTED_ISAS

CPU = Path("/proc/cpuinfo")
HAS_BFLOAT16 = CPU.exists() and "avx512_bf16" in CPU.read_text()
slow_without_bfloat16 = pytest.mark.timeout(300) if HAS_BFLOAT16 else pytest.mark.long
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-0.6B": ("Qwen3Config", {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}),
    "Qwen3-8B": (
        "Qwen3Config",
        {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 1},
    ),
    "Qwen3-MoE": (
        "Qwen3MoeConfig",
        {"hidden_size": 1024, "num_attention_heads": 16, "num_experts": 16, "moe_intermediate_size": 384},
    ),
}
BLOCK_SIZE, NUM_TOKENS = 16, 512
FEW_TOKENS = 128  # a CPU without bfloat16 products computes them slowly

Loaded = tuple[LoadedModel, Shape, Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Loaded]:
    """Makes a checkpoint of such layers and loads it; the last one is kept."""

    @latest
    def make(kind: str, described: str) -> Loaded:
        folder, fields = tmp_path_factory.mktemp("layers"), json.loads(described)
        common = {"num_hidden_layers": 2, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 4000}
        config = getattr(transformers, kind)(**{**common, **fields}, dtype="bfloat16")
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        model.to_empty(device="cpu").to(torch.bfloat16).requires_grad_(False)
        for parameter in model.parameters():
            parameter.zero_()
        model.save_pretrained(folder)
        # the compiled kernels take less
        loaded = load(folder, EngineSettings(device="cpu", cpu_isa="torch"), lambda _: None)
        return loaded, read_shape(read_config(folder)), folder

    return lambda kind, fields: make(kind, json.dumps(fields))


def prompt(num_tokens: int, start: int = 0) -> Row:
    blocks = list(range(-(-(start + num_tokens) // BLOCK_SIZE)))
    return Row([7] * num_tokens, start, blocks, 1, RowSampling(Sampling(max_tokens=4, temperature=0.0), 1, [], []))


def measure(loaded: LoadedModel, *rows: Row) -> tuple[int, int]:
    """Peaks of computing and of sampling, in bytes. All ids are alike: top_p must look at the whole vocabulary."""
    num_blocks = 1 + max(block for row in rows for block in row.blocks)
    runner = Runner(loaded, num_blocks, BLOCK_SIZE)
    runner.pool.keys[0].zero_()
    with AllocationMeter() as meter:
        ticket = runner.launch(Batch(rows))
        computing = meter.peak
        meter.peak = meter.live
        runner.sample(ticket, Batch(rows), None).read()
    return computing, meter.peak


@pytest.mark.parametrize(
    "name",
    ["Qwen3-0.6B", "Qwen3-MoE", pytest.param("Qwen3-8B", marks=pytest.mark.long)],  # 400 MB of weights
)
def test_the_widest_layer_is_estimated_within_three_percent(checkpoint: Callable[..., Loaded], name: str) -> None:
    num_tokens = NUM_TOKENS if name == "Qwen3-0.6B" else FEW_TOKENS
    loaded, shape, folder = checkpoint(*LAYERS[name])
    expected = activation_bytes(shape, Demand("bfloat16", max_batch_tokens=num_tokens, max_running=1))
    measured, _ = measure(loaded, prompt(num_tokens))
    assert expected == pytest.approx(measured, rel=0.03 if "MoE" not in name else 0.05)
    headers = weight_bytes(read_headers(folder), dtype="bfloat16", quantize="none", tied=shape.tied)
    assert headers == pytest.approx(loaded.weight_bytes, rel=0.03)


@pytest.mark.parametrize("isa", TESTED_ISAS)
@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-MoE"])
def test_the_compiled_kernels_take_no_more_than_is_estimated(
    checkpoint: Callable[..., Loaded], name: str, isa: str
) -> None:
    """A model that starts by the estimate must not run out in its first large step."""
    _, shape, folder = checkpoint(*LAYERS[name])
    loaded = load(folder, EngineSettings(device="cpu", cpu_isa=isa), lambda _: None)  # type: ignore[arg-type]
    demand = Demand("bfloat16", max_batch_tokens=NUM_TOKENS, max_running=1)
    expected = activation_bytes(shape, demand, on_host=True)
    for start in (0, 4096):
        measured, _ = measure(loaded, prompt(NUM_TOKENS, start))
        assert 0 < measured <= 1.05 * expected


@slow_without_bfloat16
def test_cached_tokens_before_a_chunk_cost_what_is_reserved_for_them(checkpoint: Callable[..., Loaded]) -> None:
    """One layer of few heads, since a CPU without bfloat16 products computes the scores slowly."""
    name, fields = LAYERS["Qwen3-0.6B"]
    loaded, shape, _ = checkpoint(
        name, {**fields, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    )
    few, many = (measure(loaded, prompt(64, start=start))[0] for start in (32_768, 40_960))
    assert (many - few) / 8192 == pytest.approx(shape.chunk_token_bytes(2), rel=0.03)


def test_cached_tokens_read_while_decoding_cost_no_more_than_is_reserved(checkpoint: Callable[..., Loaded]) -> None:
    loaded, shape, _ = checkpoint(*LAYERS["Qwen3-0.6B"])

    def decode(context: int) -> int:
        """Blocks of four sequences, mixed and with gaps, so that they must be gathered."""
        count = context // BLOCK_SIZE + 1
        sampling = RowSampling(Sampling(max_tokens=4, temperature=0.0), 1, [], [])
        rows = [Row([5], context, [2 * (4 * j + i) for j in range(count)], 1, sampling) for i in range(4)]
        return measure(loaded, *rows)[0]

    growth = (decode(2048) - decode(1024)) / (4 * 1024)
    assert 0.4 * shape.gathered_token_bytes(2) < growth <= shape.gathered_token_bytes(2)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=4, temperature=0.0),
        Sampling(max_tokens=4),
        Sampling(max_tokens=4, num_logprobs=20),
        Sampling(max_tokens=4, top_p=0.9, num_logprobs=20, frequency_penalty=0.5, repetition_penalty=1.1),
        Sampling(max_tokens=4, top_k=20, min_p=0.1, logit_bias={5: 1.0}),
    ],
    ids=["greedy", "sampled", "logprobs", "everything", "top_k"],
)
@pytest.mark.parametrize("num_rows", [4, 64])
def test_drawing_never_takes_more_than_is_reserved(
    checkpoint: Callable[..., Loaded], sampling: Sampling, num_rows: int
) -> None:
    """A large vocabulary and many rows with logprobs: the peak that out-of-memory reports are about."""
    fields = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8, "head_dim": 8}
    loaded, shape, _ = checkpoint("Qwen3Config", {**fields, "vocab_size": 50_000})
    rows = [Row([7], 0, [i], 1, RowSampling(sampling, i, [1, 2], [3])) for i in range(num_rows)]
    _, peak = measure(loaded, *rows)
    reserved = sampling_bytes(shape.vocab_size, num_rows, 2, sampling.num_logprobs)
    assert peak <= reserved + (1 << 20)
    if sampling.num_logprobs is not None and sampling.frequency_penalty:
        assert peak > reserved / 2


@slow_without_bfloat16
def test_the_profile_run_agrees_with_the_estimate_and_with_a_step_of_full_size(
    checkpoint: Callable[..., Loaded],
) -> None:
    """On a CPU small steps are counted and scaled up: that must give what the large step gives."""
    fields = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "vocab_size": 20_000}
    loaded, shape, _ = checkpoint("Qwen3Config", fields)
    for tokens, rows in ((NUM_TOKENS, 1), (NUM_TOKENS, 200)):
        profiled = measure_step(loaded, StepSize(tokens, rows, BLOCK_SIZE))
        expected = activation_bytes(shape, Demand("bfloat16", max_batch_tokens=tokens, max_running=rows))
        assert 0.94 * expected < profiled < 1.12 * expected  # scaled up from few rows, sorting weighs a little more
    whole, _ = measure(loaded, prompt(NUM_TOKENS))
    scaled = measure_step(loaded, StepSize(NUM_TOKENS, 1, BLOCK_SIZE))
    assert 0.97 * whole < scaled < 1.12 * whole  # attention takes a tile of tokens at a time: few are a whole one
