"""The sums: real shapes against published sizes, and laws that hold for every size."""

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config_json import QUANTIZED_WIDTHS, quantized_bytes
from server.errors import CannotStart
from server.memory.adapters import AdapterSizes
from server.memory.budget import (
    GIB,
    MIB,
    Demand,
    DeviceMemory,
    Plan,
    activation_bytes,
    headroom,
    most_rows,
    plan,
    sampling_bytes,
)
from server.memory.headers import Tensor, weight_bytes
from server.memory.shape import Shape, read_shape
from server.memory.start import Estimate, Measured, replan
from server.messages import DeviceReading
from tests.memory.shapes import CONFIGS, real_model

BF16 = Demand("bfloat16")
OF_RANK_64 = AdapterSizes(ranks=64)
PARAMETERS = {  # as the hub shows them
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen2.5-7B": 7_615_616_512,
}
TOKEN_KIB = {
    "Qwen3-0.6B": 112,
    "Qwen3-8B": 144,
    "Qwen3-32B": 256,
    "Qwen3-30B-A3B": 96,
    "Qwen2.5-7B": 56,
    "Qwen3.5-0.8B": 12,
    "Qwen3.5-4B": 32,
    "Qwen3.5-9B": 32,
    "Qwen3.5-27B": 64,
    "Qwen3.5-35B-A3B": 20,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_are_two_bytes_a_parameter(name: str) -> None:
    shape, tensors, _ = real_model(name)
    assert weight_bytes(tensors, dtype="bfloat16", quantize="none", tied=shape.tied) == 2 * PARAMETERS[name]
    assert weight_bytes(tensors, dtype="float32", quantize="none", tied=shape.tied) == 4 * PARAMETERS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_kv_counts_grouped_heads_and_full_attention_layers_only(name: str) -> None:
    shape, _, config = real_model(name)
    assert shape.kv_token_bytes(2) == TOKEN_KIB[name] * 1024
    assert shape.attention_layers + shape.linear_layers == config["num_hidden_layers"]
    in_bytes = Demand("bfloat16", kv_dtype="int8").token_bytes(shape)  # with a scale of four bytes for each head
    assert in_bytes * 2 * shape.head_dim == TOKEN_KIB[name] * 1024 * (shape.head_dim + 4)


def test_hybrid_models_also_pay_for_every_sequence() -> None:
    shape, tensors, _ = real_model("Qwen3.5-9B")
    per_layer = 32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 4 * 2
    assert shape.state_bytes(2) == 24 * per_layer
    found = plan(shape, tensors, BF16, DeviceMemory(24 * GIB, 24 * GIB))
    assert found.fits and 1 <= found.num_slots < 2 * BF16.max_running
    assert found.num_slots * found.state_bytes <= found.left // 2
    assert plan(*real_model("Qwen3-8B")[:2], BF16, DeviceMemory(24 * GIB, 24 * GIB)).num_slots == 0


def test_a_multimodal_configuration_is_read_where_its_text_model_is() -> None:
    _, _, config = real_model("Qwen3.5-9B")
    wrapped = {"model_type": "qwen3_5", "text_config": config, "tie_word_embeddings": False, "vision_config": {}}
    assert read_shape(wrapped) == real_model("Qwen3.5-9B")[0]
    del (bare := dict(config))["layer_types"]  # some files leave them to the class
    assert read_shape(bare) == real_model("Qwen3.5-9B")[0]


def test_a_configuration_without_sizes_is_refused_by_name() -> None:
    with pytest.raises(CannotStart, match="hidden_size"):
        read_shape({"num_attention_heads": 4})
    with pytest.raises(CannotStart, match="vocab_size"):
        read_shape({"hidden_size": 8, "num_attention_heads": 4, "vocab_size": "many", "num_hidden_layers": 1})


def test_what_is_not_loaded_is_not_counted() -> None:
    """A tied output matrix that is stored twice, draft heads, and the vision tower."""
    body = Tensor("model.embed_tokens.weight", "BF16", (100, 10))
    extra = tuple(
        Tensor(name, "BF16", (100, 10)) for name in ("lm_head.weight", "mtp.fc.weight", "model.visual.a.weight")
    )
    assert weight_bytes((body, *extra), dtype="bfloat16", quantize="none", tied=True) == 2000
    assert weight_bytes((body, *extra), dtype="bfloat16", quantize="none", tied=False) == 4000


@pytest.mark.parametrize(("quantize", "bits", "head_bits"), [("int8", 8.25, 8.25), ("int4", 4.5625, 6.5)])
def test_few_bits_are_for_projections_and_the_output_matrix(quantize: str, bits: float, head_bits: float) -> None:
    """Experts on a CPU alone; counting them on a GPU would promise too much."""
    _, tensors, _ = real_model("Qwen3-8B")
    linear = sum(t.count for t in tensors if ".layers." in t.name and len(t.shape) == 2)
    (head,) = (t.count for t in tensors if t.name == "lm_head.weight")
    expected = 2 * (PARAMETERS["Qwen3-8B"] - linear - head) + linear * bits / 8 + head * head_bits / 8
    assert weight_bytes(tensors, dtype="bfloat16", quantize=quantize, tied=False) == expected
    expert = Tensor("model.layers.0.mlp.experts.3.up_proj.weight", "BF16", (64, 32))
    assert weight_bytes([expert], dtype="bfloat16", quantize=quantize, tied=False, on_host=False) == 2 * 64 * 32
    stacked = Tensor("model.layers.0.mlp.experts.down_proj", "BF16", (4, 64, 32))
    one = quantized_bytes(QUANTIZED_WIDTHS[quantize], expert.shape)
    assert weight_bytes([expert, stacked], dtype="bfloat16", quantize=quantize, tied=False) == 5 * one
    embedding = Tensor("model.embed_tokens.weight", "BF16", (64, 64))
    assert weight_bytes([embedding], dtype="bfloat16", quantize=quantize, tied=True) == 64 * (
        66 if quantize == "int8" else 52
    )
    assert weight_bytes([embedding], dtype="bfloat16", quantize=quantize, tied=False) == 64 * 128
    packed = Tensor("model.layers.0.mlp.up_proj.qweight", "I32", (8, 4))  # already quantized: as stored
    assert weight_bytes([packed], dtype="bfloat16", quantize="none", tied=False) == 128


def test_logits_of_many_rows_can_be_the_peak() -> None:
    """256 rows of a 152k vocabulary take more than any layer: n and logprobs cost memory too."""
    shape = real_model("Qwen3-0.6B")[0]
    few = activation_bytes(shape, dataclasses.replace(BF16, max_running=1))
    many = activation_bytes(shape, BF16)
    assert many > 0.9 * GIB > 4 * few
    assert many >= sampling_bytes(shape.vocab_size, 256, 2)
    assert sampling_bytes(1000, 2, 2, num_logprobs=5) > sampling_bytes(1000, 2, 2, num_logprobs=None)


def test_a_step_has_one_line_of_logits_for_each_id_that_can_be_drawn() -> None:
    assert most_rows(2048, 256, 0) == 256
    assert most_rows(2048, 256, 3) == 256  # drafts take the lines that sequences leave free
    assert most_rows(2048, 2, 3) == 4
    assert most_rows(100, 256, 0) == 100  # a sequence needs a token of the step to sample


def test_a_host_keeps_room_for_its_other_programs() -> None:
    shape, tensors, _ = real_model("Qwen3-0.6B")
    found = plan(shape, tensors, BF16, DeviceMemory(64 * GIB, 60 * GIB, is_host=True), 600 * MIB)
    assert found.num_blocks * found.block_bytes <= found.left // 2
    asked = dataclasses.replace(BF16, kv_cache_tokens=200_000)
    made = plan(shape, tensors, asked, DeviceMemory(64 * GIB, 60 * GIB, is_host=True))
    assert made.num_blocks * made.demand.block_size == 200_000


def test_an_explicit_context_is_kept_or_refused() -> None:
    shape, tensors, _ = real_model("Qwen3-8B")
    device = DeviceMemory(24 * GIB, 24 * GIB)
    free = plan(shape, tensors, BF16, device, 512 * MIB)
    assert free.fits and 16_384 < free.max_model_len < shape.max_positions
    kept = plan(shape, tensors, dataclasses.replace(BF16, max_model_len=16_384), device, 512 * MIB)
    assert kept.fits and kept.max_model_len == 16_384
    refused = plan(shape, tensors, dataclasses.replace(BF16, max_model_len=40_960), device, 512 * MIB)
    assert not refused.fits and refused.missing > 0 and refused.num_blocks == 0


SHAPES = st.builds(
    Shape,
    hidden_size=st.integers(64, 8192),
    intermediate_size=st.integers(64, 32768),
    vocab_size=st.integers(1000, 250_000),
    max_positions=st.integers(2048, 262_144),
    num_heads=st.integers(1, 64),
    num_kv_heads=st.integers(1, 8),
    head_dim=st.sampled_from([64, 128, 256]),
    attention_layers=st.integers(1, 64),
    linear_layers=st.sampled_from([0, 3, 48]),
    linear_key_heads=st.just(16),
    linear_value_heads=st.just(32),
    linear_key_dim=st.just(128),
    linear_value_dim=st.just(128),
    conv_kernel=st.just(4),
)
DEMANDS = st.builds(
    Demand,
    dtype=st.sampled_from(["bfloat16", "float32"]),
    max_model_len=st.sampled_from([0, 1024, 32_768]),
    kv_cache_tokens=st.sampled_from([0, 0, 5000]),
    block_size=st.sampled_from([8, 16, 64]),
    max_batch_tokens=st.integers(16, 8192),
    max_running=st.integers(1, 512),
    memory_fraction=st.floats(0.05, 1.0),
)


def device_memory_mib(total: int, free: int, own: int, is_host: bool) -> DeviceMemory:
    free = min(free, total)
    return DeviceMemory(total * MIB, free * MIB, min(own, total - free) * MIB, is_host)


ROOMS = st.builds(
    device_memory_mib, st.integers(256, 200_000), st.integers(0, 200_000), st.integers(0, 4000), st.booleans()
)
WEIGHTS = (Tensor("model.layers.0.mlp.up_proj.weight", "BF16", (4096, 65_536)),)


def held(found: Plan) -> int:
    slots = found.num_slots * found.state_bytes
    return (
        found.overhead
        + found.weights
        + found.activations
        + found.scratch
        + slots
        + found.num_blocks * found.block_bytes
    )


@given(SHAPES, DEMANDS, ROOMS)
def test_a_plan_that_fits_never_exceeds_fraction_nor_free_memory(
    shape: Shape, demand: Demand, device: DeviceMemory
) -> None:
    found = plan(shape, WEIGHTS, demand, device)
    if not found.fits:
        assert found.num_blocks == found.num_slots == 0 and found.missing > 0
        return
    assert held(found) <= demand.memory_fraction * device.total
    assert held(found) <= device.free + device.own - headroom(device.total)
    assert found.num_blocks * demand.block_size >= min(demand.max_model_len, demand.kv_cache_tokens or 1 << 60)
    assert bool(found.num_slots) == bool(shape.linear_layers)


@given(SHAPES, DEMANDS, ROOMS, st.integers(1, 8000))
def test_more_memory_never_means_less(shape: Shape, demand: Demand, device: DeviceMemory, more: int) -> None:
    small = plan(shape, WEIGHTS, demand, device)
    larger = dataclasses.replace(device, total=device.total + more * MIB, free=device.free + more * MIB)
    large = plan(shape, WEIGHTS, demand, larger)
    assert large.missing <= small.missing
    assert large.fits or not small.fits
    if small.fits and not shape.linear_layers:  # with recurrent state, slots may grow at the cost of blocks
        assert large.num_blocks >= small.num_blocks and large.max_model_len >= small.max_model_len


@given(SHAPES, DEMANDS, st.integers(2, 4))
def test_larger_batches_and_more_rows_never_cost_less(shape: Shape, demand: Demand, factor: int) -> None:
    less = activation_bytes(shape, demand)
    assert activation_bytes(shape, dataclasses.replace(demand, max_running=factor * demand.max_running)) >= less
    assert (
        activation_bytes(shape, dataclasses.replace(demand, max_batch_tokens=factor * demand.max_batch_tokens)) >= less
    )
    assert activation_bytes(shape, dataclasses.replace(demand, draft_tokens=factor)) >= less


def test_the_scratch_of_adapters_is_left_free_before_and_after_loading() -> None:
    """Counted among the measured weights it was subtracted from what the process held, and so given to the KV cache."""
    shape, tensors, _ = real_model("Qwen3-8B")
    scratch = OF_RANK_64.scratch_bytes(BF16.max_batch_tokens)
    assert scratch == 16 * 64 * 2048
    device = DeviceMemory(24 * GIB, 24 * GIB)
    plain, adapted = (plan(shape, tensors, demand, device) for demand in (BF16, replace(BF16, adapters=OF_RANK_64)))
    assert adapted.activations - plain.activations == plain.left - adapted.left == scratch
    reading = DeviceReading("a card", "", "nvml", total=24 * GIB, used=16 * GIB, free=8 * GIB, own=16 * GIB)
    measured = Measured(weights=15 * GIB, activations=GIB)
    before, after = (replan(Estimate(shape, tensors, one), reading, measured) for one in (plain, adapted))
    assert before.weights == after.weights and before.overhead == after.overhead == GIB
    assert after.activations - before.activations == before.left - after.left == scratch
