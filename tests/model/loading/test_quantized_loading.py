"""Weights of few bits, made while a plain checkpoint loads or read from a quantized one."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.config_json import read_config
from server.errors import CannotStart
from server.memory.headers import read_headers, weight_bytes
from server.memory.shape import read_shape
from server.messages import Sampling
from server.model.loading import pretrained, streaming
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.loading.plain import load_plain
from server.model.loading.pretrained import load_pretrained
from server.model.quantization.linear import multiply_unpacked
from server.model.quantization.packed_weight import PackedWeight
from server.model.quantization.quantize import quantize
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.cpu.test_native import IDS, logits, row
from tests.model.drive import BLOCK_SIZE, Stream, prompt_of, reference, run
from tests.model.quantization.test_formats import Grid, awq, compressed, gptq

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def nothing(fraction: float) -> None:
    """Ignore progress."""


def logits_of(loaded: LoadedModel) -> Tensor:
    """Logits of each token of a prompt."""
    return logits(Runner(loaded, 8, BLOCK_SIZE), row(IDS[:70], 0, range(8)))


def logprob_distance(kind: Kind, loaded: LoadedModel) -> float:
    """The mean distance of the log probabilities of a greedy reply from those of transformers in float32."""
    runner = Runner(loaded, 16, BLOCK_SIZE, num_slots=1)
    how = Sampling(max_tokens=10, temperature=0.0, num_logprobs=0)
    stream = Stream(prompt_of(50), range(8), how, slot=0 if loaded.recurrent else None)
    run(runner, [stream])
    with torch.inference_mode():
        found = reference(kind)(torch.tensor([[*stream.prompt, *stream.written]])).logits[0, 49:-1]
    expected = torch.log_softmax(found, -1)
    distances = [
        abs(entry.logprob - float(expected[place, entry.token_id])) for place, entry in enumerate(stream.logprobs)
    ]
    return sum(distances) / len(distances)


@pytest.mark.parametrize(("quantize", "most"), [("int8", 0.3), ("int4", 4.0)])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_moe", "qwen3_5"])
def test_the_model_stays_close(kind: Kind, quantize: str, most: float) -> None:
    """Needs no package; projections beside experts and linear attention too."""
    settings = EngineSettings(device="cpu", quantize=quantize)  # type: ignore[arg-type]
    loaded = load(tiny_checkpoint(kind), settings, nothing)
    assert logprob_distance(kind, loaded) < most


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_moe", "qwen3_next"])
def test_it_takes_the_memory_that_is_planned(kind: Kind, quantize: str) -> None:
    folder = tiny_checkpoint(kind)
    loaded = load(folder, EngineSettings(device="cpu", dtype="bfloat16", quantize=quantize), nothing)  # type: ignore[arg-type]
    tied = read_shape(read_config(folder)).tied
    planned = weight_bytes(read_headers(folder), dtype="bfloat16", quantize=quantize, tied=tied)
    assert planned == pytest.approx(loaded.weight_bytes, rel=0.01)


@pytest.mark.parametrize("width", [8, 4])
def test_experts_are_quantized(width: int, tmp_path: Path) -> None:
    """Stacked as they are read, they stayed plain: most of a mixture's weights."""
    sizes: Any = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts: Any = {
        "head_dim": 32,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    }
    config = transformers.Qwen3MoeConfig(**sizes, **experts, vocab_size=1000)
    torch.manual_seed(0)
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    settings = EngineSettings(device="cpu", quantize=f"int{width}")  # type: ignore[arg-type]
    loaded, plain = (load(tmp_path, one, nothing) for one in (settings, EngineSettings(device="cpu")))
    planned = weight_bytes(read_headers(tmp_path), dtype="float32", quantize=f"int{width}", tied=False)
    assert planned == pytest.approx(loaded.weight_bytes, rel=0.01) and planned < 0.6 * plain.weight_bytes
    found, expected = (logits_of(one) for one in (loaded, plain))
    assert (found - expected).abs().mean() < (0.02 if width == 8 else 0.2) * expected.abs().mean()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_both_loaders_make_the_same_weights(quantize: str) -> None:
    settings = EngineSettings(device="cpu", cpu_isa="torch", quantize=quantize)  # type: ignore[arg-type]
    folder = tiny_checkpoint("qwen3")
    ours = load_plain(folder, settings, None, nothing, 0.0)
    theirs = load_pretrained(folder, settings, torch.device("cpu"), None, nothing, 0.0)
    assert ours is not None and ours.weight_bytes == pytest.approx(theirs.weight_bytes, abs=64)
    assert torch.equal(*(logits_of(loaded) for loaded in (ours, theirs)))


def test_no_two_copies_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight is freed before the next is read, by transformers too; a list of layers kept them all until the end."""
    weights: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def counted(weight: Tensor, width: int, name: str, kernels: None) -> PackedWeight:
        weights.append(weakref.ref(weight))
        alive.append(sum(ref() is not None for ref in weights))
        return quantize(weight, width, name, kernels)

    monkeypatch.setattr(streaming, "quantize", counted)
    load_pretrained(
        tiny_checkpoint("qwen2"),
        EngineSettings(device="cpu", quantize="int4"),
        torch.device("cpu"),
        None,
        nothing,
        0.0,
    )
    assert alive == [1] * 21
    alive.clear()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint("qwen2"))
    pretrained._quantize_rest(model, streaming.StreamingConfig(4, None, multiply_unpacked, experts=True))
    assert max(alive) <= 2 and len(alive) == 21


FORMATS: dict[str, Callable[[Grid], tuple[dict[str, Any], dict[str, Tensor]]]] = {
    "gptq": gptq,
    "awq": awq,
    "compressed-tensors": lambda grid: compressed(grid, False),
}


def quantized(kind: Kind, folder: Path, form: str) -> tuple[Path, Path]:
    """A checkpoint whose projections have this form, and one with the weights they stand for."""
    shutil.copytree(tiny_checkpoint(kind), folder / "packed")
    shutil.copytree(tiny_checkpoint(kind), folder / "plain")
    stored = load_file(folder / "packed" / "model.safetensors")
    multiplied = dict(stored)
    settings: dict[str, Any] = {}
    for name in [name for name in stored if name.endswith(".weight") and name.split(".")[-2] in MODULES]:
        grid = Grid(4, shape=tuple(stored[name].shape), group=32)
        grid.scales *= 0.02
        settings, parts = FORMATS[form](grid)
        multiplied[name] = grid.weights().float()
        del stored[name]
        stored |= {f"{name.removesuffix('weight')}{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(stored, folder / "packed" / "model.safetensors", {"format": "pt"})
    save_file(multiplied, folder / "plain" / "model.safetensors", {"format": "pt"})
    path = folder / "packed" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return folder / "packed", folder / "plain"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_quantized_checkpoints_load_without_their_packages(kind: Kind, form: str, tmp_path: Path) -> None:
    """Biases stay; the weights that no program has quantized stay as they are."""
    packed, plain = (load(folder, EngineSettings(device="cpu"), nothing) for folder in quantized(kind, tmp_path, form))
    assert packed.weight_bytes < plain.weight_bytes
    torch.testing.assert_close(logits_of(packed), logits_of(plain), atol=1e-2, rtol=1e-2)
    if kind == "qwen2":  # of tied embeddings with short rows the kernels keep a second copy
        planned = weight_bytes(read_headers(tmp_path / "packed"), dtype="float32", quantize="none", tied=False)
        assert planned == pytest.approx(packed.weight_bytes, rel=0.02)


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path: Path) -> None:
    folder, _ = quantized("qwen3", tmp_path, "gptq")
    with pytest.raises(CannotStart, match="already, with gptq"):
        load(folder, EngineSettings(device="cpu", quantize="int4"), nothing)


def test_float16_checkpoints_are_computed_in_bfloat16_by_the_kernels(tmp_path: Path) -> None:
    """Those of GPTQ and AWQ say float16, which no kernels compute: torch would, at a fraction of the speed."""
    folder, _ = quantized("qwen3", tmp_path, "awq")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float16"}))
    loaded = load(folder, EngineSettings(device="cpu"), nothing)
    assert loaded.dtype == (torch.float16 if loaded.kernels is None else torch.bfloat16)
    assert load(folder, EngineSettings(device="cpu", dtype="float16"), nothing).dtype == torch.float16
