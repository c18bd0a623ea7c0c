"""Adapters in the format of the peft library: adapter_config.json and adapter_model.safetensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.adapter.network import GROUPS, Group, Network, module_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def write_adapter(network: Network, folder: Path) -> None:
    """Write the network's adapter, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in _tensors(network).items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": network.rank,
        "lora_alpha": network.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(name for names in GROUPS for name in names),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_sizes(folder: Path) -> tuple[int, float]:
    """Rank and alpha of an adapter."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config["r"], config["lora_alpha"]


def read_adapter(network: Network, folder: Path) -> None:
    """Load an adapter of the same rank and alpha into the network. Raises ValueError for another one."""
    if read_sizes(folder) != (network.rank, network.alpha):
        raise ValueError(f"{folder} has rank and alpha {read_sizes(folder)}, not {network.rank} and {network.alpha}")
    stored = load_file(folder / WEIGHTS)
    own = _tensors(network)
    if stored.keys() != own.keys():
        raise ValueError(f"{folder} adapts other modules")
    for name, tensor in own.items():
        tensor.copy_(stored[name])  # a view of the network's own


def _tensors(network: Network) -> dict[str, Tensor]:
    """A and B of every projection under peft's names, as views."""
    return {
        f"base_model.model.model.layers.{layer}.{module_of(name)}.lora_{kind}.weight": tensor
        for layer, groups in enumerate(network.groups)
        for group in groups
        for number, name in enumerate(group.names)
        for kind, tensor in _pair(group, number).items()
    }


def _pair(group: Group, number: int) -> dict[str, Tensor]:
    first, last = group.spans[number]
    return {"A": group.a[number * group.rank : (number + 1) * group.rank], "B": group.b[first:last]}
