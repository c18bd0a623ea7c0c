"""Quantization without calibration: what it loses, what it takes, and weights that it must not break on."""

from ctypes import CDLL

import pytest
import torch

from server.config_json import can_be_packed, is_quantizable, is_quantizable_expert, quantized_bytes
from server.errors import CannotStart
from server.model.cpu.library import available_isas, open_library
from server.model.quantization.packed_weight import PackedWeight
from server.model.quantization.quantize import quantize

KERNELS = [None, *map(open_library, available_isas())]


def error(weight: torch.Tensor, width: int, kernels: CDLL | None) -> float:
    """Root of the mean square, relative to that of the weights."""
    lost = quantize(weight, width, kernels=kernels).unpack().double() - weight.double()
    return float((lost.square().mean() / weight.double().square().mean()).sqrt())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("width", "most"), [(8, 0.008), (4, 0.085)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normal_weights_lose_little(width: int, most: float, dtype: torch.dtype, kernels: CDLL | None) -> None:
    torch.manual_seed(0)
    weight = (0.02 * torch.randn(100, 512)).to(dtype)
    assert error(weight, width, kernels) < most


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e-3, 1e4])
def test_weights_of_any_size_lose_little(width: int, size: float, kernels: CDLL | None) -> None:
    """Scales below and above what float16 holds."""
    torch.manual_seed(0)
    assert error(size * torch.randn(32, 64), width, kernels) < (0.01 if width == 8 else 0.1)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("width", [8, 4])
def test_groups_of_one_value_and_an_outlier_are_kept(width: int, kernels: CDLL | None) -> None:
    """Zeros divided by a scale of zero were NaN; one large weight took the others of its group to zero, and no more."""
    weight = torch.zeros(16, 128)
    assert torch.equal(quantize(weight, width, kernels=kernels).unpack(), weight)
    weight[3], weight[4, :32] = 0.5, -0.25
    found = quantize(weight, width, kernels=kernels).unpack()
    torch.testing.assert_close(found, weight, atol=0.003, rtol=0.01)
    torch.manual_seed(0)
    weight = torch.randn(16, 128)
    weight[0, 0] = 100.0
    far = quantize(weight, width, kernels=kernels).unpack()
    assert abs(float(far[0, 0]) - 100) < 10
    torch.testing.assert_close(far[1:], weight[1:], atol=0.5, rtol=0.0)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(width: int, broken: float, kernels: CDLL | None) -> None:
    weight = torch.ones(16, 64)
    weight[2, 3] = broken
    with pytest.raises(CannotStart, match="q_proj"):
        quantize(weight, width, "q_proj", kernels)


@pytest.mark.parametrize("width", [4, 5, 6, 8])
@pytest.mark.parametrize("kernels", KERNELS[1:])
def test_kernels_lay_codes_out_as_torch_does(width: int, kernels: CDLL) -> None:
    """The last panel is not full."""
    torch.manual_seed(0)
    codes, scales = torch.randint(0, 2**width, (39, 96), dtype=torch.uint8), torch.ones(39, 3)
    ours, theirs = (
        PackedWeight.pack(codes, scales, width=width, group=32, kernels=one).codes for one in (kernels, None)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("shape", [(16, 32), (39, 64), (40, 96), (20, 5 * 32), (16, 7 * 32), (16, 1024)])
def test_it_takes_the_bytes_that_are_planned(width: int, shape: tuple[int, int]) -> None:
    assert quantize(torch.randn(shape), width).num_bytes == quantized_bytes(width, shape)


def test_only_projections_of_layers_are_quantized() -> None:
    """Routers, norms, convolutions, experts, embeddings and gates of one output stay as they are."""
    square = (64, 64)
    assert is_quantizable("model.layers.3.self_attn.q_proj.weight", square)
    assert is_quantizable("model.language_model.layers.3.linear_attn.in_proj_qkv.weight", square)
    expert = "model.layers.0.mlp.experts.gate_up_proj"
    assert is_quantizable_expert(expert, (8, 64, 64)) and is_quantizable_expert(f"{expert}.3.up_proj.weight", square)
    assert not is_quantizable_expert(expert, (8, 96, 64)) and not is_quantizable_expert("model.layers.0.weight", square)
    others = ("embed_tokens", "layers.0.mlp.gate", "layers.0.input_layernorm", "layers.0.mlp.experts.3.up_proj")
    assert not any(is_quantizable(f"model.{name}.weight", square) for name in (*others, "layers.0.conv1d"))
    assert not is_quantizable("model.layers.0.mlp.shared_expert_gate.weight", (1, 64))
    assert can_be_packed(square) and not can_be_packed((64, 48)) and not can_be_packed((64,))
