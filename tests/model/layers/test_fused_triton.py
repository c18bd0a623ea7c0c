"""Fused layer kernels against torch's operations: in Triton's interpreter, or on a card."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from server.model.kernel_selection import choose_backbone, compare_layers
from server.model.layers import fused_triton
from server.model.layers.decoder import CompactBackbone
from tests.checkpoints import Kind
from tests.model.drive import reference

CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = ("qwen2", "qwen3", "qwen3_moe", "llama")


def decoder_of(kind: Kind, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Any:
    """transformers' decoder in this dtype; a copy of the one that other tests use."""
    model = type(reference(kind))(reference(kind).config)
    model.load_state_dict(reference(kind).state_dict())
    return model.eval().requires_grad_(False).to(device, dtype).get_decoder()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_kernels_equals_torch(kind: Kind, dtype: torch.dtype) -> None:
    """With and without head norms, with biases, and with experts."""
    decoder = decoder_of(kind, dtype)
    difference = compare_layers(CompactBackbone(decoder, fused_triton), CompactBackbone(decoder))
    assert difference.largest <= (2e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("size", [40, 1000, 2500])
def test_sizes_that_are_no_power_of_two_are_computed_to_their_ends(size: int) -> None:
    """Elements after a line belong to the next token."""
    generator = torch.Generator().manual_seed(size)
    hidden, added, weight = (torch.randn(3, size, generator=generator) for _ in range(3))
    norm: Any = type("Norm", (), {"weight": weight[0], "epsilon": 1e-6})
    total = hidden.clone()
    normed = fused_triton.add_rms_norm(total, added, norm)
    assert torch.equal(total, hidden + added)
    expected = torch.nn.functional.rms_norm(hidden + added, [size], weight[0], 1e-6)
    torch.testing.assert_close(normed, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fused_triton.add_rms_norm(total, None, norm), normed)
    gate, up = (torch.randn(3, size, generator=generator) for _ in range(2))
    found = fused_triton.silu_and_mul(torch.cat((gate, up), 1))
    torch.testing.assert_close(found, torch.nn.functional.silu(gate) * up, atol=1e-6, rtol=1e-5)


def rotated_backwards(heads: Tensor, norms: Any, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate in the opposite direction."""
    return fused_triton.norm_and_rotate(heads, norms, cos, -sin)


def without_sum(hidden: Tensor, added: Tensor | None, norm: Any) -> Tensor:
    """Norm before adding."""
    normed = fused_triton.add_rms_norm(hidden, None, norm)
    hidden += 0 if added is None else added
    return normed


@pytest.mark.parametrize(("name", "broken"), [("norm_and_rotate", rotated_backwards), ("add_rms_norm", without_sum)])
def test_the_comparison_at_start_rejects_broken_kernels(name: str, broken: Callable[..., Any]) -> None:
    """Kernels that compile but compute something else must not be used."""
    decoder = decoder_of("qwen3")
    names = ("add_rms_norm", "norm_and_rotate", "silu_and_mul")
    ops: Any = type("LayerOps", (), {one: staticmethod(getattr(fused_triton, one)) for one in names})
    assert compare_layers(CompactBackbone(decoder, ops), CompactBackbone(decoder)).is_small
    setattr(ops, name, staticmethod(broken))
    assert not compare_layers(CompactBackbone(decoder, ops), CompactBackbone(decoder)).is_small


def test_a_cpu_does_not_use_them() -> None:
    backbone = choose_backbone(decoder_of("qwen3"), CPU)
    assert isinstance(backbone, CompactBackbone) and backbone.ops is not fused_triton


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_on_the_gpu_a_layer_with_kernels_equals_torch(
    kind: Kind, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = torch.device("cuda")
    decoder = decoder_of(kind, dtype, cuda)
    assert compare_layers(CompactBackbone(decoder, fused_triton), CompactBackbone(decoder)).is_small
    with caplog.at_level("INFO"):
        assert isinstance(choose_backbone(decoder, cuda), CompactBackbone)
    assert "without" in caplog.text or kind == "qwen3_moe", "both were timed"
