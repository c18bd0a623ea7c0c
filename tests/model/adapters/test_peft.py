"""Adapters against PEFT: what it writes when it has merged an adapter is what is written here, merged or beside."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.utils.other import get_pattern_key

from server.adapter_folder import read_adapter_config
from server.messages import Sampling
from server.model.adapters.weights import read_adapter
from server.model.loading.loader import load
from server.model.runner import Runner
from server.settings import EngineSettings
from tests.adapter_folders import ATTENTION_AND_MLP, LINEAR_ATTENTION, write_adapter
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.drive import BLOCK_SIZE, Stream, prompt_of, run

SETTINGS = EngineSettings(device="cpu", dtype="float32")
SAMPLING = Sampling(max_tokens=12, temperature=0.0, num_logprobs=0)
ODD_FIELDS: dict[str, Any] = {
    "use_rslora": True,
    "rank_pattern": {"self_attn.q_proj": 3},
    "alpha_pattern": {"layers.1.mlp.down_proj": 5},
}


def nothing(fraction: float) -> None:
    """Progress that nobody sees."""


def merged_by_peft(checkpoint: Path, folder: Path) -> Any:
    """transformers' model with PEFT's merge."""
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()


def scores(model: Any, ids: list[int]) -> torch.Tensor:
    """Log probabilities of all ids behind each, by transformers."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


def written(settings: EngineSettings, checkpoint: Path, adapter: Path | None) -> Stream:
    """A greedy reply, with an adapter beside the model or without."""
    loaded = load(checkpoint, settings, nothing)
    runner = Runner(loaded, 8, BLOCK_SIZE, 1 if loaded.recurrent else 0)
    handle = 0
    if adapter is not None:
        handle = 1
        runner.add_adapter(1, loaded.backbone.adapt(read_adapter(adapter, loaded.targets, loaded.dtype)))
    stream = Stream(prompt_of(20), range(8), SAMPLING, slot=0 if loaded.recurrent else None, adapter=handle)
    run(runner, [stream])
    return stream


def check(stream: Stream, model: Any, base: Any) -> None:
    """The reply is PEFT's greedy one, its log probabilities are close, and the base model would write another."""
    ids = [*stream.prompt, *stream.written]
    expected, plain = scores(model, ids), scores(base, ids)
    begin = len(stream.prompt) - 1
    places = range(begin, len(ids) - 1)
    assert stream.written == [int(expected[place].argmax()) for place in places]
    assert stream.written != [int(plain[place].argmax()) for place in places]
    for place, logprob in zip(places, stream.logprobs, strict=True):
        assert logprob.logprob == pytest.approx(float(expected[place, logprob.token_id]), abs=2e-3)


@pytest.mark.parametrize("isa", ["auto", "torch"])
@pytest.mark.parametrize("fields", [{}, ODD_FIELDS], ids=["plain", "patterns and rslora"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_reply_with_an_adapter_is_that_of_pefts_merge(
    tmp_path: Path, kind: Kind, fields: dict[str, Any], isa: Any
) -> None:
    """Beside the model and merged at the start alike: forgotten scales, patterns or parts show at once.

    The kernels compute qwen3; the heads of qwen2 are too small for them.
    """
    checkpoint = tiny_checkpoint(kind)
    adapter = write_adapter(tmp_path / "one", checkpoint, **fields)
    model = merged_by_peft(checkpoint, adapter)
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    settings = replace(SETTINGS, cpu_isa=isa)
    check(written(settings, checkpoint, adapter), model, base)
    check(written(replace(settings, merge_adapter=str(adapter)), checkpoint, None), model, base)


@pytest.mark.parametrize("isa", ["auto", "torch"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_5"])
def test_adapters_of_experts_models_and_hybrids(tmp_path: Path, kind: Kind, isa: Any) -> None:
    """Attention of a mixture of experts; the projections of linear attention, which torch computes row by row."""
    checkpoint = tiny_checkpoint(kind)
    modules = ATTENTION_AND_MLP[:4] if kind == "qwen3_moe" else (*ATTENTION_AND_MLP, *LINEAR_ATTENTION)
    adapter = write_adapter(tmp_path / "one", checkpoint, modules=modules)
    model = merged_by_peft(checkpoint, adapter)
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    settings = replace(SETTINGS, cpu_isa=isa)
    check(written(settings, checkpoint, adapter), model, base)
    check(written(replace(settings, merge_adapter=str(adapter)), checkpoint, None), model, base)


def test_an_adapter_that_peft_has_written_itself(tmp_path: Path) -> None:
    """Names and fields as PEFT saves them: all-linear, with everything that it writes by default."""
    checkpoint = tiny_checkpoint("qwen2")
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trained = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(1)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0.0, 0.2, generator=generator)
    trained.save_pretrained(tmp_path)
    model = merged_by_peft(checkpoint, tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    check(written(SETTINGS, checkpoint, tmp_path), model, plain)


@pytest.mark.parametrize(
    ("pattern", "module", "alpha"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", 4.0),
        ("q_proj", "model.layers.0.self_attn.xq_proj", 16.0),
        ("layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj", 16.0),
        ("^model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj", 16.0),
        ("^model.layers.11.mlp.up_proj", "model.layers.11.mlp.up_proj", 4.0),
        (r"layers\.(0|2)\..*", "model.layers.2.mlp.up_proj", 4.0),
    ],
)
def test_patterns_match_as_pefts(tmp_path: Path, pattern: str, module: str, alpha: float) -> None:
    config = read_adapter_config(
        write_adapter(tmp_path, tiny_checkpoint("llama"), lora_alpha=16, alpha_pattern={pattern: 4})
    )
    assert config.scale_of(module, 1) == alpha
    assert (get_pattern_key([pattern], module) == pattern) == (alpha == 4.0)
