"""Quantized experts compute what transformers' experts compute with the same weights, whatever the batch."""

from ctypes import CDLL

import pytest
import torch
import transformers
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from server.model.cpu.library import available_isas, open_library
from server.model.cpu.quantized import choose_product
from server.model.quantization.experts import QuantizedExperts
from server.model.quantization.quantize import quantize

NUM_EXPERTS, HIDDEN, INNER = 6, 96, 64


@pytest.mark.parametrize("kernels", [None, *map(open_library, available_isas())])
def test_experts_equal_those_of_transformers(kernels: CDLL | None) -> None:
    """A slice of another expert's outputs, or portions of another token; one token's result alone and among others."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(num_experts=NUM_EXPERTS, hidden_size=HIDDEN, moe_intermediate_size=INNER)
    theirs = Qwen3MoeExperts(config).requires_grad_(False)
    packed = []
    for weight in (theirs.gate_up_proj, theirs.down_proj):
        torch.nn.init.normal_(weight, 0.0, 0.1)
        packed.append(quantize(weight.flatten(0, 1), 4))
        weight.copy_(packed[-1].unpack().view(weight.shape))
    ours = QuantizedExperts(packed[0], packed[1], theirs.act_fn, choose_product(kernels))
    hidden, portions = torch.randn(40, HIDDEN), torch.rand(40, 2)
    chosen = torch.rand(40, NUM_EXPERTS).topk(2).indices
    found = ours(hidden, chosen, portions)
    torch.testing.assert_close(found, theirs(hidden, chosen, portions), atol=1e-3, rtol=1e-3)
    if kernels is not None:
        for token in (0, 17, 39):
            own = slice(token, token + 1)
            assert torch.equal(ours(hidden[own], chosen[own], portions[own]), found[own])
