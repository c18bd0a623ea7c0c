"""Plain decoders load without transformers and compute the same; anything else is left to transformers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.model.batch import Batch, Row, RowSampling
from server.model.layers.decoder import CompactBackbone
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.loading.plain import load_plain, read_plain_config
from server.model.loading.pretrained import load_pretrained
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.drive import BLOCK_SIZE, GREEDY, Stream, prompt_of, run

PLAIN: tuple[Kind, ...] = ("llama", "qwen2", "qwen3")


def nothing(fraction: float) -> None:
    """Ignore progress."""


def config_of(kind: Kind) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((tiny_checkpoint(kind) / "config.json").read_text())
    return fields


def copy_of(kind: Kind, folder: Path, **fields: Any) -> Path:
    shutil.copytree(tiny_checkpoint(kind), folder)
    (folder / "config.json").write_text(json.dumps(config_of(kind) | fields))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", PLAIN)
def test_both_loaders_give_the_same_logits(kind: Kind, dtype: str) -> None:
    """A bias, norm or angle that is read differently would show in the last bit."""
    folder = tiny_checkpoint(kind)
    ours = load_plain(folder, torch_only(dtype), None, nothing, 0.0)
    settings = torch_only(dtype)
    theirs = load_pretrained(folder, settings, torch.device("cpu"), None, nothing, 0.0)
    assert ours is not None and isinstance(ours.backbone, CompactBackbone)
    same = ("dtype", "vocab_size", "max_positions", "kv", "recurrent")
    assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]
    assert ours.weight_bytes == pytest.approx(theirs.weight_bytes, abs=64)  # transformers stores inv_freq twice
    assert torch.equal(*(logits_of(loaded) for loaded in (ours, theirs)))


def torch_only(dtype: str) -> EngineSettings:
    """Settings without the compiled kernels, which round differently."""
    return EngineSettings(device="cpu", dtype=dtype, cpu_isa="torch")  # type: ignore[arg-type]


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    """Logits of the last token of a prompt in two chunks."""
    runner = Runner(loaded, 8, BLOCK_SIZE)
    prompt, sampling = prompt_of(70), RowSampling(GREEDY, 0, [], [])
    runner.launch(Batch((Row(prompt[:48], 0, range(8), 0, None),)))
    logits = runner.launch(Batch((Row(prompt[48:], 48, range(8), 1, sampling),))).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
        {"rope_parameters": None, "rope_theta": None},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"attention_bias": True},
        {"use_sliding_window": True},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"hidden_act": "gelu"},
        {"quantization_config": {"quant_method": "awq"}},
        {"architectures": ["Qwen3ForSequenceClassification"]},
        {"model_type": "qwen3_moe"},
        {"head_dim": None},
        {"tie_word_embeddings": None},
        {"dtype": "float8_e4m3fn", "torch_dtype": None},
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_to_transformers(changes: dict[str, Any]) -> None:
    """Each of these would silently compute something else."""
    assert read_plain_config(config_of("qwen3")) is not None
    assert read_plain_config(config_of("qwen3") | changes) is None


def test_configurations_as_published_before_transformers_5_are_plain() -> None:
    fields = config_of("qwen2")
    rope = fields.pop("rope_parameters")
    fields |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": fields.pop("dtype")}
    fields.pop("head_dim", None)
    config = read_plain_config(fields)
    assert config is not None and config == read_plain_config(config_of("qwen2"))


def test_files_with_other_weights_are_left_to_transformers(tmp_path: Path) -> None:
    """An additional or missing tensor, or one of another size, must not be ignored."""
    folder = copy_of("qwen3", tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    for change in ({name: None}, {"model.more": torch.zeros(2)}, {name: weights[name][:-1].clone()}):
        changed = {key: value for key, value in (weights | change).items() if value is not None}
        save_file(changed, folder / "model.safetensors")
        assert load_plain(folder, torch_only("auto"), None, nothing, 0.0) is None


def test_weights_in_several_files_are_found(tmp_path: Path) -> None:
    folder = copy_of("qwen2", tmp_path / "m")
    weights = sorted(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    save_file(dict(weights[:7]), folder / "model-00001-of-00002.safetensors")
    rest = dict(weights[7:]) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(rest, folder / "model-00002-of-00002.safetensors")
    loaded = load_plain(folder, torch_only("auto"), None, nothing, 0.0)
    whole = load_plain(tiny_checkpoint("qwen2"), torch_only("auto"), None, nothing, 0.0)
    assert loaded is not None and whole is not None
    streams = []
    for one in (loaded, whole):
        streams.append(Stream(prompt_of(30), range(8)))
        run(Runner(one, 8, BLOCK_SIZE), streams[-1:])
    assert streams[0].written == streams[1].written


def test_a_plain_checkpoint_starts_without_importing_transformers() -> None:
    """The import takes two seconds of every start; one import at the top of any module would bring it back."""
    code = (
        "import sys; from pathlib import Path; import server.engine.assemble;"
        "from server.model.loading.loader import load;"
        "from server.settings import EngineSettings;"
        "load(Path(sys.argv[1]), EngineSettings(device='cpu'), lambda fraction: None);"
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_checkpoint("qwen3")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_progress_is_reported_layer_by_layer() -> None:
    fractions: list[float] = []
    load(tiny_checkpoint("qwen3"), torch_only("auto"), fractions.append)
    assert len(fractions) > 2 and fractions == sorted(fractions) and fractions[-1] == 1.0
