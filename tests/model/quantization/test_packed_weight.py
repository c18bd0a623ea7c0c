"""Packed weights keep every code and scale, whatever their width, and say what they cannot hold."""

from typing import Any

import pytest
import torch
from torch import Tensor

from server.model.cpu.quantized_check import random_weight
from server.model.quantization.linear import QuantizedEmbedding, QuantizedLinear
from server.model.quantization.packed_weight import PackedWeight

WIDTHS = (4, 5, 6, 8)


def plain(codes: Tensor, scales: Tensor, minimums: Tensor) -> Tensor:
    """Weights by their definition, in float64."""
    group = codes.shape[1] // scales.shape[1]
    each = [part.double().repeat_interleave(group, 1) for part in (scales, minimums)]
    return each[0] * codes.double() - each[1]


@pytest.mark.parametrize("group", [16, 32, 96])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_weight_is_read_back(width: int, group: int) -> None:
    """A bit of a code in another place, or a scale of another group, and a panel that is not full."""
    torch.manual_seed(0)
    codes = torch.randint(0, 2**width, (39, 192), dtype=torch.uint8)
    scales, minimums = (torch.rand(39, 192 // group).half() for _ in range(2))
    packed = PackedWeight.pack(codes, scales, width=width, group=group, minimums=minimums)
    expected = plain(codes, scales, minimums)
    assert torch.equal(packed.unpack().double(), expected.float().double())
    assert torch.equal(packed.unpack(16, 20), packed.unpack()[16:36])
    ids = torch.tensor([38, 0, 17, 17])
    assert torch.equal(packed.rows(ids), packed.unpack()[ids])
    assert packed.num_bytes == 48 * (192 * width // 8 + 2 * 2 * 192 // group)


def test_scales_of_eight_bits_are_multiplied_by_those_of_their_super_group() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (16, 256), dtype=torch.uint8)
    scales, minimums = (torch.randint(-128, 128, (16, 8), dtype=torch.int8) for _ in range(2))
    supers, super_minimums = (torch.rand(16, 2).half() for _ in range(2))
    packed = PackedWeight.pack(
        codes, scales, width=4, group=32, minimums=minimums, super_scales=supers, super_minimums=super_minimums
    )
    wide, wide_minimums = (
        part.float() * above.float().repeat_interleave(4, 1)
        for part, above in ((scales, supers), (minimums, super_minimums))
    )
    torch.testing.assert_close(packed.unpack().double(), plain(codes, wide, wide_minimums), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 3}, "3 bits"),
        ({"group": 24}, "groups of 24"),
        ({"scales": torch.ones(16, 5)}, "scales of shape"),
        ({"scales": torch.full((16, 6), torch.inf)}, "finite"),
        ({"minimums": torch.full((16, 6), torch.nan)}, "finite"),
        ({"codes": torch.zeros(16, 200, dtype=torch.uint8)}, "200 inputs"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {
        "codes": torch.zeros(16, 192, dtype=torch.uint8),
        "scales": torch.ones(16, 6),
        "width": 4,
        "group": 32,
    }
    with pytest.raises(ValueError, match=named):
        PackedWeight.pack(**(given | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers_multiply_and_look_up_what_the_weight_holds(dtype: torch.dtype) -> None:
    """By torch, for devices without kernels."""
    torch.manual_seed(0)
    packed = random_weight(4, torch.int8, 32, 64, 40)
    hidden, bias = torch.randn(2, 3, 64).to(dtype), torch.randn(40).to(dtype)
    layer, embedding = QuantizedLinear(packed, bias), QuantizedEmbedding(packed, dtype)
    expected = hidden @ packed.unpack().to(dtype).T + bias
    found = layer(hidden)
    assert found.dtype == dtype and found.shape == (2, 3, 40)
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-2)
    ids = torch.tensor([[5, 39]])
    assert torch.equal(embedding(ids), packed.unpack()[ids].to(dtype))
