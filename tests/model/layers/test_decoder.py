"""The compact backbone computes what transformers' modules compute, and is used for known model types only."""

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from server.model.attention.base import PoolShape, paged_attention
from server.model.attention.cpu import KvPool
from server.model.attention.step_plan import RowPlan
from server.model.layers.decoder import Backbone, CompactBackbone, TransformersBackbone, open_backbone
from server.model.loading.pretrained import ATTENTION_NAME
from tests.checkpoints import KINDS, Kind, tiny_checkpoint
from tests.model.drive import loaded, prompt_of

COMPACT = ("qwen2", "qwen3", "qwen3_moe", "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_only_known_models_use_the_compact_backbone(kind: Kind) -> None:
    assert isinstance(
        loaded(kind, kernels=False).backbone, CompactBackbone if kind in COMPACT else TransformersBackbone
    )


def test_a_model_that_rotates_a_part_of_each_head_is_left_to_transformers() -> None:
    decoder = decoder_of("llama")
    decoder.rotary_emb.inv_freq = decoder.rotary_emb.inv_freq[:-1]
    assert isinstance(open_backbone(decoder), TransformersBackbone)


@pytest.mark.parametrize("kind", COMPACT)
@pytest.mark.parametrize("tokens", [1, 3, 40, 300])
def test_hidden_states_equal_those_of_transformers(kind: Kind, tokens: int) -> None:
    """Two rows, one after a cached prompt; long ones are computed in chunks."""
    decoder = decoder_of(kind)
    backbones: tuple[Backbone, Backbone] = open_backbone(decoder), TransformersBackbone(decoder)
    compact, expected = (hidden_states(kind, decoder, backbone, tokens) for backbone in backbones)
    torch.testing.assert_close(compact, expected, atol=2e-5, rtol=1e-4)


def decoder_of(kind: Kind) -> Any:
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)  # plain decoders are loaded without it
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint(kind), attn_implementation=ATTENTION_NAME)
    return model.eval().requires_grad_(False).get_decoder()


def hidden_states(kind: Kind, decoder: Any, backbone: Backbone, tokens: int) -> torch.Tensor:
    model = loaded(kind, kernels=False)
    layers = len(model.kv.layer_indices)
    past = 21
    each = (past + tokens) // 16 + 1
    pool = KvPool(PoolShape(16, layers, model.kv.kv_heads, model.kv.head_dim, torch.float32), 2 * each)
    layer_of = {index: i for i, index in enumerate(model.kv.layer_indices)}
    parts = []
    for rows in (
        [RowPlan(past, 0, range(each))],
        [RowPlan(tokens, past, range(each)), RowPlan(tokens, 0, range(each, 2 * each))],
    ):
        ids = torch.tensor(prompt_of(sum(row.num_tokens for row in rows), 3))
        positions = torch.cat([torch.arange(row.start, row.start + row.num_tokens) for row in rows])
        with torch.inference_mode():
            parts.append(backbone(ids, positions, pool.arrange(rows, layer_of), None))
    return torch.cat(parts)
