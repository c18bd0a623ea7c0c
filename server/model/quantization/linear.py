"""Linear layers and embeddings with packed weights, in the place of torch's."""

import logging
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.model.quantization.packed_weight import PANEL, PackedWeight
from server.settings import EngineSettings

log = logging.getLogger(__name__)

UNPACKED_AT_A_TIME = 1 << 22  # weights that torch's product unpacks, in float32
# A packed weight and [tokens, inputs] -> [tokens, outputs].
Product = Callable[[PackedWeight, Tensor], Tensor]
# A packed weight and some ids of outputs -> their weights, [ids, inputs] in float32.
LookUp = Callable[[PackedWeight, Tensor], Tensor]


def warn_of_unpacking() -> None:
    """Log why a CPU without kernels is slow with such weights."""
    log.warning("there are no kernels for this CPU: torch unpacks weights of few bits for every product, slowly")


def warn_of_slow_products() -> None:
    """Log what few bits cost on a GPU."""
    log.warning("on a GPU weights of few bits save memory, not time: bfloat16 was many times as fast on an H200")


def multiply_unpacked(packed: PackedWeight, hidden: Tensor) -> Tensor:
    """The product by torch, which unpacks some outputs at a time: for devices without kernels of ours."""
    step = max(PANEL, UNPACKED_AT_A_TIME // packed.inputs // PANEL * PANEL)
    parts = (packed.unpack(first, step).to(hidden.dtype) for first in range(0, packed.outputs, step))
    return torch.cat([functional.linear(hidden, part) for part in parts], -1)


class PackedModule(nn.Module):
    """A module that holds one packed weight, as buffers, so that it is counted and moved with the model."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self._form: dict[str, Any] = {one.name: getattr(packed, one.name) for one in fields(packed)}
        for name, part in packed.tensors().items():
            self.register_buffer(f"_{name}", part)  # transformers empties those that are not persistent
            del self._form[name]

    @property
    def packed(self) -> PackedWeight:
        """The weight, on the device where the module is."""
        own: dict[str, Any] = {name.removeprefix("_"): part for name, part in self.named_buffers(recurse=False)}
        return PackedWeight(**self._form, **own)

    def round_inputs_to(self, bits: int) -> None:
        """Set the weight's `input_bits`."""
        self._form["input_bits"] = bits


def round_inputs(model: nn.Module, settings: EngineSettings) -> None:
    """Set what the inputs of all quantized layers are rounded to on a CPU, before kernels read the layers."""
    by_default = 8 if settings.quantize == "int4" else 16
    bits = by_default if settings.activation_bits == "auto" else int(settings.activation_bits)
    for module in model.modules():
        if isinstance(module, PackedModule):
            module.round_inputs_to(bits)


class QuantizedLinear(PackedModule):
    """A linear layer."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None, product: Product = multiply_unpacked) -> None:
        super().__init__(packed)
        self.in_features, self.out_features = packed.inputs, packed.outputs
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._product = product

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        flat = self._product(self.packed, hidden.reshape(-1, self.in_features))
        if self.bias is not None:
            flat = flat + self.bias
        return flat.to(hidden.dtype).view(*hidden.shape[:-1], self.out_features)


class QuantizedEmbedding(PackedModule):
    """An embedding, often of the same weight as the output head."""

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, look_up: LookUp = PackedWeight.rows) -> None:
        super().__init__(packed)
        self._dtype = dtype
        self._look_up = look_up

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [...] -> rows [..., inputs]."""
        rows = self._look_up(self.packed, ids.flatten())
        return rows.to(self._dtype).view(*ids.shape, -1)
