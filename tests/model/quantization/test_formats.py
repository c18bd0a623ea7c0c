"""Checkpoints of GPTQ, AWQ and compressed-tensors, packed here bit by bit as their programs pack them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from server.errors import CannotStart
from server.model.quantization.formats import can_read, lay_out
from server.model.quantization.packed_weight import PackedWeight

OUTPUTS, INPUTS, GROUP = 48, 128, 64
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs each place of an int32 holds


class Grid:
    """Random codes, scales and zero points, and the weights they stand for."""

    def __init__(
        self, width: int, symmetric: bool = False, shape: tuple[int, ...] = (OUTPUTS, INPUTS), group: int = GROUP
    ) -> None:
        torch.manual_seed(0)
        self.width, self.group = width, group
        self.codes = torch.randint(0, 2**width, shape)
        self.scales = torch.rand(shape[0], shape[1] // group).half()
        self.zeros = torch.randint(1, 2**width, self.scales.shape)
        if symmetric:
            self.zeros[:] = 2 ** (width - 1)

    def groups(self) -> Tensor:
        return torch.arange(self.codes.shape[1]) // self.group

    def weights(self, groups: Tensor | None = None) -> Tensor:
        groups = self.groups() if groups is None else groups
        return (self.codes - self.zeros[:, groups]).double() * self.scales.double()[:, groups]


def packed(codes: Tensor, width: int, places: tuple[int, ...] | None = None) -> Tensor:
    """int32 along the last dimension; `places`: the code that each place of an int32 holds."""
    each = 32 // width
    parts = codes.long().unflatten(-1, (-1, each))[..., list(places or range(each))]
    words = sum(parts[..., place] << (width * place) for place in range(each))
    assert isinstance(words, Tensor)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def gptq(grid: Grid, form: str = "gptq") -> tuple[dict[str, Any], dict[str, Tensor]]:
    stored = grid.zeros - 1 if form == "gptq" else grid.zeros
    tensors = {
        "qweight": packed(grid.codes, grid.width).T.contiguous(),
        "qzeros": packed(stored.T, grid.width),
        "scales": grid.scales.T.contiguous(),
        "g_idx": grid.groups().int(),
    }
    return {"quant_method": "gptq", "bits": grid.width, "group_size": grid.group, "checkpoint_format": form}, tensors


def awq(grid: Grid) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {
        "qweight": packed(grid.codes.T, 4, AWQ_COLUMNS),
        "qzeros": packed(grid.zeros.T, 4, AWQ_COLUMNS),
        "scales": grid.scales.T.contiguous(),
    }
    return {"quant_method": "awq", "bits": 4, "group_size": grid.group, "version": "gemm"}, tensors


def compressed(grid: Grid, symmetric: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {
        "weight_packed": packed(grid.codes, grid.width),
        "weight_scale": grid.scales.bfloat16(),
        "weight_shape": torch.tensor(grid.codes.shape),
    }
    grid.scales = grid.scales.bfloat16()
    if not symmetric:
        tensors["weight_zero_point"] = packed(grid.zeros.T, grid.width).T.contiguous()
    arguments = {"num_bits": grid.width, "type": "int", "group_size": grid.group, "symmetric": symmetric}
    groups = {"group_0": {"targets": ["Linear"], "weights": arguments, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}, tensors


def whole_rows(grid: Grid) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """int8 as it is, with a scale a row."""
    grid.scales, grid.zeros = grid.scales[:, :1], torch.full((OUTPUTS, 1), 128)
    arguments = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": arguments}}
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    return settings, {"weight": (grid.codes - 128).to(torch.int8), "weight_scale": grid.scales}


CASES = {
    "gptq of 4": lambda: (grid := Grid(4), gptq(grid)),
    "gptq of 8, symmetric": lambda: (grid := Grid(8, symmetric=True), gptq(grid)),
    "gptq of 4, in groups of 16": lambda: (grid := Grid(4, group=16), gptq(grid)),
    "gptq_v2": lambda: (grid := Grid(4), gptq(grid, "gptq_v2")),
    "awq": lambda: (grid := Grid(4), awq(grid)),
    "compressed-tensors of 4, symmetric": lambda: (grid := Grid(4, symmetric=True), compressed(grid, True)),
    "compressed-tensors of 4": lambda: (grid := Grid(4), compressed(grid, False)),
    "compressed-tensors of 8": lambda: (grid := Grid(8), compressed(grid, False)),
}


def read(settings: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor | PackedWeight]:
    module = "model.layers.0.mlp.up_proj"
    others = {"model.norm.weight": torch.ones(4), f"{module}.bias": torch.ones(OUTPUTS)}
    assert can_read(settings)
    found = lay_out(settings, {f"{module}.{name}": part for name, part in tensors.items()} | others)
    assert found.keys() == {*others, f"{module}.weight"}
    return found


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_definition(case: str) -> None:
    """A nibble in another order, a zero point that is one off, or groups along the wrong side."""
    grid, (settings, tensors) = CASES[case]()
    weight = read(settings, tensors)["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(weight, PackedWeight) and weight.width == grid.width
    torch.testing.assert_close(weight.unpack().double(), grid.weights(), atol=1e-5, rtol=1e-6)


def test_int8_rows_are_read() -> None:
    grid = Grid(8)
    settings, tensors = whole_rows(grid)
    weight = read(settings, tensors)["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(weight, PackedWeight)
    expected = (grid.codes - 128).double() * grid.scales.double()
    torch.testing.assert_close(weight.unpack().double(), expected, atol=1e-5, rtol=1e-6)


def test_inputs_in_another_order_than_their_groups_are_multiplied_out(caplog: pytest.LogCaptureFixture) -> None:
    """`desc_act`: read in order, every weight would have another's scale."""
    grid = Grid(4)
    settings, tensors = gptq(grid)
    tensors["g_idx"] = tensors["g_idx"][torch.randperm(INPUTS)]
    weight = read(settings, tensors)["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(weight, Tensor) and "16 bits instead" in caplog.text
    torch.testing.assert_close(weight.double(), grid.weights(tensors["g_idx"].long()), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 3},
        {"quant_method": "awq", "version": "gemv"},
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"a": {}}},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": []},
        {"quant_method": ["gptq"]},
        {"quant_method": "bitsandbytes"},
    ],
)
def test_other_grids_are_left_to_transformers(change: dict[str, Any]) -> None:
    settings, _ = gptq(Grid(4))
    assert not can_read(settings | change)


@pytest.mark.parametrize("lost", ["scales", "qzeros", "qweight"])
def test_a_checkpoint_that_lacks_a_part_is_refused_by_name(lost: str) -> None:
    settings, tensors = gptq(Grid(4))
    broken = {f"a.{name}": part[:1] if name == lost else part for name, part in tensors.items()}
    with pytest.raises(CannotStart, match="a: its quantized weight"):
        lay_out(settings, broken)
    if lost != "qweight":
        del broken[f"a.{lost}"]
        with pytest.raises(CannotStart, match=lost):
            lay_out(settings, broken)
