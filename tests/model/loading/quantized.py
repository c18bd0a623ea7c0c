"""Compares logits of GPTQ and AWQ checkpoints, which gptqmodel makes here, with those that it computes itself.

    pip install gptqmodel optimum
    python -m tests.model.loading.quantized

Not part of the suite: gptqmodel installs its own version of torch and compiles for minutes.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from server.messages import Sampling
from server.model.batch import Batch, Row, RowSampling
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings

SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 2048}  # fmt: skip
PROMPT = [(index * 37) % 2000 + 9 for index in range(70)]
METHODS: dict[str, dict[str, str]] = {"gptq": {}, "awq": {"quant_method": "awq", "format": "gemm"}}


def make_base(folder: Path) -> None:
    """A small unquantized Qwen3 with random weights."""
    torch.manual_seed(0)
    model: Any = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, tie_word_embeddings=False))
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, 0.0, 0.06)
    model.to(torch.bfloat16).save_pretrained(folder)


def quantize(base: Path, folder: Path, choices: dict[str, str]) -> None:
    """Quantize to four bits, calibrated on random ids."""
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(str(base), QuantizeConfig(bits=4, group_size=64, **choices), device="cpu")
    texts = torch.randint(9, 2000, (16, 256)).tolist()
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts], batch_size=1)
    model.save(str(folder))


def ours(folder: Path) -> torch.Tensor:
    """Logits of every position of the prompt, computed by a Runner."""
    loaded = load(folder, EngineSettings(device="cpu", cpu_isa="torch"), lambda fraction: None)
    sampling = RowSampling(Sampling(max_tokens=1, temperature=0.0), 0, PROMPT, [])
    logits = Runner(loaded, 8, 32).launch(Batch((Row(PROMPT, 0, range(3), len(PROMPT), sampling),))).logits
    assert logits is not None
    return logits.float()


def theirs(folder: Path) -> torch.Tensor:
    """The same, computed by transformers."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu")
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].float()


def main() -> None:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores its default of one worker fails
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_base(folder / "unquantized")
        for method, choices in METHODS.items():
            quantize(folder / "unquantized", folder / method, choices)
        for name in ("unquantized", *METHODS):
            distance = (ours(folder / name) - theirs(folder / name)).abs()
            lines.append(f"{name:12} mean {distance.mean():.4f}, greatest {distance.max():.4f}")
    print("distance from transformers' logits (standard deviation 1) in bfloat16:", *lines, sep="\n")


if __name__ == "__main__":
    main()
