"""The kernels become machine code of real cards, by Triton's own compiler and assembler; no card is needed for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # that one program may have (CUDA programming guide, table 31)
LITTLE = 128  # bytes of stack: a few numbers outside the loop


def test_every_kernel_compiles_for_the_cards_that_it_is_made_for(tmp_path: Path) -> None:
    """What the interpreter runs need not compile: a name that held one type before a loop and another in it did not,
    and the engine would have gathered on every card. Nor need it be fast: tiles of wide heads spilled a kilobyte."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        (sys.executable, "-m", "tests.model.attention.compile_kernels", *map(str, SHARED_BYTES)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    names = {f"_{name}_kernel" for name in ("write", "attend", "join", "add_rms_norm", "turn", "gate")}
    for capability, most_shared in SHARED_BYTES.items():
        found = [one for one in compiled if one[1] == capability]
        assert {name for name, *_ in found} == names
        for name, _, shared, spilled in found:
            assert shared <= most_shared, (name, capability)
            assert spilled <= LITTLE, (name, capability)
