"""Weights of a LoRA adapter's file, checked against the linear layers of the model that they are for."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from server.adapter_folder import (
    MAX_RANK,
    WEIGHTS,
    AdapterConfig,
    PartName,
    read_adapter_config,
    tensor_part,
)
from server.errors import CannotStart

# Linear layers that adapters may change, by their names in a decoder's layer.
MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    "linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba", "linear_attn.in_proj_qkv", "linear_attn.in_proj_z",
    "linear_attn.in_proj_b", "linear_attn.in_proj_a", "linear_attn.out_proj",
)  # fmt: skip
DTYPES = ("F32", "BF16", "F16")
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class LayerSize:
    """Inputs and outputs of a linear layer."""

    inputs: int
    outputs: int


Targets = Mapping[PartName, LayerSize]


@dataclass(frozen=True, slots=True)
class Factors:
    """One layer's factors: its outputs change by `scale * up @ down @ inputs`."""

    down: Tensor  # A [rank, inputs]
    up: Tensor  # B [outputs, rank]
    scale: float

    @property
    def rank(self) -> int:
        """Numbers between the factors."""
        return self.down.shape[0]

    def scaled_up(self, dtype: torch.dtype) -> Tensor:
        """B with the scale multiplied in."""
        return (self.up.float() * self.scale).to(dtype)


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """All factors of an adapter, as its file has them. Adapters with equal digests are equal."""

    factors: Mapping[PartName, Factors]
    digest: bytes

    @property
    def max_rank(self) -> int:
        """The greatest rank of its layers."""
        return max(one.rank for one in self.factors.values())


def find_targets(decoder: Any) -> Targets:
    """The linear layers of a decoder that adapters may change; before they are packed or merged."""
    found: dict[PartName, LayerSize] = {}
    for index, layer in enumerate(decoder.layers):
        for module in MODULES:
            parent, _, own = module.partition(".")
            linear = getattr(getattr(layer, parent, None), own, None)
            sizes = getattr(linear, "in_features", None), getattr(linear, "out_features", None)
            if isinstance(sizes[0], int) and isinstance(sizes[1], int):
                found[PartName(index, module)] = LayerSize(sizes[0], sizes[1])
    return found


def read_adapter(folder: Path, targets: Targets | None, dtype: torch.dtype) -> AdapterWeights:
    """The adapter in this folder, for a model of this type. Raises CannotStart if it is broken, or of another model.

    `targets` are that model's linear layers; None leaves it to the caller to compare them.
    """
    config = read_adapter_config(folder)
    try:
        factors = dict(_read_factors(config, targets, dtype))
    except (OSError, SafetensorError) as error:
        raise CannotStart(f"cannot read {folder / WEIGHTS}: {error}") from error
    if not factors:
        raise CannotStart(f"{folder / WEIGHTS} holds no LoRA weights")
    return AdapterWeights(factors, _digest_of(factors))


def _digest_of(factors: Mapping[PartName, Factors]) -> bytes:
    """Of the numbers themselves: the files may have been replaced since they were read."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in sorted(factors, key=str):
        one = factors[part]
        for factor in (one.down, one.up):
            digest.update(f"{part} {one.scale!r} {factor.dtype} {list(factor.shape)}\n".encode())
            digest.update(factor.view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _read_factors(
    config: AdapterConfig, targets: Targets | None, dtype: torch.dtype
) -> Iterator[tuple[PartName, Factors]]:
    path = config.folder / WEIGHTS
    with safe_open(path, framework="pt") as file:
        names: dict[PartName, dict[str, str]] = {}
        for name in file.keys():  # noqa: SIM118 the file is no mapping
            found = tensor_part(name)
            if found is None or found[0].module not in MODULES:
                raise CannotStart(_foreign(path, name))
            names.setdefault(found[0], {})[found[1]] = name
        for part, own in names.items():
            if missing := {"A", "B"} - own.keys():
                raise CannotStart(f"{path} holds only one factor of {part}: lora_{missing.pop()} is missing")
            if targets is not None and part not in targets:
                raise CannotStart(f"{path} is an adapter of another model: this one has no {part}")
            down, up = (file.get_slice(own[side]) for side in ("A", "B"))
            rank = config.rank_of(f"model.{part}")
            if rank > MAX_RANK:
                raise CannotStart(f"{path} has a rank of {rank} for {part}; {MAX_RANK} is the most")
            size = _size_of(down.get_shape(), up.get_shape()) if targets is None else targets[part]
            for stored, expected in ((down, [rank, size.inputs]), (up, [size.outputs, rank])):
                _check_factor(path, part, stored, expected)
            # Copies: what is mapped changes with the file.
            factors = Factors(down[:].clone(), up[:].clone(), config.scale_of(f"model.{part}", rank))
            for factor in (factors.down.to(dtype), factors.scaled_up(dtype)):
                if not bool(factor.isfinite().all()):
                    raise CannotStart(f"{path} holds numbers of {part} that are not finite, or not in {dtype}")
            yield part, factors


def _size_of(down: Sequence[int], up: Sequence[int]) -> LayerSize:
    """The size of the layer that factors of these shapes are for; 0 where they are no matrices."""
    return LayerSize(down[-1] if down else 0, up[0] if up else 0)


def _foreign(path: Path, name: str) -> str:
    what = name[:120]
    for mark, kind in (
        ("expert", "experts"), ("lora_magnitude", "DoRA"), ("embed", "embeddings"), ("lm_head", "the output head"),
        (".bias", "biases"),
    ):  # fmt: skip
        if mark in name:
            return f"{path} holds {what}: adapters that change {kind} are not served"
    return f"{path} holds {what}, which is no factor of a layer that adapters may change"


def _check_factor(path: Path, part: PartName, factor: Any, expected: list[int]) -> None:
    if factor.get_dtype() not in DTYPES:
        raise CannotStart(f"{path} holds {part} as {factor.get_dtype()}; adapters are read as {', '.join(DTYPES)}")
    if list(factor.get_shape()) != expected:
        raise CannotStart(
            f"{path} is an adapter of another model: its factors of {part} have a shape of {factor.get_shape()}, "
            f"and this model's would have {expected}"
        )
