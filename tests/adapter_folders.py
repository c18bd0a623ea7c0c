"""Adapters made at test time: PEFT's files with random numbers, for any checkpoint in safetensors."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from server.adapter_folder import CONFIG, WEIGHTS, PartName, weight_part
from server.model.adapters.weights import MODULES

ATTENTION_AND_MLP = MODULES[:7]
LINEAR_ATTENTION = MODULES[7:]


def weights_of(checkpoint: Path) -> Iterator[tuple[str, PartName, list[int]]]:
    """Names and shapes of a checkpoint's linear layers, without `.weight`."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 the file is no mapping
                part = weight_part(name)
                if part is not None and part.module in MODULES:
                    yield name.removesuffix(".weight"), part, file.get_slice(name).get_shape()


def write_adapter(
    folder: Path,
    checkpoint: Path,
    *,
    seed: int = 0,
    rank: int = 8,
    modules: Collection[str] = ATTENTION_AND_MLP,
    dtype: torch.dtype = torch.float32,
    strength: float = 0.3,
    **fields: Any,
) -> Path:
    """A LoRA adapter of this checkpoint; `strength` is how much it changes, `fields` go to its configuration."""
    generator = torch.Generator().manual_seed(seed)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "bias": "none",
        "use_dora": False,
        **fields,
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, part, (outputs, inputs) in weights_of(checkpoint):
        if part.module in modules:
            own = int(next((r for end, r in config.get("rank_pattern", {}).items() if name.endswith(end)), rank))
            down = torch.randn((own, inputs), generator=generator) / inputs**0.5
            up = strength * torch.randn((outputs, own), generator=generator) / own**0.5
            for factor, values in (("A", down), ("B", up)):
                tensors[f"base_model.model.{name}.lora_{factor}.weight"] = values.to(dtype)
    assert tensors, "the checkpoint has none of these modules"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS)
    return folder
