"""Checkpoints in fine-grained FP8, as Qwen publishes them: `quant_method: fp8`, a scale for each 128 x 128 block."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from server.memory.headers import read_headers, weight_bytes
from server.messages import Sampling
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.drive import BLOCK_SIZE, Stream, prompt_of, run

BLOCK = 128
LARGEST = 448.0  # of float8_e4m3fn


def write_float8(kind: Kind, folder: Path) -> Path:
    """The tiny checkpoint with float8 projections; in the subfolder `plain` the dequantized one."""
    source = tiny_checkpoint(kind)
    stored, dequantized = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        stored[name] = dequantized[name] = weight
        if name.endswith(("_proj.weight", "in_proj_qkv.weight", "in_proj_z.weight")) and weight.dim() == 2:
            rows, columns = (-(-size // BLOCK) for size in weight.shape)
            blocks = weight.view(rows, weight.shape[0] // rows, columns, weight.shape[1] // columns)
            scales = blocks.abs().amax((1, 3)) / LARGEST
            small = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            stored[name], stored[f"{name}_scale_inv"] = small.view(weight.shape), scales
            dequantized[name] = (small.float() * scales[:, None, :, None]).view(weight.shape)
    config = json.loads((source / "config.json").read_text())
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    quantization["modules_to_not_convert"] = ["lm_head"]
    for target, tensors, fields in (
        (folder, stored, {"quantization_config": quantization}),
        (folder / "plain", dequantized, {}),
    ):
        shutil.copytree(source, target)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_5", "qwen3_5_moe"])
def test_float8_weights_are_dequantized_on_a_cpu(kind: Kind, tmp_path: Path) -> None:
    folder = write_float8(kind, tmp_path / "m")
    loaded = load(folder, EngineSettings(device="cpu", dtype="float32"), lambda fraction: None)
    stream = Stream(prompt_of(40), range(4), Sampling(max_tokens=10, temperature=0.0), slot=0)
    run(Runner(loaded, 8, BLOCK_SIZE, num_slots=1), [stream])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "plain").eval()
    ids = torch.tensor([list(stream.prompt)])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, eos_token_id=None
    )
    assert stream.written == output[0, 40:].tolist()


@pytest.mark.parametrize("kind", ["qwen3_5", "qwen3_5_moe"])
def test_the_estimate_depends_on_whether_float8_is_kept(kind: Kind, tmp_path: Path) -> None:
    """On a CPU dequantized weights take twice their stored size."""
    folder = write_float8(kind, tmp_path / "m")
    stored, plain = read_headers(folder), read_headers(folder / "plain")
    tied = kind == "qwen3_5"

    def count(tensors: tuple[object, ...], keeps: bool) -> int:
        return weight_bytes(tensors, dtype="bfloat16", quantize="none", tied=tied, keeps_float8=keeps)  # type: ignore[arg-type]

    assert count(stored, keeps=False) == count(plain, keeps=True)
    projections = sum(tensor.count for tensor in stored if tensor.dtype == "F8_E4M3")
    scales = sum(2 * tensor.count for tensor in stored if tensor.name.endswith("_scale_inv"))
    assert count(stored, keeps=True) == count(plain, keeps=True) - projections + scales
