"""Experts with packed weights, in the place of transformers' modules of stacked ones."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from server.model.quantization.linear import PackedModule, Product
from server.model.quantization.packed_weight import PackedWeight


class QuantizedExperts(nn.Module):
    """The experts of a layer, one below another in two weights: gate and up together, and down."""

    def __init__(
        self, gate_up: PackedWeight, down: PackedWeight, activation: Callable[[Tensor], Tensor], product: Product
    ) -> None:
        super().__init__()
        self.gate_up, self.down = PackedModule(gate_up), PackedModule(down)
        self._inner, self._hidden = down.inputs, gate_up.inputs
        self.act_fn = activation
        self._product = product

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[tokens, hidden], and the experts of each token with their portions -> [tokens, hidden].

        The experts of a token are added in the order of their numbers, whatever other tokens there are.
        """
        gate_up, down = self.gate_up.packed, self.down.packed
        results = torch.zeros_like(hidden_states, dtype=torch.float32)
        for expert in sorted(set(top_k_index.flatten().tolist())):
            token, place = (top_k_index == expert).nonzero(as_tuple=True)
            both = self._product(gate_up.part(expert * 2 * self._inner, 2 * self._inner), hidden_states[token])
            gate, up = both.float().chunk(2, -1)
            opened = (self.act_fn(gate) * up).to(hidden_states.dtype)
            made = self._product(down.part(expert * self._hidden, self._hidden), opened)
            results.index_add_(0, token, made.float() * top_k_weights[token, place, None])
        return results.to(hidden_states.dtype)
