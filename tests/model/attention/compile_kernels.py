"""Compile the kernels without a card: python -m tests.model.attention.compile_kernels [--few] CAPABILITY... (90: H100).

Every launch that a pool and a decoder make is compiled to the card's machine code and not launched; tensors are on the
CPU. With --few those of a pool with wide heads alone, which spill first. Prints one line of JSON for each kernel: name,
capability, bytes of shared memory, bytes of stack that each thread spills to. Raises the errors of Triton and its
assembler.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from server.model import device
from server.model.attention import triton_kernels
from server.model.attention.base import PoolShape
from server.model.kernel_selection import compare_attention
from server.model.layers import fused_triton, one_row_triton
from server.model.layers.decoder import HeadNorms, RmsNorm
from server.model.quantization import triton_product

CPU = torch.device("cpu")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHAPES = [  # one block's shape, and the number of query heads
    (PoolShape(32, 1, 2, 256, torch.bfloat16), 16),  # Qwen3.5
    (PoolShape(32, 1, 8, 128, torch.bfloat16), 32),  # Qwen3-8B
    (PoolShape(32, 1, 2, 64, torch.float16), 14),  # Qwen2.5-0.5B
    (PoolShape(32, 1, 8, 128, torch.bfloat16, in_bytes=True), 32),  # Qwen3-8B with --kv-dtype int8
]


def launch_layer_ops() -> None:
    """Launch the fused layer kernels with the shapes of Qwen3-0.6B (with head norms) and Qwen2.5-7B."""
    for size, gated, heads, has_norms in ((1024, 3072, 24, True), (3584, 18944, 32, False)):
        norm = type("RmsNorm", (), {"weight": torch.ones(size, dtype=torch.bfloat16), "epsilon": 1e-6})
        hidden = torch.ones((3, size), dtype=torch.bfloat16)
        for added in (hidden, None):
            fused_triton.add_rms_norm(hidden, added, cast(RmsNorm, norm))
        norms = type("Norms", (), {"weight": torch.ones((heads, 128), dtype=torch.bfloat16), "epsilon": 1e-6})
        angles = torch.ones((3, 1, 128), dtype=torch.bfloat16)
        together = torch.ones((3, heads + 8, 128), dtype=torch.bfloat16)[:, :heads]
        fused_triton.norm_and_rotate(together, cast(HeadNorms, norms) if has_norms else None, angles, angles)
        fused_triton.silu_and_mul(torch.ones((3, 2 * gated), dtype=torch.bfloat16))


def launch_one_row() -> None:
    """Launch the kernels for steps of one row with the shapes of Qwen3-0.6B, and those of Qwen2.5-7B with biases."""
    for size, gated, heads, has_norms in ((1024, 3072, 16, True), (3584, 18944, 28, False)):
        hidden, norm, opened = (torch.ones(width, dtype=torch.bfloat16) for width in (size, size, gated))
        projected, angles = torch.ones((heads + 16, 128), dtype=torch.bfloat16), torch.ones(9, 64, dtype=torch.bfloat16)
        weight, bias = torch.ones((projected.numel(), size), dtype=torch.bfloat16), projected.view(-1)
        own = None if has_norms else bias
        one_row_triton.product(hidden, weight, bias.clone(), norm=norm, epsilon=1e-6, bias=own)
        pool, first = torch.ones((2, 32, 8, 128), dtype=torch.bfloat16), torch.ones(1, dtype=torch.int32)
        norms = projected[: heads + 8] if has_norms else None
        one_row_triton.rotate_and_write(projected, norms, 1e-6, (angles, angles), first, first, pool, pool)
        both = torch.ones((2 * gated, size), dtype=torch.bfloat16)
        one_row_triton.product(hidden, both, opened, norm=norm, epsilon=1e-6, is_gated=True)
        tile = one_row_triton.Tile(2, triton.next_power_of_2(size), 4, 2)
        one_row_triton.product(hidden, both, opened, norm=norm, epsilon=1e-6, is_gated=True, tile=tile)
        one_row_triton.product(opened, torch.ones((size, gated), dtype=torch.bfloat16), hidden, adds=True)


class CompileOnlyDriver:
    """Triton driver of one compute capability, for compiling without a card."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """The compilation target."""
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Triton caches kernels by device: each capability is its own device."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Unused: nothing is launched."""
        return 0


def spilled_bytes(cubin: bytes) -> int:
    """Bytes of registers that a thread spills to memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = subprocess.run((CUOBJDUMP, "-res-usage", file.name), capture_output=True, text=True, check=True)
    return max(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", found.stdout))


def main(capabilities: list[int], num_shapes: int) -> None:
    """Compile for each capability."""
    run = JITFunction.run
    compiled: dict[int, tuple[str, Any]] = {}

    def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(function, *args, grid=grid, warmup=True, **options)
        compiled[id(kernel)] = function.__name__, kernel
        return kernel

    JITFunction.run = compile_only
    for capability in capabilities:
        driver.set_active(CompileOnlyDriver(capability))
        is_early = (capability // 10, capability % 10) >= device.EARLY_CAPABILITY
        for module in (triton_kernels, one_row_triton):
            module.launches_early = lambda _, is_early=is_early: is_early  # type: ignore[attr-defined]
        compiled.clear()
        for shape, heads in SHAPES[:num_shapes]:
            compare_attention(triton_kernels, shape, heads, CPU)
        launch_layer_ops()
        launch_one_row()
        triton_product.largest_difference(CPU, torch.bfloat16)
        for name, kernel in compiled.values():
            spilled = spilled_bytes(kernel.asm["cubin"])
            print(json.dumps([name, capability, kernel.metadata.shared, spilled]), flush=True)


if __name__ == "__main__":
    few = "--few" in sys.argv
    main([int(word) for word in sys.argv[1:] if word.isdigit()], 1 if few else len(SHAPES))
