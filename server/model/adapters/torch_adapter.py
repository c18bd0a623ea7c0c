"""Adapters computed by torch, beside the products of the layers that they change."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.adapter_folder import PartName
from server.model.adapters.step import StepAdapters
from server.model.adapters.weights import MODULES, AdapterWeights


class TorchAdapter:
    """An adapter's factors on a model's device: A [rank, inputs], and B [outputs, rank] with its scale."""

    def __init__(self, weights: AdapterWeights, dtype: torch.dtype, device: torch.device) -> None:
        self.max_rank = weights.max_rank
        self.factors: Mapping[PartName, tuple[Tensor, Tensor]] = {
            part: (_copy(one.down, dtype, device), _copy(one.scaled_up(dtype), dtype, device))
            for part, one in weights.factors.items()
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of its factors."""
        return sum(one.numel() * one.element_size() for pair in self.factors.values() for one in pair)


def _copy(factor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return factor.to(device=device, dtype=dtype, copy=True).contiguous()


def add_share(adapters: StepAdapters, part: PartName, inputs: Tensor, outputs: Tensor) -> None:
    """Add to the outputs [num_tokens, outputs] of one layer, in place, what the tokens' adapters add to them.

    `inputs` [num_tokens, inputs] are the layer's own. Outputs may be a slice of those of several layers.
    """
    for run in adapters.runs:
        assert isinstance(run.adapter, TorchAdapter), "adapters are in torch's form"
        factors = run.adapter.factors.get(part)
        if factors is not None:
            down, up = factors
            low_rank = functional.linear(inputs[run.first : run.end], down)
            outputs[run.first : run.end] += functional.linear(low_rank, up)


@dataclass(frozen=True, slots=True)
class LayerAdapters:
    """The adapters of a step's tokens, at one layer."""

    step: StepAdapters
    layer: int

    def window(self, first: int, count: int) -> "LayerAdapters":
        """As `StepAdapters.window`."""
        return LayerAdapters(self.step.window(first, count), self.layer)

    def add(self, inputs: Tensor, outputs: Tensor, sizes: Mapping[str, int]) -> None:
        """As `add_share`, for linear layers of these inputs; `sizes`: of their outputs, one behind the other."""
        begin = 0
        for module, size in sizes.items():
            add_share(self.step, PartName(self.layer, module), inputs, outputs[:, begin : begin + size])
            begin += size


class AdapterHooks:
    """Adapters in modules that others compute with: hooks on each linear layer, of one step at a time.

    Nothing is hooked before the first adapter, since a hook costs as much as a small operation.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._is_hooked = False
        self._step: StepAdapters | None = None

    def prepare(self) -> None:
        """Hook the layers, once."""
        if self._is_hooked:
            return
        self._is_hooked = True
        for index, layer in enumerate(self._decoder.layers):
            for module in MODULES:
                parent, _, own = module.partition(".")
                owner = getattr(layer, parent, None)
                owner = getattr(owner, "mixer", owner)  # of a RowwiseMixer
                linear = getattr(owner, own, None)
                if isinstance(linear, nn.Module):
                    linear.register_forward_hook(self._hook(PartName(index, module)))

    @contextmanager
    def using(self, step: StepAdapters | None) -> Iterator[None]:
        """Compute inside with the adapters of these tokens."""
        before, self._step = self._step, step
        try:
            yield
        finally:
            self._step = before

    @contextmanager
    def window(self, first: int, count: int) -> Iterator[None]:
        """Compute inside with those of the tokens `first .. first + count` alone."""
        with self.using(None if self._step is None else self._step.window(first, count)):
            yield

    def _hook(self, part: PartName) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            if self._step is not None:
                add_share(self._step, part, _flat(inputs[0]), _flat(outputs))

        return add


def _flat(batched: Tensor) -> Tensor:
    """[1, num_tokens, size] or [num_tokens, 1, size] -> a view [num_tokens, size]."""
    return batched[0] if batched.shape[0] == 1 else batched[:, 0]
