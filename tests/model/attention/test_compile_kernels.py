"""Every kernel compiles to machine code of real cards with Triton's compiler and assembler; no card is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # limit of one thread block (CUDA programming guide, table 31)
MAX_SPILLED_BYTES = 128  # of stack: a few values outside the loop


def test_every_kernel_compiles_for_supported_cards_without_spilling(tmp_path: Path, is_long: bool) -> None:
    """Code that runs in the interpreter may not compile, e.g. a variable whose type changes in a loop; the engine would
    then use no kernels on any card. Nor must it be fast: tiles of wide heads once spilled a kilobyte."""
    capabilities = SHARED_BYTES if is_long else {80: SHARED_BYTES[80]}
    few = [] if is_long else ["--few"]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        (sys.executable, "-m", "tests.model.attention.compile_kernels", *few, *map(str, capabilities)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    one_row = ("token_product", "line_product", "rotate_and_write")
    fused = ("add_rms_norm", "norm_and_rotate", "silu_and_mul")
    names = {f"_{name}_kernel" for name in ("write", "attend", "combine", *fused, *one_row, "product")}
    names |= {"_write_bytes_kernel"} if is_long else set()
    for capability in capabilities:
        most_shared = SHARED_BYTES[capability]
        found = [one for one in compiled if one[1] == capability]
        assert {name for name, *_ in found} == names
        for name, _, shared, spilled in found:
            assert shared <= most_shared, (name, capability)
            assert spilled <= MAX_SPILLED_BYTES, (name, capability)
