"""Packed layers compute what the layers they replace compute, and keep one copy of the weights."""

import pytest
import torch
from torch import nn

from server.messages import Sampling
from server.model.layers.packed_linear import (
    MergedProjection,
    PackedLinear,
    ProjectionSlice,
    needs_packing,
    pack_linears,
)
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.checkpoints import KINDS, Kind, tiny_checkpoint
from tests.model.drive import BLOCK_SIZE, Stream, prompt_of, reference, run


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)


@pytest.mark.parametrize("tokens", [1, 2, 5, 40, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_equals_the_plain_one(tokens: int, bias: bool) -> None:
    plain = linear(96, 200, bias=bias)
    hidden = torch.randn(1, tokens, 96, dtype=torch.bfloat16)
    with torch.inference_mode():
        exact = nn.functional.linear(
            hidden.float(), plain.weight.float(), None if plain.bias is None else plain.bias.float()
        )
        torch.testing.assert_close(PackedLinear([plain])(hidden).float(), exact, atol=0.02, rtol=0.02)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(64, 96, bias=False), linear(64, 96, bias=False)
        self.down_proj = linear(96, 64, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def test_merged_projections_share_one_product_and_keep_no_tensors() -> None:
    model, hidden = Mlp(), torch.randn(1, 7, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        before = model(hidden)
        pack_linears(model)
        assert isinstance(model.gate_proj, MergedProjection) and isinstance(model.up_proj, ProjectionSlice)
        torch.testing.assert_close(model(hidden), before, atol=0.02, rtol=0.05)
    assert isinstance(model.down_proj, PackedLinear if needs_packing(linear(1, 1, bias=False).weight) else nn.Linear)
    assert model.gate_proj._slices == [] and model.gate_proj._input is None


def test_a_later_projection_called_with_another_input_is_an_error() -> None:
    model = Mlp()
    pack_linears(model)
    with torch.inference_mode():
        model.gate_proj(torch.randn(1, 2, 64, dtype=torch.bfloat16))
        with pytest.raises(AssertionError, match="one input"):
            model.up_proj(torch.randn(1, 2, 64, dtype=torch.bfloat16))


def test_float32_projections_are_merged_and_other_layers_are_unchanged() -> None:
    model, hidden = Mlp().float(), torch.randn(1, 7, 64)
    with torch.inference_mode():
        before = model(hidden)
        pack_linears(model)
        torch.testing.assert_close(model(hidden), before)
    assert isinstance(model.gate_proj, MergedProjection) and isinstance(model.down_proj, nn.Linear)
    assert model.gate_proj.packed.packed_bytes() == 2 * 64 * 96 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_each_architecture_in_bf16_stays_close_to_float32(kind: Kind) -> None:
    """Every architecture calls projections in the assumed order. Routers may switch experts, so most must be close."""
    model = load(tiny_checkpoint(kind), EngineSettings(device="cpu", dtype="bfloat16"), lambda fraction: None)
    runner = Runner(model, 16, BLOCK_SIZE, num_slots=1)
    how = Sampling(max_tokens=12, temperature=0.0, num_logprobs=0)
    stream = Stream(prompt_of(50, 1), range(8), how, slot=0)
    run(runner, [stream])
    with torch.inference_mode():
        logits = reference(kind)(torch.tensor([[*stream.prompt, *stream.written]])).logits[0, 49:-1]
    expected = torch.log_softmax(logits, -1)
    differences = sorted(
        abs(entry.logprob - float(expected[place, entry.token_id])) for place, entry in enumerate(stream.logprobs)
    )
    assert differences[len(differences) // 2] < 0.4
