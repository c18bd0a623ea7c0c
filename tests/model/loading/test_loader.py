"""Checkpoints that cannot be served are refused with a one-line reason; the others are loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.errors import CannotStart
from server.memory.headers import read_headers
from server.messages import Sampling
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.drive import BLOCK_SIZE, Stream, generate, prompt_of, reference, run
from tests.published import write_published


def nothing(fraction: float) -> None:
    """Ignore progress."""


def changed(kind: Kind, folder: Path, **fields: Any) -> Path:
    """A copy of the checkpoint with other fields in config.json."""
    shutil.copytree(tiny_checkpoint(kind), folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(CannotStart) as caught:
        load(folder, EngineSettings(device="cpu", **settings), nothing)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path)
    shutil.copy(tiny_checkpoint("qwen3") / "config.json", tmp_path)
    assert "safetensors" in refusal(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    assert "config.json" in refusal(changed("qwen3", tmp_path / "m", model_type="qwen99"))


def test_a_layer_type_that_is_not_computed_is_named(tmp_path: Path) -> None:
    types = ["full_attention", "sliding_attention", "full_attention"]
    folder = changed("qwen2", tmp_path / "m", use_sliding_window=True, sliding_window=8, layer_types=types)
    assert "sliding_attention" in refusal(folder)


def test_a_quantized_checkpoint_names_the_package_it_needs(tmp_path: Path) -> None:
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert "bitsandbytes" in refusal(changed("qwen3", tmp_path / "m", quantization_config=quantization))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = changed("qwen3", tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 no header here")
    assert "cannot load" in refusal(folder)


def rewritten(kind: Kind, folder: Path, rename: Callable[[str], str | None]) -> Path:
    """A copy of the checkpoint whose tensors have other names, or are left out where `rename` gives None."""
    shutil.copytree(tiny_checkpoint(kind), folder)
    (path,) = folder.glob("*.safetensors")
    tensors = {new: tensor for name, tensor in load_file(path).items() if (new := rename(name)) is not None}
    save_file(tensors, path, {"format": "pt"})
    return folder


LOST = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "qwen3_5"])
def test_a_missing_tensor_is_named(kind: Kind, tmp_path: Path) -> None:
    """It was served, with random numbers in its place."""
    said = refusal(rewritten(kind, tmp_path / "m", lambda name: None if name.endswith(LOST) else name))
    assert "holds no weights for" in said and LOST in said and "more" not in said


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_5"])
def test_tensors_under_an_unknown_prefix_are_missing(kind: Kind, tmp_path: Path) -> None:
    said = refusal(rewritten(kind, tmp_path / "m", lambda name: f"wrapped.{name}"))
    assert "holds no weights for" in said and "more" in said and "it holds wrapped." in said


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_5"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "_orig_mod.base_model.model."])
def test_known_prefixes_of_wrapped_models_are_taken_off(kind: Kind, prefix: str, tmp_path: Path) -> None:
    folder = rewritten(kind, tmp_path / "m", lambda name: prefix + name)
    runner = Runner(load(folder, EngineSettings(device="cpu"), nothing), 8, BLOCK_SIZE, num_slots=1)
    stream = Stream(prompt_of(20), range(4), Sampling(max_tokens=8, temperature=0.0), slot=0)
    run(runner, [stream])
    assert stream.written == generate(kind, stream.prompt, 8)
    assert {tensor.name for tensor in read_headers(folder)} == {
        tensor.name for tensor in read_headers(tiny_checkpoint(kind))
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "__import__('os').system('id')"},
        {"dtype": ["float32"]},
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": 0},
        {"rope_parameters": {"rope_type": "nowhere", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "yarn", "factor": "x"}},
        {"quantization_config": {"quant_method": []}},
        {"text_config": {"hidden_size": []}},
    ],
    ids=str,
)
def test_a_configuration_of_another_kind_is_refused_in_one_line(fields: dict[str, Any], tmp_path: Path) -> None:
    """It was an AttributeError of torch, or a TypeError somewhere inside transformers."""
    folder = changed("qwen3", tmp_path / "m", **fields)
    assert "config.json" in refusal(folder) or str(folder) in refusal(folder)


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CannotStart, match="cuda"):
        load(tiny_checkpoint("qwen3"), EngineSettings(device="cuda"), nothing)


def test_progress_ends_at_one_and_never_decreases() -> None:
    fractions: list[float] = []
    load(tiny_checkpoint("qwen3"), EngineSettings(device="cpu"), fractions.append)
    assert fractions[-1] == 1.0 and fractions == sorted(fractions)


def test_the_loaded_model_reports_its_sizes() -> None:
    model = load(tiny_checkpoint("qwen2"), EngineSettings(device="cpu"), nothing)
    elements = sum(weight.numel() for weight in reference("qwen2").parameters())
    assert model.weight_bytes == pytest.approx(4 * elements, rel=0.01)
    assert (model.vocab_size, model.max_positions, model.dtype) == (151_936, 4096, torch.float32)
    assert (model.kv.kv_heads, model.kv.head_dim, model.kv.layer_indices) == (2, 16, (0, 1, 2))


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe"])
def test_the_text_part_of_a_conditional_generation_checkpoint_is_served(kind: Kind, tmp_path: Path) -> None:
    """As Qwen3.5 is published: text below `model.language_model`, a vision tower and an MTP head beside it."""
    folder = write_published(kind, tmp_path / "m")
    runner = Runner(load(folder, EngineSettings(device="cpu"), nothing), 8, BLOCK_SIZE, num_slots=1)
    stream = Stream(prompt_of(20), range(4), Sampling(max_tokens=8, temperature=0.0), slot=0)
    run(runner, [stream])
    assert stream.written == generate(kind, stream.prompt, 8)
