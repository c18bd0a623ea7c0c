"""transformers uses the kernels of flash-linear-attention where that package is installed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.checkpoints import tiny_checkpoint

ROOT = Path(__file__).parents[3]
# With the package's names; each counts its calls and calls transformers' own function.
PACKAGE = """
import inspect
calls = {"chunk": 0, "recurrent": 0}

def _own(name, args, kwargs):
    from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling
    return inspect.unwrap(getattr(modeling, name))(*args, **kwargs)

def chunk_gated_delta_rule(query, key, value, g, beta, initial_state=None, output_final_state=False,
                           use_qk_l2norm_in_kernel=False, cu_seqlens=None):
    calls["chunk"] += 1
    return _own("torch_chunk_gated_delta_rule", (query, key, value), dict(g=g, beta=beta, initial_state=initial_state,
                output_final_state=output_final_state, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel))

def fused_recurrent_gated_delta_rule(query, key, value, g, beta, initial_state=None, output_final_state=False,
                                     use_qk_l2norm_in_kernel=False, cu_seqlens=None):
    calls["recurrent"] += 1
    return _own("torch_recurrent_gated_delta_rule", (query, key, value), dict(g=g, beta=beta,
                initial_state=initial_state, output_final_state=output_final_state,
                use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel))
"""
PROGRAM = """
import fla
from server.messages import Sampling
from server.model.runner import Runner
from tests.model.drive import BLOCK_SIZE, Stream, generate, loaded, prompt_of, run
stream = Stream(prompt_of(40), range(4), Sampling(max_tokens=5, temperature=0.0), slot=0, chunk=30)
run(Runner(loaded("qwen3_5", kernels=False), 8, BLOCK_SIZE, num_slots=1), [stream])
assert fla.calls == {"chunk": 6, "recurrent": 12}, fla.calls  # three linear layers: two chunks, then four tokens
assert stream.written == generate("qwen3_5", stream.prompt, 5)
"""


def test_the_package_s_kernels_compute_chunks_and_single_tokens(tmp_path: Path) -> None:
    tiny_checkpoint("qwen3_5")
    package = tmp_path / "fla"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    for inner in ("ops", "ops/gated_delta_rule"):
        (package / inner).mkdir()
        (package / inner / "__init__.py").write_text("from fla import *\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
