"""The Triton product of few bits against torch: in Triton's interpreter, or on a card."""

import pytest
import torch

from server.model.quantization.linear import multiply_unpacked
from server.model.quantization.packed_weight import PackedWeight
from server.model.quantization.quantize import quantize

triton_product = pytest.importorskip("server.model.quantization.triton_product", reason="Triton is not installed")


@pytest.mark.parametrize("num_tokens", [1, 16, 37])
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_products_equal_those_of_torch(width: int, dtype: torch.dtype, num_tokens: int) -> None:
    """Outputs that fill no panel, super-groups, and scales of float16; the interpreter knows no bfloat16 products."""
    torch.manual_seed(0)
    packed, hidden = quantize(torch.randn(75, 320), width), torch.randn(num_tokens, 320).to(dtype)
    found, expected = triton_product.multiply(packed, hidden), multiply_unpacked(packed, hidden)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=2e-2 if dtype == torch.float16 else 1e-4, rtol=1e-3)


def test_other_forms_are_unpacked_by_torch() -> None:
    """Six bits in groups of sixteen, as GGUF has them."""
    codes = torch.randint(0, 64, (20, 64), dtype=torch.uint8)
    packed = PackedWeight.pack(codes, torch.rand(20, 4), width=6, group=16, offset=32)
    hidden = torch.randn(3, 64)
    assert torch.equal(triton_product.multiply(packed, hidden), multiply_unpacked(packed, hidden))


def test_the_check_at_start_sees_no_difference() -> None:
    assert triton_product.largest_difference(torch.device("cpu"), torch.float32) < 1e-5
