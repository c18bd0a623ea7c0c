"""The decode step of one row with kernels of its own: in Triton's interpreter, or on a card."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

from server.messages import Sampling
from server.model.attention import triton_kernels
from server.model.attention.gpu import CudaKvPool
from server.model.graphs.decode_graphs import DecodeGraphs, StaticDecode
from server.model.kernel_selection import TOLERANCE, compare_one_row
from server.model.layers import one_row_triton
from server.model.layers.one_row import OneRowModel, open_one_row
from server.model.layers.packed_linear import pack_linears
from server.model.loading.loaded_model import LoadedModel
from server.model.loading.loader import load
from server.model.loading.pretrained import wrap_model
from server.model.runner import Runner, pool_shape
from server.settings import EngineSettings
from tests.checkpoints import Kind, tiny_checkpoint
from tests.model.drive import Stream, generate, prompt_of, reference, run

CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = ("qwen2", "qwen3", "llama")
BLOCK_SIZE = 16


def small_model(kind: Kind, device: torch.device = CPU) -> Any:
    """A model with packed layers and few words: the interpreter computes outputs one after the other."""
    config = copy.deepcopy(reference(kind).config)
    config.pad_token_id = None
    config.vocab_size, config.max_position_embeddings = 48, 64
    torch.manual_seed(1)
    model = type(reference(kind))(config).eval().requires_grad_(False).to(device)
    pack_linears(model)
    return model


def loaded_with_one_row(kind: Kind, device: torch.device) -> tuple[LoadedModel, OneRowModel]:
    model = small_model(kind, device)
    one_row = open_one_row(model.get_decoder(), model.get_output_embeddings())
    assert one_row is not None
    return wrap_model(model, device, 0.0), one_row


@pytest.mark.parametrize("tile", [None, one_row_triton.Tile(4, 4096, 4, 1), one_row_triton.Tile(4, 512, 4)])
@pytest.mark.parametrize(
    ("outputs", "inputs", "is_gated", "has_bias", "has_norm", "adds"),
    [(40, 96, False, True, True, False), (33, 3000, True, False, True, False), (7, 2500, False, True, False, True)],
)
def test_products_with_their_surroundings_equal_torch(
    outputs: int,
    inputs: int,
    is_gated: bool,
    has_bias: bool,
    has_norm: bool,
    adds: bool,
    tile: one_row_triton.Tile | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sizes are no multiples of a tile: lines and inputs beyond the end belong to others. With few processors a program
    takes several tiles."""
    monkeypatch.setattr(one_row_triton, "num_processors", lambda device: 2)
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn((outputs * (1 + is_gated), inputs), generator=generator) / inputs**0.5
    hidden, norm = (torch.randn(inputs, generator=generator) for _ in range(2))
    bias, held = (torch.randn(outputs, generator=generator) for _ in range(2))
    result = torch.cat((held if adds else torch.full((outputs,), torch.nan), torch.ones(1)))
    one_row_triton.product(
        hidden,
        weight,
        result[:outputs],
        norm=norm if has_norm else None,
        epsilon=1e-6,
        bias=bias if has_bias else None,
        is_gated=is_gated,
        adds=adds,
        tile=tile,
    )
    expected = weight @ (functional.rms_norm(hidden, [inputs], norm, 1e-6) if has_norm else hidden)
    expected = functional.silu(expected[:outputs]) * expected[outputs:] if is_gated else expected
    expected += (bias if has_bias else 0) + (held if adds else 0)
    torch.testing.assert_close(result[:outputs], expected, atol=1e-5, rtol=1e-5)
    assert result[outputs] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_one_row_equals_the_backbone(kind: Kind) -> None:
    """With and without head norms and biases; keys and values of every layer are in the cache afterwards."""
    loaded, one_row = loaded_with_one_row(kind, CPU)
    results, pools = [], []
    for own in (None, one_row):
        runner = Runner(loaded, 1, BLOCK_SIZE)
        runner.pool = pool = CudaKvPool(pool_shape(loaded, BLOCK_SIZE), 9, CPU, triton_kernels)
        runner._decode = static = StaticDecode(loaded, pool, (1, 4))
        static.one_row = own
        stream = Stream(list(range(20)), (7, 3, 5), Sampling(max_tokens=3, temperature=0.0))
        run(runner, [stream])
        results.append(stream.written)
        pools.append(torch.stack((*pool.keys, *pool.values)))
    assert results[0] == results[1]
    torch.testing.assert_close(pools[1], pools[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_comparison_at_start_refuses_other_results(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared by logits after all layers, right kernels were refused for a model of 36 layers in bfloat16."""
    model = small_model(kind)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    one_row = open_one_row(decoder, head)
    assert one_row is not None
    assert compare_one_row(one_row, decoder, head).largest < 1e-5
    rotate: Any = one_row_triton.rotate_and_write

    def rotate_as_the_next(*arguments: Any) -> torch.Tensor:
        *before, positions, slots, keys, values = arguments
        rotated: torch.Tensor = rotate(*before, positions + 1, slots, keys, values)
        return rotated

    monkeypatch.setattr(one_row_triton, "rotate_and_write", rotate_as_the_next)
    assert not compare_one_row(one_row, decoder, head).is_small
    monkeypatch.undo()
    monkeypatch.setattr(one_row_triton, "rotate_and_write", lambda *all: rotate(*all[:-3], all[-3] - 1, *all[-2:]))
    difference = compare_one_row(one_row, decoder, head)
    assert difference.largest > TOLERANCE[torch.bfloat16], "its key and value in the place of the one before"
    monkeypatch.undo()
    one_row._head = one_row._head.roll(1, 0)
    assert not compare_one_row(one_row, decoder, head).is_small


def test_models_with_other_layers_have_none() -> None:
    """Experts, layers that are not plainly linear and rotations that depend on the length go to the backbone."""
    experts = reference("qwen3_moe")
    assert open_one_row(experts.get_decoder(), experts.get_output_embeddings()) is None
    model = small_model("qwen3")
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    assert open_one_row(decoder, head) is not None
    decoder.rotary_emb.rope_type = "dynamic"
    assert open_one_row(decoder, head) is None
    decoder.rotary_emb.rope_type = "default"
    output = decoder.layers[1].self_attn.o_proj
    decoder.layers[1].self_attn.o_proj = torch.nn.Sequential(output)
    assert open_one_row(decoder, head) is None


def test_a_stretched_rotation_has_angles_for_the_whole_window() -> None:
    """A window of four times the config's positions was read beyond the end of the angles."""
    model = small_model("qwen3")
    decoder = model.get_decoder()
    decoder.config.rope_parameters = {**decoder.config.rope_parameters, "rope_type": "yarn", "factor": 4.0}
    one_row = open_one_row(decoder, model.get_output_embeddings())
    assert one_row is not None and len(one_row._angles[0]) == 4 * decoder.config.max_position_embeddings


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_the_gpu_replays_of_one_row_equal_generate(kind: Kind) -> None:
    """Kernels that are launched early must not read what an earlier one has yet to write."""
    loaded = load(tiny_checkpoint(kind), EngineSettings(device="cuda"), lambda fraction: None)
    assert isinstance(loaded.one_row, OneRowModel)
    runner = Runner(loaded, 64, BLOCK_SIZE)
    runner.capture_graphs((1,))
    graphs = runner._decode
    assert isinstance(graphs, DecodeGraphs)
    graphs._static.one_row = loaded.one_row  # whichever is faster
    graphs._steps.clear()
    for seed in range(3):
        stream = Stream(prompt_of(30, seed), range(8), Sampling(max_tokens=40, temperature=0.0))
        run(runner, [stream])
        assert stream.written == generate(kind, stream.prompt, 40)
