"""Configurations from GGUF files: the fields of config.json, and refusals of what would be computed wrongly."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.config_json import read_config
from server.errors import CannotStart
from server.gguf.config import model_config
from server.gguf.header import TYPES, GgufHeader, GgufTensor, read_header
from server.gguf.weights import stored_weights
from server.memory.headers import read_headers
from server.memory.shape import read_shape
from tests.checkpoints import Kind
from tests.gguf.written import ARCHITECTURES, gguf_checkpoint

F32 = next(block for block in TYPES.values() if block.name == "F32")
BF16 = next(block for block in TYPES.values() if block.name == "BF16")
F16 = next(block for block in TYPES.values() if block.name == "F16")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_configuration_comes_back(kind: Kind) -> None:
    """A size that is read from another key would show as a fault of shapes, a base of rotations as nonsense."""
    folder = gguf_checkpoint(kind)
    original = json.loads((folder / "config.json").read_text())
    rebuilt = read_config(folder / "model.gguf")
    assert rebuilt["rope_parameters"].items() >= {"rope_type": "default", "rope_theta": 10_000.0}.items()
    assert rebuilt["eos_token_id"] == [original["eos_token_id"]] and rebuilt["dtype"] == "bfloat16"
    differing = {"dtype", "eos_token_id", "rope_parameters", "rms_norm_eps"}
    stated = {name: value for name, value in rebuilt.items() if name in original and name not in differing}
    assert stated == {name: original[name] for name in stated} and len(stated) > 9
    assert rebuilt["rms_norm_eps"] == pytest.approx(original["rms_norm_eps"])
    assert read_shape(rebuilt | {"dtype": "float32"}) == read_shape(original)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_plan_counts_what_is_loaded(kind: Kind) -> None:
    folder = gguf_checkpoint(kind)
    counted = sum(tensor.count for tensor in read_headers(folder / "model.gguf"))
    assert counted == sum(tensor.count for tensor in read_headers(folder))


def header_with(architecture: str, entries: dict[str, Any], *tensors: GgufTensor) -> GgufHeader:
    sizes = {
        "embedding_length": 64, "feed_forward_length": 96, "block_count": 2, "context_length": 4096,
        "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-6,
    }  # fmt: skip
    metadata = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in (sizes | entries).items() if value is not ...}
    embedding = GgufTensor("token_embd.weight", BF16, (100, 64), Path("m.gguf"), 0, 12_800)
    return GgufHeader(Path("m.gguf"), metadata, tensors or (embedding,))


def test_scaled_positions_are_those_of_transformers() -> None:
    scaled = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32_768}
    assert model_config(header_with("qwen3", scaled))["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32_768,
    }
    linear = model_config(header_with("qwen3", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}))
    assert linear["rope_parameters"] == {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("architecture", "entries", "reason"),
    [
        ("gemma3", {}, r"architecture 'gemma3', which is not served from GGUF; those served are llama, qwen2, qwen3"),
        ("a\nb", {}, r"architecture 'a\\nb'"),
        ("qwen3", {"block_count": ...}, r"no qwen3\.block_count"),
        ("qwen3", {"block_count": "many"}, r"block_count must be of type int, and is 'many'"),
        ("qwen3", {"attention.head_count": [4, 4]}, r"head_count must be of type int"),
        ("llama", {"rope.dimension_count": 8}, "8 are rotated"),
        ("qwen3", {"attention.value_length": 8}, "values of 8"),
        ("qwen3", {"attention.sliding_window": 1024}, "sliding window of 1024"),
        ("qwen3", {"rope.scaling.type": "longrope"}, "'longrope'"),
        ("qwen3", {"rope.scaling.type": "yarn"}, "scaling.factor"),
    ],
)
def test_what_is_not_served_is_named(architecture: str, entries: dict[str, Any], reason: str) -> None:
    with pytest.raises(CannotStart, match=reason) as caught:
        model_config(header_with(architecture, entries))
    assert "\n" not in str(caught.value)


def test_the_type_is_that_of_the_matrices() -> None:
    """As of a folder: numbers that are stored in a type that is computed in are computed in it."""
    norm = GgufTensor("output_norm.weight", F32, (64,), Path("m.gguf"), 0, 256)
    for block, dtype in ((F32, "float32"), (F16, "float16"), (BF16, "bfloat16")):
        embedding = GgufTensor("token_embd.weight", block, (100, 64), Path("m.gguf"), 0, 100 * 64 * block.num_bytes)
        assert model_config(header_with("qwen3", {}, embedding, norm))["dtype"] == dtype


def test_a_tensor_that_the_model_has_not_is_named() -> None:
    """Factors of each frequency, as of Llama 3.1, or a bias would be left out in silence."""
    embedding = GgufTensor("token_embd.weight", BF16, (100, 64), Path("m.gguf"), 0, 12_800)
    strange = GgufTensor("blk.0.attn_sinks.weight", F32, (4,), Path("m.gguf"), 0, 16)
    with pytest.raises(CannotStart, match=r"'blk\.0\.attn_sinks\.weight', which qwen3 is not known to have"):
        stored_weights(header_with("qwen3", {}, embedding, strange))
    factors = GgufTensor("rope_freqs.weight", F32, (32,), Path("m.gguf"), 0, 128)
    with pytest.raises(CannotStart, match="rope_freqs"):
        stored_weights(header_with("llama", {}, embedding, factors))
    with pytest.raises(CannotStart, match=r"no tensor token_embd\.weight"):
        model_config(header_with("qwen3", {}, strange))


@pytest.mark.parametrize(("shape", "end"), [((64,), "attn_norm"), ((64, 64), "attn_q")])
def test_two_tensors_of_one_weight_are_refused(shape: tuple[int, ...], end: str) -> None:
    """Only gates and ups of experts are joined; `blk.00` is another spelling of `blk.0`."""
    embedding = GgufTensor("token_embd.weight", BF16, (100, 64), Path("m.gguf"), 0, 12_800)
    twice = [GgufTensor(f"blk.{layer}.{end}.weight", F32, shape, Path("m.gguf"), 0, 256) for layer in ("0", "00")]
    stored = stored_weights(header_with("qwen3", {}, embedding, *twice[:1]))
    assert [weight.shape for weight in stored] == [(100, 64), shape]
    with pytest.raises(CannotStart, match=r"do not make one weight: 'blk\.0\..*, 'blk\.00\."):
        [weight.shape for weight in stored_weights(header_with("qwen3", {}, embedding, *twice))]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_tensor_has_its_name_in_transformers(kind: Kind) -> None:
    folder = gguf_checkpoint(kind)
    stored = {weight.name: weight.shape for weight in stored_weights(read_header(folder / "model.gguf"))}
    expected = {tensor.name: tensor.shape for tensor in read_headers(folder) if ".experts." not in tensor.name}
    assert {name: shape for name, shape in stored.items() if ".experts." not in name} == expected
